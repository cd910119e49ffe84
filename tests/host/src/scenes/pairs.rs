//! What a MAP and its UNMAP cost through the daemon, beside a type1 container alone, in one run.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use viommu_client::Rights;

use crate::bench::{Bench, FOLDER, HERE, ONE, OPTIONS, TEST, TEST_AT};
use crate::pci::Function;
use crate::ram::{PAGE, RAM_BYTES, Ram};
use crate::type1::Container;
use crate::{check, expect};

/// Pairs that are measured, for each length.
const PAIRS: u32 = 200;

/// The lengths: a page, and one of the next size.
const SMALL: u64 = PAGE;
const LARGE: u64 = 2 << 20;

/// Where mappings lead: behind what queues use.
const MIDDLE: u64 = RAM_BYTES / 2;

/// Mappings over which pinned memory is counted.
const COUNTED: u64 = 64;

/// What one pair takes, for each length.
struct Cost {
    small: Duration,
    large: Duration,
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "4 KiB {} us, 2 MiB {} us", self.small.as_micros(), self.large.as_micros())
    }
}

impl Cost {
    /// Measures pairs that `pair` makes of a length.
    fn of(mut pair: impl FnMut(u64) -> io::Result<()>) -> io::Result<Self> {
        let mut measure = |bytes| -> io::Result<Duration> {
            // the first one allocates tables that stay
            pair(bytes)?;
            let began = Instant::now();
            (0..PAIRS).try_for_each(|_| pair(bytes))?;
            Ok(began.elapsed() / PAIRS)
        };
        Ok(Self { small: measure(SMALL)?, large: measure(LARGE)? })
    }
}

pub(super) fn play() -> io::Result<()> {
    let (fixed, kept) = through_the_daemon("static")?;
    check(
        "pinned-static",
        match kept {
            0 => Ok(format!("{COUNTED} mappings pinned nothing")),
            more => Err(io::Error::other(format!("{COUNTED} mappings pinned {more} KiB"))),
        },
    );
    let (on_demand, pinned) = through_the_daemon("dynamic")?;
    // that nothing was counted before means something only if this is counted
    let all = (COUNTED * PAGE) >> 10;
    let counted = expect("KiB pinned", &pinned, &all);
    check("pinned-dynamic", counted.map(|()| format!("{COUNTED} mappings pinned {pinned} KiB")));
    let alone = container_alone()?;
    let (plain, each) = (alone.to_string(), Ok(format!("static {fixed}; dynamic {on_demand}")));
    check("pairs", each.map(|ours: String| format!("{ours}; type1 alone {plain}")));
    Ok(())
}

/// The cost through a daemon that pins so, and how many KiB it has pinned more after some mappings.
fn through_the_daemon(pin: &str) -> io::Result<(Cost, u64)> {
    let mut bench = Bench::open(&[OPTIONS, &["--pin", pin]].concat())?;
    bench.attach(ONE, TEST)?;
    let cost = Cost::of(|bytes| {
        let iovas = HERE..=HERE + (bytes - 1);
        bench
            .driver
            .map(ONE, iovas.clone(), MIDDLE, Rights::ReadWrite)
            .map_err(io::Error::other)?;
        bench.driver.unmap(ONE, iovas).map_err(io::Error::other)
    })?;
    let before = bench.daemon.pinned_kib()?;
    for page in 0..COUNTED {
        bench.map(ONE, HERE + page * PAGE, MIDDLE + page * PAGE, Rights::ReadWrite)?;
    }
    let pinned = bench.daemon.pinned_kib()?.saturating_sub(before);
    let Bench { daemon, driver, .. } = bench;
    drop(driver);
    daemon.end()?;
    std::fs::remove_dir_all(FOLDER)?;
    Ok((cost, pinned))
}

fn container_alone() -> io::Result<Cost> {
    let ram = Ram::new()?;
    let container = Container::open(&Function::at(TEST_AT))?;
    // memory that is there, as it is for the daemon
    for page in 0..LARGE / PAGE {
        ram.physical(MIDDLE + page * PAGE)?;
    }
    Cost::of(|bytes| {
        container.map(HERE, &ram, MIDDLE, bytes)?;
        container.unmap(HERE, bytes)
    })
}

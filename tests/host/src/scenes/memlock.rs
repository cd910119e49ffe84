//! What may be pinned runs out.

use std::io;

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};
use viommu_client::vmm::FrontEnd;
use viommu_client::{Iommu, Rights, Status, features};

use super::load::{self, Replacement};
use crate::bench::{Bench, HERE, ONE, OPTIONS, TEST, status_of};
use crate::daemon::Daemon;
use crate::ram::{PAGE, RAM_BYTES};
use crate::{check, expect};

/// What may be pinned, bytes: much less than guest memory.
const LIMIT: u64 = 8 << 20;

/// Where a mapping as long as the limit leads: behind what queues use.
const MIDDLE: u64 = RAM_BYTES / 2;

pub(super) fn play() -> io::Result<()> {
    // what we start has no capability to pin more
    remove_capability_from_bounding_set(CapabilitySet::IPC_LOCK)?;
    setrlimit(Resource::Memlock, Rlimit { current: Some(LIMIT), maximum: Some(LIMIT) })?;
    let mut bench = Bench::open(&[OPTIONS, &["--pin", "dynamic"]].concat())?;
    check("dynamic", a_map_past_the_limit_is_refused_and_maps_nothing(&mut bench));
    check("halfway", a_map_that_fails_in_its_second_part_maps_nothing(&mut bench));
    check("replaced", load::domains_are_replaced(&mut bench, Replacement::Clean));
    let Bench { daemon, driver, ram, .. } = bench;
    drop(driver);
    daemon.end()?;
    let daemon = Daemon::start("/tmp/static", &[OPTIONS, &["--pin", "static"]].concat())?;
    let front_end = FrontEnd::connect(&daemon.socket(), ram.memfd())?;
    let told = Iommu::start(front_end, features::STANDARD).err().map(|error| error.to_string());
    check(
        "static",
        match told {
            Some(why) => {
                daemon.end().map(|_| format!("guest memory refused when it is told: {why}"))
            }
            None => Err(io::Error::other("all of guest memory was pinned")),
        },
    );
    Ok(())
}

fn a_map_past_the_limit_is_refused_and_maps_nothing(bench: &mut Bench) -> io::Result<String> {
    let half = LIMIT / 2;
    bench.attach(ONE, TEST)?;
    let mut map = |at: u64, bytes: u64| {
        let iovas = HERE + at..=HERE + at + (bytes - 1);
        status_of(bench.driver.map(ONE, iovas, MIDDLE + at, Rights::ReadWrite))
    };
    expect("half of it", &map(0, half)?, &Status::OK)?;
    expect("past it", &map(half, LIMIT)?, &Status::NOMEM)?;
    expect("a page more", &map(half, PAGE)?, &Status::OK)?;
    bench.reaches(HERE, MIDDLE)?;
    bench.reaches(HERE + half, MIDDLE + half)?;
    bench.is_refused(HERE + half + PAGE, MIDDLE + half + PAGE)?;
    bench.driver.unmap(ONE, 0..=u64::MAX).map_err(io::Error::other)?;
    bench.is_refused(HERE, MIDDLE)?;
    let again = bench.driver.map(ONE, HERE..=HERE + (half - 1), MIDDLE, Rights::ReadWrite);
    again.map_err(io::Error::other)?;
    bench.driver.unmap(ONE, 0..=u64::MAX).map_err(io::Error::other)?;
    Ok(format!("NOMEM past {} MiB, room again after UNMAP", LIMIT >> 20))
}

/// Guest memory is two files' parts for the daemon, mapped one after the other: the first is within the
/// limit, both are not.
fn a_map_that_fails_in_its_second_part_maps_nothing(bench: &mut Bench) -> io::Result<String> {
    bench.driver.transport().set_memory(&[(0, MIDDLE), (MIDDLE, RAM_BYTES - MIDDLE)])?;
    let start = MIDDLE - LIMIT / 2;
    let iovas = HERE..=HERE + (LIMIT + PAGE - 1);
    let refused = status_of(bench.driver.map(ONE, iovas, start, Rights::ReadWrite))?;
    expect("a page more than all", &refused, &Status::NOMEM)?;
    bench.is_refused(HERE, start)?;
    bench.is_refused(HERE + LIMIT / 2, MIDDLE)?;
    expect("KiB pinned", &bench.daemon.pinned_kib()?, &0)?;
    bench.map(ONE, HERE, start, Rights::ReadWrite)?;
    bench.reaches(HERE, start)?;
    bench.unmap(ONE, HERE)?;
    Ok("its first part was mapped, and is not any more".to_owned())
}

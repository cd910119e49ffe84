//! The disk's speed in a guest: behind nothing, behind our IOMMU in each mode, behind QEMU's own.
//!
//! All rows come out of one run, round after round, each row booted anew; of the rounds the best figure
//! counts, because what else the machine does only ever slows a row down.

use std::time::Duration;

use super::set::{BARE, Iommu, Set};
use super::stage::{Place, Stage};
use super::tools::{Sources, Tools};
use super::{Arch, fresh};
use crate::error::{Error, Result};
use crate::setup::build;
use crate::setup::guest_kernel::{NEWEST, Row as Guest};
use crate::ui::{Step, note, table};

const NAME: &str = "bench";
const SCRIPT: &str = include_str!("../../../guest/scenarios/bench.sh");

/// How often each row is booted.
const ROUNDS: usize = 2;
/// Several times what a round of one row takes on the slowest machine.
const LIMIT: Duration = Duration::from_secs(300);

/// The sizes of block in bytes, the pages of their buffers, and the directions, in the order of the script.
const BLOCKS: [(u64, &str); 4] =
    [(4096, "small"), (65536, "small"), (1 << 20, "small"), (1 << 20, "huge")];
const DIRECTIONS: [&str; 2] = ["read", "write"];
/// Above the speeds, in the same order.
const HEADINGS: [&str; CELLS + 1] = [
    "",
    "4K read",
    "4K write",
    "64K read",
    "64K write",
    "1M read",
    "1M write",
    "1M huge page read",
    "1M huge page write",
];
const CELLS: usize = BLOCKS.len() * DIRECTIONS.len();

/// One processor: where the host has two, one is left for the daemon and the disk.
const DISK: Set = Set { disks: &[128], cpus: 1, ..BARE };
/// Longer than what lies between two requests of a guest that maps page after page.
const POLL_US: u32 = 200;
const PASS: &str = "iommu=pt iommu.passthrough=1";
const STRICT: &str = "iommu.strict=1";

/// What is compared; the second row is what all others are measured by.
const ROWS: [(&str, Set); 10] = [
    ("no IOMMU", Set { iommu: Iommu::None, ..DISK }),
    ("iommu=pt", Set { append: PASS, ..DISK }),
    ("translated, lazy", DISK),
    ("translated, strict", Set { append: STRICT, ..DISK }),
    ("lazy, the daemon never polls", Set { poll_us: Some(0), ..DISK }),
    ("strict, the daemon never polls", Set { poll_us: Some(0), append: STRICT, ..DISK }),
    ("lazy, the daemon always polls", Set { poll_us: Some(POLL_US), ..DISK }),
    ("strict, the daemon always polls", Set { poll_us: Some(POLL_US), append: STRICT, ..DISK }),
    ("QEMU's virtio-iommu, lazy", Set { iommu: Iommu::Qemus, ..DISK }),
    ("QEMU's virtio-iommu, strict", Set { iommu: Iommu::Qemus, append: STRICT, ..DISK }),
];
const YARDSTICK: usize = 1;

/// One size of block in one direction: what was done, and what it cost.
#[derive(Debug, Clone, Copy, Default)]
struct Cell {
    /// Blocks in a second.
    rate: f64,
    /// Microseconds of processor time for each block: QEMU, the disk, the daemon.
    cost_us: [f64; 3],
    /// MAP requests for each block that our daemon answered.
    maps: f64,
    /// UNMAP requests, likewise.
    unmaps: f64,
}

/// Clocks and counts at one moment.
#[derive(Debug, Clone, Copy, Default)]
struct Sample {
    processor: [Duration; 3],
    maps: u64,
    unmaps: u64,
}

/// Boots each row and prints the tables.
///
/// # Errors
/// Something is missing, or a guest did not get to its end.
pub(crate) fn run(sources: &Sources) -> Result<()> {
    let tools = Tools::prepare(sources, &[Guest::named(NEWEST)?], &[(NAME, SCRIPT)])?;
    let mut best = [[Cell::default(); CELLS]; ROWS.len()];
    for round in 1..=ROUNDS {
        for ((name, set), best) in ROWS.iter().zip(&mut best) {
            let step = Step::begin(format_args!("round {round} of {ROUNDS}, {name}"));
            let cells = boot(set, &tools)?;
            for (best, cell) in best.iter_mut().zip(cells) {
                if cell.rate > best.rate {
                    *best = cell;
                }
            }
            step.done("measured");
        }
    }
    show(&best);
    Ok(())
}

/// Boots one row and measures all its cells.
fn boot(set: &Set, tools: &Tools) -> Result<[Cell; CELLS]> {
    let dir = build::target().join("guest").join(NAME);
    fresh(&dir)?;
    let kit = tools.guest(NEWEST).map_err(|why| Error::Wrong(why.to_owned()))?;
    let place = Place { tools, kit, arch: Arch::Vtd, dir: &dir };
    let mut stage = Stage::open(NAME, set, &place, LIMIT)?;
    let mut cells = [Cell::default(); CELLS];
    let names = BLOCKS
        .iter()
        .flat_map(|(bytes, pages)| DIRECTIONS.map(|way| format!("{way}.{bytes}.{pages}")));
    for (cell, name) in cells.iter_mut().zip(names) {
        stage.until_ready("begin")?;
        let before = Sample::take(&mut stage)?;
        stage.guest.talk.answer("go")?;
        stage.until_ready("end-of-one")?;
        let after = Sample::take(&mut stage)?;
        *cell = Cell::new(stage.guest.talk.check(&name)?, &before, &after)?;
        stage.guest.talk.answer("go")?;
    }
    stage.close()?;
    Ok(cells)
}

impl Sample {
    fn take(stage: &mut Stage<'_>) -> Result<Self> {
        let disk = stage.disks.first().map_or(Ok(Duration::ZERO), |disk| disk.processor_time())?;
        let daemon = stage.daemon.as_ref().map_or(Ok(Duration::ZERO), |it| it.processor_time())?;
        let processor = [stage.guest.process.processor_time()?, disk, daemon];
        if stage.daemon.is_none() {
            return Ok(Self { processor, ..Self::default() });
        }
        let counters = stage.counters_now()?;
        Ok(Self { processor, maps: counters.get("map")?, unmaps: counters.get("unmap")? })
    }
}

impl Cell {
    /// `told` are the blocks and the nanoseconds that the guest measured.
    fn new(told: &str, before: &Sample, after: &Sample) -> Result<Self> {
        let numbers = told.split_once(' ').and_then(|(blocks, nanoseconds)| {
            Some((blocks.parse::<u32>().ok()?, nanoseconds.parse::<u64>().ok()?))
        });
        let (blocks, time) = numbers
            .map(|(blocks, nanoseconds)| (f64::from(blocks), Duration::from_nanos(nanoseconds)))
            .filter(|(blocks, time)| *blocks > 0.0 && !time.is_zero())
            .ok_or_else(|| Error::Wrong(format!("the guest measured {told:?}")))?;
        let [qemu, disk, daemon] = [0, 1, 2].map(|index: usize| {
            let clock = |sample: &Sample| sample.processor.get(index).copied().unwrap_or_default();
            clock(after).saturating_sub(clock(before)).as_secs_f64() * 1e6 / blocks
        });
        let count = |after: u64, before: u64| {
            u32::try_from(after - before).map_or(f64::INFINITY, f64::from) / blocks
        };
        Ok(Self {
            rate: blocks / time.as_secs_f64(),
            cost_us: [qemu, disk, daemon],
            maps: count(after.maps, before.maps),
            unmaps: count(after.unmaps, before.unmaps),
        })
    }
}

fn show(rows: &[[Cell; CELLS]; ROWS.len()]) {
    let yardstick = rows.get(YARDSTICK).copied().unwrap_or_default();
    let lines: Vec<[String; CELLS + 1]> =
        ROWS.iter().zip(rows).map(|((name, _), cells)| speeds(name, cells, &yardstick)).collect();
    println!();
    note("MiB/s, and per cent of iommu=pt");
    table(HEADINGS, &lines);
    let lines: Vec<[String; 7]> = ROWS
        .iter()
        .zip(rows)
        .filter_map(|((name, _), cells)| Some(costs(name, cells.first()?)))
        .collect();
    println!();
    note("a read of 4 KiB: time with four under way, and processor time and requests for each");
    table(["", "us", "QEMU us", "disk us", "daemon us", "MAPs", "UNMAPs"], &lines);
}

fn speeds(name: &str, cells: &[Cell; CELLS], yardstick: &[Cell; CELLS]) -> [String; CELLS + 1] {
    let mut line: [String; CELLS + 1] = Default::default();
    let bytes = BLOCKS.iter().flat_map(|(bytes, _)| [*bytes; DIRECTIONS.len()]);
    let texts = cells.iter().zip(yardstick).zip(bytes).map(|((cell, of), bytes)| {
        let kib = u32::try_from(bytes >> 10).map_or(0.0, f64::from);
        format!("{:.1} ({:.0} %)", cell.rate * kib / 1024.0, 100.0 * cell.rate / of.rate)
    });
    for (place, text) in line.iter_mut().zip(std::iter::once(name.to_owned()).chain(texts)) {
        *place = text;
    }
    line
}

fn costs(name: &str, cell: &Cell) -> [String; 7] {
    let [qemu, disk, daemon] = cell.cost_us.map(|cost| format!("{cost:.0}"));
    let counts = [cell.maps, cell.unmaps].map(|count| format!("{count:.2}"));
    let [maps, unmaps] = counts;
    let time = format!("{:.0}", 1e6 / cell.rate);
    [name.to_owned(), time, qemu, disk, daemon, maps, unmaps]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cell_is_what_was_done_in_a_second_and_what_each_block_cost() {
        let before = Sample { processor: [Duration::from_secs(1); 3], maps: 10, unmaps: 5 };
        let processor = [1500, 1250, 1000].map(Duration::from_millis);
        let after = Sample { processor, maps: 30, unmaps: 25 };
        let cell = Cell::new("10 2000000000", &before, &after).unwrap();
        assert!((cell.rate - 5.0).abs() < 1e-9, "{}", cell.rate);
        assert_eq!(cell.cost_us.map(f64::round), [50_000.0, 25_000.0, 0.0]);
        assert!((cell.maps - 2.0).abs() < 1e-9 && (cell.unmaps - 2.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_no_measurement_is_an_error() {
        let sample = Sample::default();
        for told in ["", "5", "0 100", "100 0", "a b"] {
            assert!(Cell::new(told, &sample, &sample).is_err(), "{told:?}");
        }
    }
}

//! Everything that is checked before a change is good: lane by lane, one line of sums at the end.

mod lane;
mod tally;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::host;
use crate::oracle;
use crate::setup::cache::Cache;
use crate::setup::emulator::Emulator;
use crate::setup::{build, iasl};
use crate::suite::tools::Sources;
use crate::suite::{self, Outcome, Selection};
use crate::ui::{note, seconds, table};
use lane::LANES;
pub(crate) use lane::{STRESS_SECONDS, aux_table, fuzz, stress};
use tally::Tally;

/// Runs all lanes, each to its end, whatever came of those before.
///
/// # Errors
/// A lane could not be run at all. What fails in a lane is counted, not an error.
pub(crate) fn run(full: bool, sources: &Sources) -> Result<bool> {
    let logs = build::target().join("xtask-test");
    fs::create_dir_all(&logs).map_err(Error::file("make", &logs))?;
    let (mut rows, mut tallies) = (Vec::new(), Vec::new());
    let mut add = |name: &str, began: Instant, tally: Tally| {
        rows.push([name.to_owned(), tally.to_string(), seconds(began.elapsed())]);
        tallies.push(tally);
    };
    for lane in LANES {
        let began = Instant::now();
        let others = if lane.compares() { others(sources, &logs)? } else { Vec::new() };
        add(lane.name, began, lane.run(&logs, &others)?);
    }
    let began = Instant::now();
    add("fuzz", began, lane::run("fuzz", lane::brief_fuzz(), &logs)?);
    let began = Instant::now();
    add("stress", began, lane::run("stress", lane::stress(lane::STRESS_SECONDS), &logs)?);
    let began = Instant::now();
    add("oracle", began, oracle_lane(sources, &logs)?);
    let began = Instant::now();
    add("guests", began, guests(full, sources));
    let began = Instant::now();
    add("hosts", began, hosts(sources));
    println!();
    table(["lane", "result", "time"], &rows);
    let total: Tally = tallies.into_iter().sum();
    println!("\n{total}");
    Ok(total.failed == 0)
}

/// The programs of others that tests compare with, as they look for them in their environment. What
/// cannot be had is left out, and it is said why: the tests say then that they were skipped.
fn others(sources: &Sources, logs: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let (cache, mirror) = (Cache::open()?, sources.mirror.as_deref());
    let mut there = Vec::new();
    match iasl::bring(&cache, mirror, logs) {
        Ok(script) => there.push(("VIOMMU_IASL", script)),
        Err(error) => note(format_args!("no iasl to compare with: {error}")),
    }
    match Emulator::bring(sources.qemu.as_deref(), &cache, mirror) {
        Ok(qemu) => {
            there.extend(qemu.root().map(|root| ("VIOMMU_QEMU_ROOT", root.to_path_buf())));
        }
        Err(error) => note(format_args!("no QEMU to compare with: {error}")),
    }
    Ok(there)
}

/// The comparison with QEMU's walkers; without a QEMU it is left out, and it is said why.
fn oracle_lane(sources: &Sources, logs: &Path) -> Result<Tally> {
    match oracle::command(sources, &[]) {
        Ok(command) => lane::run("oracle", command, logs),
        Err(error) if error.is_lacking() => {
            note(format_args!("no QEMU to compare with: {error}"));
            Ok(Tally { skipped: 1, ..Tally::default() })
        }
        Err(error) => Err(error),
    }
}

/// The scenarios, once or in all their guests; when what they need cannot be had, all of them are left out
/// and it is said why.
fn guests(full: bool, sources: &Sources) -> Tally {
    let selection = Selection { full, ..Selection::default() };
    match suite::run(&selection, sources) {
        Ok(reports) => reports.iter().map(|report| tally(&report.outcome)).sum(),
        Err(error) if error.is_lacking() => {
            note(format_args!("no guest can be booted here: {error}"));
            Tally { skipped: selection.count(), ..Tally::default() }
        }
        Err(error) => {
            note(format_args!("the guests could not be prepared: {error}"));
            Tally { failed: selection.count(), ..Tally::default() }
        }
    }
}

/// The host suite; when what it needs cannot be had, all of it is left out and it is said why.
fn hosts(sources: &Sources) -> Tally {
    let all = host::count();
    match host::run(None, sources) {
        Ok(reports) => reports.iter().map(|report| Tally::one(report.passed())).sum(),
        Err(error) if error.is_lacking() => {
            note(format_args!("no host IOMMU can be emulated here: {error}"));
            Tally { skipped: all, ..Tally::default() }
        }
        Err(error) => {
            note(format_args!("the host suite could not be prepared: {error}"));
            Tally { failed: all, ..Tally::default() }
        }
    }
}

/// What a boot counts as.
const fn tally(outcome: &Outcome) -> Tally {
    match outcome {
        Outcome::Passed(_) => Tally::one(true),
        Outcome::Failed(_) => Tally::one(false),
        Outcome::Skipped(_) => Tally { passed: 0, failed: 0, skipped: 1 },
    }
}

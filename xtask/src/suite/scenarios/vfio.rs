//! A driver in the guest's user space: what it maps is reached, what it unmapped is not.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "vfio",
    about: "guest VFIO: mapped copies, then unmapped: blocked and told",
    script: include_str!("../../../../guest/scenarios/vfio.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { engines: 1, ..BARE },
    limit: Duration::from_secs(180),
    play,
};

/// What `vfio-dma` checks.
const CHECKS: [&str; 10] = [
    "open",
    "copy",
    "unmapped",
    "unmapped-source",
    "straddle",
    "read-only",
    "write-only",
    "moved",
    "pairs",
    "left",
];

/// The blocked accesses of these checks, as the guest's kernel tells them: endpoint 00:04.0 is 32.
const FAULTS: [&str; 3] = [
    "page fault from EP 32 at 0xff40000000 [W]",
    "page fault from EP 32 at 0x10000000 [R]",
    "page fault from EP 32 at 0xff40002000 [W]",
];

/// Blocked accesses of all checks but `write-only`, which not all tables block.
const FAULTS_AT_LEAST: u64 = 4;

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    for check in CHECKS {
        talk.check(check)?;
    }
    let told = talk.facts("fault");
    for fault in FAULTS {
        if !told.iter().any(|line| line.ends_with(fault)) {
            return Err(Error::Wrong(format!("the guest's log has no {fault:?}, but {told:?}")));
        }
    }
    took_no_extension(&stage.daemon_log(), talk.fact("unknown")?)?;
    counters.at_least("faults", FAULTS_AT_LEAST)?;
    Ok(format!("{} faults told, {}", told.len(), talk.check("pairs")?))
}

/// The engine has PASIDs, so the daemon offers its extension. A guest that knows nothing of it takes none
/// of it and meets nothing that it does not know.
fn took_no_extension(daemon: &str, unknown: &str) -> Result<()> {
    let taken = daemon.lines().find_map(|line| line.split_once("a driver starts; driver: "));
    let taken = taken.and_then(|(_, features)| features.split(';').next());
    let taken = taken.ok_or_else(|| Error::Wrong("no driver started".to_owned()))?;
    if taken.contains("AUX") || taken.contains("BIND") || unknown != "0" {
        return Err(Error::Wrong(format!("the driver took {taken}; unknown to it: {unknown}")));
    }
    Ok(())
}

//! Drivers come and go: the kernel's own on the disk, one in user space on the DMA engine.

use std::time::Duration;

use crate::error::Result;
use crate::suite::stage::{BARE, Set, Stage};
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "rebind",
    about: "drivers unbound and bound again; domains end without a DETACH",
    script: include_str!("../../../../guest/scenarios/rebind.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::SmmuV3,
    set: Set { disk_mib: Some(32), engine: true, ..BARE },
    limit: Duration::from_secs(150),
    play,
};

/// How often the drivers change; the script counts as far.
const ROUNDS: usize = 3;

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    for round in 0..ROUNDS {
        compare::checksum(talk.check(&format!("sum.{round}"))?, &stage.image())?;
        talk.check(&format!("user.{round}"))?;
    }
    // each visit of user space attaches the engine elsewhere and back
    counters.at_least("attach", 2 + 2 * ROUNDS as u64)?;
    compare::equal("detaches", "0", &counters.get("detach")?.to_string())?;
    Ok(format!("{ROUNDS} rounds, {} attaches, no detach", counters.get("attach")?))
}

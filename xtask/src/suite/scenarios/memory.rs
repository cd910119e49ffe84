//! A guest with memory above 4 GiB, and hardly any of it free.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "memory",
    about: "6 GiB, buffers above 4 GiB, under memory pressure",
    script: include_str!("../../../../guest/scenarios/memory.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::SmmuV3,
    // the second node begins at 5 GiB on a PC, which has 2 GiB below 4, and at 4 GiB on an Arm board
    set: Set { disks: &[256], memory_mib: &[3072, 3072], ..BARE },
    limit: Duration::from_secs(400),
    play,
};

/// Pages that the kernel takes back at least: half of what the guest reads through its cache, of which
/// not a half would fit.
const RECLAIMED: u64 = (256 << 20) / 4096 / 2;

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    let sum = compare::checksum(talk.check("sum")?, &stage.image())?;
    talk.check("high")?;
    let reclaimed = talk.fact("reclaimed")?;
    if reclaimed.parse::<u64>().is_ok_and(|pages| pages < RECLAIMED) {
        return Err(Error::Wrong(format!("{reclaimed} pages were reclaimed: no pressure")));
    }
    compare::equal("faults", "0", &counters.get("faults")?.to_string())?;
    Ok(format!("checksum {sum} on both sides, {reclaimed} pages reclaimed"))
}

//! Strict invalidation: each buffer is unmapped, and the IOMMU's answer awaited, as it comes back.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{ARM_FIRST, Arch, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "strict",
    about: "iommu.strict=1: each buffer is unmapped at once",
    script: include_str!("../../../../guest/scenarios/strict.sh"),
    guests: ARM_FIRST,
    arch: Arch::SmmuV3,
    set: Set { append: "iommu.strict=1", disks: &[128], ..BARE },
    limit: Duration::from_secs(240),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    compare::equal("the group's type", talk.fact("group")?, "0 DMA")?;
    let sum = compare::checksum(talk.check("sum")?, &stage.image())?;
    // what the driver keeps mapped are its rings, a handful of pages
    let (maps, unmaps) = (counters.get("map")?, counters.get("unmap")?);
    counters.at_least("unmap", 1000)?;
    if maps.abs_diff(unmaps) > 64 {
        return Err(Error::Wrong(format!("{maps} maps, but {unmaps} unmaps")));
    }
    compare::equal("faults", "0", &counters.get("faults")?.to_string())?;
    Ok(format!("checksum {sum} on both sides, {maps} maps, {unmaps} unmaps"))
}

//! A guest whose kernel has no driver for the IOMMU: boot bypass lets its devices work.

use std::time::Duration;

use crate::error::Result;
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, IGNORANT, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "ignored",
    about: "a guest without a driver for the IOMMU: its disk works in boot bypass",
    script: include_str!("../../../../guest/scenarios/plain.sh"),
    guests: IGNORANT,
    arch: Arch::Vtd,
    set: Set { disks: &[128], ..BARE },
    limit: Duration::from_secs(180),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let sum = compare::checksum(stage.guest.talk.check("sum")?, &stage.image())?;
    compare::equal("requests", "0", &stage.counters()?.get("requests")?.to_string())?;
    Ok(format!("checksum {sum} on both sides, no request came"))
}

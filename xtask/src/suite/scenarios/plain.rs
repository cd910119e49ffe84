//! The same guest and disk without an IOMMU: what fails here is not the IOMMU's doing.

use std::time::Duration;

use crate::error::Result;
use crate::suite::set::{BARE, Iommu, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "plain",
    about: "the disk without an IOMMU",
    script: include_str!("../../../../guest/scenarios/plain.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { iommu: Iommu::None, disks: &[256], ..BARE },
    limit: Duration::from_secs(180),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let sum = compare::checksum(stage.guest.talk.check("sum")?, &stage.image())?;
    Ok(format!("checksum {sum} on both sides"))
}

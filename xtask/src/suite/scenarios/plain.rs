//! The same guest and disk without an IOMMU: what fails here is not the IOMMU's doing.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::image;
use crate::suite::Scenario;
use crate::suite::stage::{BARE, Set, Stage};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "plain",
    about: "the disk without an IOMMU",
    script: include_str!("../../../../guest/scenarios/plain.sh"),
    set: Set { iommu: false, disk_mib: Some(256), ..BARE },
    limit: Duration::from_secs(90),
    play,
};

fn play(stage: &mut Stage) -> Result<String> {
    stage.close()?;
    let (sum, bytes) = image::checksum(&stage.image())?;
    let inside = stage.guest.talk.check("sum")?;
    if inside != format!("{sum} {bytes}") {
        return Err(Error::Wrong(format!("checksum inside {inside}, outside {sum} {bytes}")));
    }
    Ok(format!("checksum {sum} on both sides"))
}

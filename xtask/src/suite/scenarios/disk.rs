//! Gigabytes through a disk whose every DMA is translated.

use std::time::Duration;

use crate::error::Result;
use crate::suite::parts::DISK_SEED;
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

/// 2 GiB: twice the guest's memory, so that nothing of it can come from a cache alone.
const DISK_MIB: u64 = 2048;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "disk",
    about: "2 GiB read and written behind the IOMMU, compared on both sides",
    script: include_str!("../../../../guest/scenarios/disk.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { disks: &[DISK_MIB], ..BARE },
    limit: Duration::from_secs(600),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    let image = stage.image();
    stage.until_ready("go")?;
    let before = crate::image::checksum(&image)?;
    stage.guest.talk.answer("go")?;
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    compare::equal("the disk's group", talk.fact("group")?, "0 DMA-FQ")?;
    let outside = format!("{} {}", before.0, before.1);
    compare::equal("the checksum", talk.check("sum")?, &outside)?;
    compare::checksum(talk.check("sum-after")?, &image)?;
    // the image itself holds what the guest wrote: two eighths anew, the rest as it was
    let part = (DISK_MIB << 20) / 8;
    compare::content(&image, DISK_SEED + 1, 0..part)?;
    compare::content(&image, DISK_SEED + 2, part..2 * part)?;
    compare::content(&image, DISK_SEED, 2 * part..8 * part)?;
    counters.at_least("map", 1000)?;
    Ok(format!("checksum {} on both sides, {} maps", before.0, counters.get("map")?))
}

//! Gigabytes through a disk whose every DMA is translated.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use viommu_guest::{PIECE_BYTES, pattern};

use crate::error::{Error, Result};
use crate::image;
use crate::suite::Scenario;
use crate::suite::stage::{BARE, DISK_SEED, Set, Stage};

/// 2 GiB: twice the guest's memory, so that nothing of it can come from a cache alone.
const DISK_MIB: u64 = 2048;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "disk",
    about: "2 GiB read and written behind the IOMMU, compared on both sides",
    script: include_str!("../../../../guest/scenarios/disk.sh"),
    set: Set { disk_mib: Some(DISK_MIB), ..BARE },
    limit: Duration::from_secs(300),
    play,
};

fn play(stage: &mut Stage) -> Result<String> {
    let (before, bytes) = image::checksum(&stage.image())?;
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    if talk.fact("group")? != "0 DMA-FQ" {
        return Err(Error::Wrong(format!("the disk's group is {}", talk.fact("group")?)));
    }
    for check in ["sum", "sum-buffered"] {
        same(talk.check(check)?, &format!("{before} {bytes}"))?;
    }
    let (after, bytes) = image::checksum(&stage.image())?;
    same(talk.check("sum-after")?, &format!("{after} {bytes}"))?;
    for stretch in [0, 1, 2] {
        outside(stage, stretch)?;
    }
    counters.at_least("map", 1000)?;
    Ok(format!("checksum {before} on both sides, {} maps", counters.get("map")?))
}

fn same(inside: &str, outside: &str) -> Result<()> {
    if inside == outside {
        return Ok(());
    }
    Err(Error::Wrong(format!("checksum inside {inside}, outside {outside}")))
}

/// The image itself holds what the guest wrote: two eighths anew, the rest as it was.
fn outside(stage: &Stage, stretch: u64) -> Result<()> {
    let part = (DISK_MIB << 20) / 8;
    let (seed, first, end) = match stretch {
        0 => (DISK_SEED + 1, 0, part),
        1 => (DISK_SEED + 2, part, 2 * part),
        _ => (DISK_SEED, 2 * part, 8 * part),
    };
    let path = stage.image();
    let look = || -> std::io::Result<Option<u64>> {
        let mut file = File::open(&path)?;
        file.seek(SeekFrom::Start(first))?;
        let mut piece = vec![0; PIECE_BYTES];
        for at in (first..end).step_by(PIECE_BYTES) {
            file.read_exact(&mut piece)?;
            if let Some(wrong) = pattern::first_difference(seed, at, &piece) {
                return Ok(Some(wrong));
            }
        }
        Ok(None)
    };
    match look().map_err(Error::file("read", &path))? {
        None => Ok(()),
        Some(at) => Err(Error::Wrong(format!("the image has other content at byte {at:#x}"))),
    }
}

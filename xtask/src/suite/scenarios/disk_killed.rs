//! The disk's process dies in the middle of I/O: the IOMMU and the guest go on.

use std::fs;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::stage::{BARE, Set, Stage};
use crate::suite::{Arch, NEWEST_FIRST, Scenario};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "disk-killed",
    about: "kill -9 of the disk in the middle of I/O: unmaps do not hang",
    script: include_str!("../../../../guest/scenarios/disk-killed.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { disk_mib: Some(256), engine: true, ..BARE },
    limit: Duration::from_secs(120),
    play,
};

/// A drain that waited for the dead process would take this long, the daemon's default bound.
const STUCK_US: u64 = 1_000_000;

/// What QEMU 11.1.3 says when it ends itself instead of going on without the disk: its vfio-user client
/// sets an error twice if the server goes while something that QEMU sent lies unread.
const QEMU_FELL: &str = "error_setv: Assertion";

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.until_ready("kill")?;
    let mut disk = stage.disk.take().ok_or_else(|| Error::Wrong("there is no disk".to_owned()))?;
    disk.kill()?;
    let shown = go_on(stage);
    let qemu = fs::read_to_string(stage.file("qemu.log")).unwrap_or_default();
    if shown.is_err() && qemu.contains(QEMU_FELL) {
        return Err(Error::VmmFell(QEMU_FELL));
    }
    shown
}

/// The guest goes on, and so does the IOMMU.
fn go_on(stage: &mut Stage<'_>) -> Result<String> {
    stage.guest.talk.answer("killed")?;
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    for check in ["reading", "copy", "unmapped", "pairs"] {
        talk.check(check)?;
    }
    let longest = counters.get("longest_drain_us")?;
    if longest >= STUCK_US {
        return Err(Error::Wrong(format!("a drain took {longest} us")));
    }
    Ok(format!("the guest went on; longest drain {longest} us"))
}

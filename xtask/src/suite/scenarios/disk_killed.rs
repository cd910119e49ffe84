//! The disk's process dies in the middle of I/O: the IOMMU and the guest go on, and a new process
//! serves the next VMM.

use std::fs;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "disk-killed",
    about: "kill -9 of the disk in the middle of I/O; a new one serves the next VMM",
    script: include_str!("../../../../guest/scenarios/disk-killed.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { disks: &[64], engines: 1, ..BARE },
    limit: Duration::from_secs(400),
    play,
};

/// A drain that waited for the dead process would take this long, the daemon's default bound.
const STUCK_US: u64 = 1_000_000;

/// What QEMU 11.1.3 says when it ends itself instead of going on without the disk: its vfio-user client
/// sets an error twice if the server goes while something that QEMU sent lies unread.
const QEMU_FELL: &str = "error_setv: Assertion";

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.until_ready("boot")?;
    stage.guest.talk.answer("first")?;
    stage.until_ready("kill")?;
    for mut disk in stage.disks.drain(..) {
        disk.kill()?;
    }
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
    stage.guest.until_off(stage.deadline)?;
    for check in ["reading", "copy", "unmapped", "pairs"] {
        stage.guest.talk.check(check)?;
    }

    stage.start_devices()?;
    stage.boot()?;
    stage.until_ready("boot")?;
    stage.guest.talk.answer("second")?;
    stage.close()?;
    let counters = stage.counters()?;
    let sum = compare::checksum(stage.guest.talk.check("sum")?, &stage.image())?;
    let longest = counters.get("longest_drain_us")?;
    if longest >= STUCK_US {
        return Err(Error::Wrong(format!("a drain took {longest} us")));
    }
    Ok(format!("checksum {sum} on both sides later; longest drain {longest} us"))
}

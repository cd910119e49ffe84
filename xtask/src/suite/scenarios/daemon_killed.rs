//! The daemon dies under a guest. That guest has no IOMMU any more; the next one has a new one.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::parts::DISK_SEED;
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, OLDER_FIRST, Scenario, compare};

const DISK_MIB: u64 = 64;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "daemon-killed",
    about: "kill -9 of the daemon in the middle of I/O; a new one serves the next guest",
    script: include_str!("../../../../guest/scenarios/daemon-killed.sh"),
    guests: OLDER_FIRST,
    arch: Arch::SmmuV3,
    set: Set { disks: &[DISK_MIB], engines: 1, ..BARE },
    limit: Duration::from_secs(400),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.until_ready("boot")?;
    stage.guest.talk.answer("first")?;
    stage.until_ready("kill")?;
    let daemon = stage.daemon.take();
    daemon.ok_or_else(|| Error::Wrong("there is no daemon".to_owned()))?.kill()?;
    // QEMU and the devices are there still: what is lost is the IOMMU, and what goes through it
    stage.guest.process.running()?;
    for device in stage.disks.iter_mut().chain(&mut stage.engines) {
        device.running()?;
    }
    stage.guest.process.kill()?;

    stage.start_daemon()?;
    stage.start_devices()?;
    stage.boot()?;
    stage.until_ready("boot")?;
    stage.guest.talk.answer("second")?;
    stage.close()?;

    let talk = &stage.guest.talk;
    let image = stage.image();
    let sum = compare::checksum(talk.check("second-sum")?, &image)?;
    let part = (DISK_MIB << 20) / 8;
    compare::content(&image, DISK_SEED + 1, 0..part)?;
    compare::content(&image, DISK_SEED + 3, part..2 * part)?;
    compare::content(&image, DISK_SEED, 2 * part..8 * part)?;
    talk.check("unmapped")?;
    Ok(format!("nothing but what was in flight changed; checksum {sum}"))
}

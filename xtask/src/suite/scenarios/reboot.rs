//! The guest starts anew in place: nothing of its first life is left in the IOMMU.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::parts::DISK_SEED;
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

const DISK_MIB: u64 = 128;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "reboot",
    about: "reboot in place in the middle of disk I/O",
    script: include_str!("../../../../guest/scenarios/reboot.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { disks: &[DISK_MIB], reboots: true, ..BARE },
    limit: Duration::from_secs(400),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    let mut monitor = stage.monitor()?;
    stage.live("first")?;
    stage.until_ready("flying")?;
    monitor.execute("system_reset")?;
    stage.live("second")?;
    stage.close()?;
    let starts = stage.daemon_log().matches("a driver starts").count();
    if starts != 2 {
        return Err(Error::Wrong(format!("the driver started {starts} times, not twice")));
    }
    // the first eighth was written before the reboot, the second by the second boot
    let part = (DISK_MIB << 20) / 8;
    let image = stage.image();
    compare::content(&image, DISK_SEED + 1, 0..part)?;
    compare::content(&image, DISK_SEED + 2, part..2 * part)?;
    compare::content(&image, DISK_SEED, 3 * part..8 * part)?;
    Ok("the disk was read and written in both lives".to_owned())
}

impl Stage<'_> {
    /// One life of the guest, up to where it is checked.
    fn live(&mut self, boot: &str) -> Result<()> {
        self.until_ready("boot")?;
        self.guest.talk.answer(boot)?;
        let inside = self.guest_sum(boot)?;
        compare::checksum(&inside, &self.image()).map(drop)
    }

    /// The checksum that the guest computes while it and the host stand still.
    fn guest_sum(&mut self, boot: &str) -> Result<String> {
        let name = format!("{boot}-summed");
        self.until_ready(&name)?;
        let sum = self.guest.talk.check(&format!("{boot}-sum"))?.to_owned();
        self.guest.talk.answer("go")?;
        Ok(sum)
    }
}

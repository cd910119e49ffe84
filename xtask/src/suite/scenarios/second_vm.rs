//! One VMM leaves and another comes: it finds a fresh IOMMU, and the same daemon and devices.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "second-vm",
    about: "the VMM ends and a new one is served by the same processes",
    script: include_str!("../../../../guest/scenarios/second-vm.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { disks: &[64], engines: 1, ..BARE },
    limit: Duration::from_secs(400),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.boot_again()?;
    stage.close()?;
    let log = stage.daemon_log();
    for (event, times) in [("a driver starts", 2), ("the front-end has left", 2)] {
        let told = log.matches(event).count();
        if told != times {
            return Err(Error::Wrong(format!("{event:?} stands {told} times in the daemon's log")));
        }
    }
    let talk = &stage.guest.talk;
    let sum = compare::checksum(talk.check("sum")?, &stage.image())?;
    talk.check("unmapped")?;
    Ok(format!("checksum {sum} on both sides"))
}

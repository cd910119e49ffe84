//! `bypass` is the guest's to set; a pause and a reboot leave it, the next VMM finds what boot has.
//!
//! Linux 6.12 touches no device behind an IOMMU before it has the IOMMU's driver, so where DMA of
//! a disk goes that is attached to nothing shows in a guest without one.

use std::time::Duration;

use crate::error::Result;
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, IGNORANT, OLDER_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "bypass",
    about: "the bypass byte through stop and cont, reboot and a new VMM",
    script: include_str!("../../../../guest/scenarios/bypass.sh"),
    guests: OLDER_FIRST,
    arch: Arch::Vtd,
    // the kernel lets root write into a function that a driver owns only if it is told to
    set: Set {
        append: "viommu.load=later iomem=relaxed",
        disks: &[32],
        reboots: true,
        // it would wait for a disk that is blocked, and never end
        firmware_reads: false,
        ..BARE
    },
    limit: Duration::from_secs(400),
    play: driven,
};

/// The same with a disk that is attached to nothing.
pub(crate) const UNATTACHED: Scenario = Scenario {
    name: "bypass-off",
    about: "no driver: bypass off blocks the disk, through reboots, not for a new VMM",
    guests: IGNORANT,
    arch: Arch::SmmuV3,
    play: unattached,
    ..SCENARIO
};

/// What the disk says when its queue is out of its reach, which blocks its driver.
const BLOCKED: &str = "needs a reset";

fn driven(stage: &mut Stage<'_>) -> Result<String> {
    live(stage, "driven")?;
    let mut monitor = stage.monitor()?;
    stage.until_ready("pause")?;
    monitor.execute("stop")?;
    monitor.execute("cont")?;
    stage.guest.talk.answer("go")?;
    live(stage, "again")?;
    stage.until_ready("end")?;
    was(stage, &[("driven", "1"), ("set", "0"), ("paused", "0"), ("again", "0")])?;
    read(stage, &["driven-sum", "again-sum"])?;
    anew(stage)?;
    Ok("off through pause and reboot, on again for the next VMM".to_owned())
}

fn unattached(stage: &mut Stage<'_>) -> Result<String> {
    live(stage, "closed")?;
    live(stage, "blocked")?;
    stage.until_ready("refused")?;
    for disk in &mut stage.disks {
        disk.until(BLOCKED, stage.deadline, |disk| disk.log_text().contains(BLOCKED))?;
    }
    stage.guest.talk.answer("go")?;
    stage.until_ready("look")?;
    stage.guest.talk.check("blocked")?;
    stage.guest.talk.answer("go")?;
    live(stage, "opened")?;
    stage.until_ready("end")?;
    let lives = [("closed", "1"), ("set", "0"), ("blocked", "0"), ("opened", "0"), ("reset", "1")];
    was(stage, &lives)?;
    was(stage, &[("left", "0")])?;
    read(stage, &["opened-sum"])?;
    anew(stage)?;
    Ok("off blocks and outlives reboots, on again for the next VMM".to_owned())
}

/// The guest begins a life.
fn live(stage: &mut Stage<'_>, life: &str) -> Result<()> {
    stage.until_ready("boot")?;
    stage.guest.talk.answer(life)
}

/// The guest, which is at its end, leaves with its VMM. The next one finds bypass on.
fn anew(stage: &mut Stage<'_>) -> Result<()> {
    stage.guest.off(stage.deadline)?;
    stage.boot()?;
    live(stage, "anew")?;
    stage.close()?;
    was(stage, &[("anew", "1")])?;
    read(stage, &["anew-sum"])
}

/// What the guest read out of the configuration space, when.
fn was(stage: &Stage<'_>, values: &[(&str, &str)]) -> Result<()> {
    for (when, value) in values {
        let told = stage.guest.talk.fact(&format!("bypass.{when}"))?;
        compare::equal(&format!("bypass ({when})"), told, value)?;
    }
    Ok(())
}

/// The disk was read whole, and right.
fn read(stage: &Stage<'_>, checks: &[&str]) -> Result<()> {
    for check in checks {
        compare::checksum(stage.guest.talk.check(check)?, &stage.image())?;
    }
    Ok(())
}

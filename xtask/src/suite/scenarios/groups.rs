//! The guest finds the IOMMU, and behind it what should be there.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::setup::guest_kernel::Architecture;
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{ARM_FIRST, Arch, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "groups",
    about: "groups, reserved regions and attach of two devices",
    script: include_str!("../../../../guest/scenarios/groups.sh"),
    guests: ARM_FIRST,
    arch: Arch::SmmuV3,
    set: Set { disks: &[16], engines: 1, ..BARE },
    limit: Duration::from_secs(180),
    play,
};

/// How the guest is told what is behind the IOMMU, and the window of interrupt messages there, which no
/// mapping may cover: x86's (Intel SDM vol. 3, 11.11), or the ITS of QEMU's `virt`.
const fn told(guest: Architecture) -> (&'static str, &'static str) {
    match guest {
        Architecture::Amd64 => ("acpi", "0x00000000fee00000 0x00000000feefffff msi"),
        Architecture::Arm64 => ("device-tree", "0x0000000008080000 0x000000000809ffff msi"),
    }
}

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let (topology, window) = told(stage.architecture());
    let talk = &stage.guest.talk;
    compare::equal("the topology", talk.fact("topology")?, topology)?;
    let mut devices = Vec::new();
    for group in ["0", "1"] {
        devices.push(talk.fact(&format!("group.{group}"))?.to_owned());
        let regions = format!("reserved.{group}");
        if !talk.facts(&regions).contains(&window) {
            return Err(Error::Wrong(format!("group {group} shows no MSI window")));
        }
    }
    devices.sort();
    if devices != ["0000:00:03.0 DMA-FQ", "0000:00:04.0 DMA-FQ"] {
        return Err(Error::Wrong(format!("the groups are {devices:?}")));
    }
    counters.at_least("attach", 2)?;
    counters.at_least("probe", 2)?;
    let log = stage.daemon_log();
    let negotiated = log.lines().find(|line| line.contains("a driver starts"));
    negotiated
        .ok_or_else(|| Error::Wrong("the daemon does not tell what was negotiated".to_owned()))?;
    Ok(devices.join(", "))
}

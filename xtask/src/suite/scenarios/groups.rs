//! The guest finds the IOMMU, and behind it what should be there.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::stage::{BARE, Set, Stage};
use crate::suite::{Arch, NEWEST_FIRST, Scenario};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "groups",
    about: "groups, reserved regions and attach of two devices",
    script: include_str!("../../../../guest/scenarios/groups.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { disk_mib: Some(16), engine: true, ..BARE },
    limit: Duration::from_secs(90),
    play,
};

/// The window of interrupt messages on x86 (Intel SDM vol. 3, 11.11), which no mapping may cover.
const MSI_WINDOW: &str = "0x00000000fee00000 0x00000000feefffff msi";

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    let mut devices = Vec::new();
    for group in ["0", "1"] {
        devices.push(talk.fact(&format!("group.{group}"))?.to_owned());
        let regions = format!("reserved.{group}");
        if !talk.facts(&regions).contains(&MSI_WINDOW) {
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

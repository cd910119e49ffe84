//! Four processors that map and unmap at once, each buffer unmapped as it comes back.

use std::time::Duration;

use crate::error::Result;
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "four-cpus",
    about: "4 processors, a disk with 4 queues, strict, a user-space driver beside",
    script: include_str!("../../../../guest/scenarios/four-cpus.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { append: "iommu.strict=1", cpus: 4, disks: &[16], queues: 4, engines: 1, ..BARE },
    limit: Duration::from_secs(400),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    compare::equal("the processors", talk.fact("cpus")?, "4")?;
    compare::equal("the disk's queues", talk.fact("queues")?, "4")?;
    let sum = compare::checksum(talk.check("sum")?, &stage.image())?;
    for check in ["copy", "unmapped", "pairs"] {
        talk.check(check)?;
    }
    counters.at_least("unmap", 200)?;
    Ok(format!("checksum {sum} on both sides, {} unmaps", counters.get("unmap")?))
}

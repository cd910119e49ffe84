//! Two devices in two groups: neither notices what becomes of the other's domains.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::parts::DISK_SEED;
use crate::suite::set::{BARE, DISKS, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, OLDER_FIRST, Scenario, compare};

const DISK_MIB: u64 = 128;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "two-disks",
    about: "two disks in two groups, one rebound under the other's I/O",
    script: include_str!("../../../../guest/scenarios/two-disks.sh"),
    guests: OLDER_FIRST,
    arch: Arch::Vtd,
    set: Set { disks: &[DISK_MIB, DISK_MIB], ..BARE },
    limit: Duration::from_secs(400),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    let groups = [talk.fact("group.first")?, talk.fact("group.second")?];
    let [first, second] = groups;
    if first == second || !groups.iter().all(|group| group.ends_with(" DMA-FQ")) {
        return Err(Error::Wrong(format!("the groups are {groups:?}")));
    }
    let part = (DISK_MIB << 20) / 4;
    for ((seat, seed), name) in DISKS.iter().zip(DISK_SEED..).zip(["first", "second"]) {
        let image = stage.image_of(seat);
        compare::checksum(talk.check(&format!("{name}.sum"))?, &image)?;
        compare::content(&image, seed, part..4 * part)?;
    }
    compare::equal("faults", "0", &counters.get("faults")?.to_string())?;
    Ok(format!("groups {} and {}", first, second))
}

//! A program in the guest drives the IOMMU itself, with auxiliary domains and bound tables, and has two
//! DMA engines do what the sequences of the extension ask for.

use std::time::Duration;

use viommu_guest::sequences::SEQUENCES;

use crate::error::{Error, Result};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario};
use crate::ui::note;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "aux",
    about: "auxiliary domains: each sequence of the extension, from inside the guest",
    script: include_str!("../../../../guest/scenarios/aux.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::Vtd,
    set: Set { engines: 2, append: "viommu.load=later", ..BARE },
    limit: Duration::from_secs(180),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    stage.close()?;
    let talk = &stage.guest.talk;
    talk.check("features")?;
    for sequence in SEQUENCES {
        let seen = talk.check(&format!("sequence-{}", sequence.number))?;
        note(format_args!("sequence {}: {}: ok, {seen}", sequence.number, sequence.title));
    }
    talk.check("pinned")?;
    took_the_extension(&stage.daemon_log())?;
    Ok(format!("{} sequences, tables {}", SEQUENCES.len(), talk.fact("tables")?))
}

/// The daemon saw a driver that took the extension: it was not passed by on the way through QEMU.
fn took_the_extension(daemon: &str) -> Result<()> {
    let taken = daemon.lines().find_map(|line| line.split_once("a driver starts; driver: "));
    let taken = taken.and_then(|(_, features)| features.split(';').next());
    match taken {
        Some(features) if features.contains("AUX") && features.contains("BIND") => Ok(()),
        other => Err(Error::Wrong(format!("the driver took {other:?}"))),
    }
}

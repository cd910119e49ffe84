//! Drivers come and go: the kernel's own on the disk, one in user space on the DMA engine.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, NEWEST_FIRST, Scenario, compare};

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "rebind",
    about: "drivers unbound and bound again; domains end without a DETACH",
    script: include_str!("../../../../guest/scenarios/rebind.sh"),
    guests: NEWEST_FIRST,
    arch: Arch::SmmuV3,
    set: Set { disks: &[32], engines: 1, ..BARE },
    limit: Duration::from_secs(400),
    play,
};

/// How often the drivers change; the script counts as far.
const ROUNDS: u64 = 4;

/// Mappings that each visit of user space leaves behind (`LEFT` of `vfio-dma`).
const LEFT: u64 = 256;

/// Table pages more than after the first round: lazy unmaps leave some tables a little longer.
const SLACK_PAGES: u64 = 8;

/// What the daemon holds after a round.
#[derive(Debug, Clone, Copy)]
struct Held {
    domains: u64,
    table_pages: u64,
    /// Mappings that ended without an UNMAP of their own.
    ended: u64,
}

impl Held {
    fn now(stage: &mut Stage<'_>) -> Result<Self> {
        stage.until_ready("round")?;
        let now = stage.counters_now()?;
        let ended = now.get("map")?.saturating_sub(now.get("unmap")? + now.get("mappings")?);
        stage.guest.talk.answer("go")?;
        Ok(Self { domains: now.get("domains")?, table_pages: now.get("table_pages")?, ended })
    }

    /// Whether nothing is left of the `rounds` that came after `first`.
    fn is_no_more_than(&self, first: &Self, rounds: u64) -> bool {
        self.domains == first.domains
            && self.table_pages <= first.table_pages + SLACK_PAGES
            && self.ended >= first.ended + rounds * LEFT
    }
}

fn play(stage: &mut Stage<'_>) -> Result<String> {
    let first = Held::now(stage)?;
    for round in 1..ROUNDS {
        let held = Held::now(stage)?;
        if !held.is_no_more_than(&first, round) {
            return Err(Error::Wrong(format!("after round {round}: {held:?}, but {first:?}")));
        }
    }
    stage.close()?;
    let counters = stage.counters()?;
    let talk = &stage.guest.talk;
    for round in 0..ROUNDS {
        compare::checksum(talk.check(&format!("sum.{round}"))?, &stage.image())?;
        talk.check(&format!("user.{round}"))?;
    }
    // each visit of user space attaches the engine elsewhere and back
    counters.at_least("attach", 2 + 2 * ROUNDS)?;
    compare::equal("detaches", "0", &counters.get("detach")?.to_string())?;
    Ok(format!("{ROUNDS} rounds, {} attaches, no detach", counters.get("attach")?))
}

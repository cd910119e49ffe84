//! The guest suite: scenarios, each one boot of a stock guest against the real daemon.

pub(crate) mod bench;
pub(crate) mod compare;
pub(crate) mod counters;
mod list;
mod parts;
mod run;
mod scenarios;
pub(crate) mod set;
pub(crate) mod stage;
pub(crate) mod tools;
mod topology;

pub(crate) use list::list;
pub(crate) use run::{Outcome, Selection, fresh, run};
pub(crate) use scenarios::SCENARIOS;

use std::time::Duration;

use crate::error::Result;
use crate::setup::guest_kernel::{ARM64, NEWEST};
use set::Set;
use stage::Stage;

/// One boot and what it is to show.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Scenario {
    /// Its name; the guest's half is the script of that name in `guest/scenarios`.
    pub(crate) name: &'static str,
    /// What it shows, in a few words.
    pub(crate) about: &'static str,
    /// The guest's half.
    pub(crate) script: &'static str,
    /// The guests that it runs in; the first when each scenario runs once.
    pub(crate) guests: &'static [&'static str],
    /// The structures that the daemon keeps when the scenario runs once.
    pub(crate) arch: Arch,
    /// What stands around the guest.
    pub(crate) set: Set,
    /// How long it may take; a device that hangs is silent, so every run has an end.
    pub(crate) limit: Duration,
    /// The host's half; what it returns is shown beside the verdict.
    pub(crate) play: fn(&mut Stage<'_>) -> Result<String>,
}

/// Which structures the daemon keeps and the device processes walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    /// VT-d's, in scalable mode.
    Vtd,
    /// The Arm SMMUv3's.
    #[value(name = "smmuv3")]
    SmmuV3,
}

impl Arch {
    /// As the daemon's `--arch` takes it.
    pub(crate) const fn option(self) -> &'static str {
        match self {
            Self::Vtd => "vtd",
            Self::SmmuV3 => "smmuv3",
        }
    }
}

/// The guests of a scenario for those that have no driver for the IOMMU.
const IGNORANT: &[&str] = &["6.1"];

/// The guests of a scenario that runs in all, and once in the newest.
const NEWEST_FIRST: &[&str] = &[NEWEST, "6.12", ARM64];

/// The guests of a scenario that runs in all, and once in an older one.
const OLDER_FIRST: &[&str] = &["6.12", NEWEST, ARM64];

/// The guests of a scenario that runs in all, and once on Arm.
const ARM_FIRST: &[&str] = &[ARM64, NEWEST, "6.12"];

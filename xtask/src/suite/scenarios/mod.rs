//! The scenarios; the guest's halves are in `guest/scenarios`.

mod disk;
mod disk_killed;
mod groups;
mod passthrough;
mod pause;
mod plain;
mod reboot;
mod vfio;

use super::Scenario;

/// All of them, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    plain::SCENARIO,
    groups::SCENARIO,
    disk::SCENARIO,
    vfio::SCENARIO,
    passthrough::SCENARIO,
    pause::SCENARIO,
    reboot::SCENARIO,
    disk_killed::SCENARIO,
];

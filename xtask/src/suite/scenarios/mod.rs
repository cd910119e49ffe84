//! The scenarios; the guest's halves are in `guest/scenarios`.

mod disk;
mod disk_killed;
mod groups;
mod ignored;
mod passthrough;
mod pause;
mod plain;
mod rebind;
mod reboot;
mod second_vm;
mod strict;
mod vfio;

use super::Scenario;

/// All of them, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    plain::SCENARIO,
    groups::SCENARIO,
    disk::SCENARIO,
    strict::SCENARIO,
    vfio::SCENARIO,
    passthrough::SCENARIO,
    pause::SCENARIO,
    reboot::SCENARIO,
    rebind::SCENARIO,
    second_vm::SCENARIO,
    disk_killed::SCENARIO,
    ignored::SCENARIO,
];

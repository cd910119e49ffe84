//! The scenarios; the guest's halves are in `guest/scenarios`.

mod aux;
mod bypass;
mod daemon_killed;
mod disk;
mod disk_killed;
mod four_cpus;
mod groups;
mod ignored;
mod memory;
mod passthrough;
mod pause;
mod plain;
mod rebind;
mod reboot;
mod second_vm;
mod strict;
mod two_disks;
mod vfio;

use super::Scenario;

/// All of them, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[
    plain::SCENARIO,
    groups::SCENARIO,
    disk::SCENARIO,
    strict::SCENARIO,
    vfio::SCENARIO,
    aux::SCENARIO,
    passthrough::SCENARIO,
    memory::SCENARIO,
    two_disks::SCENARIO,
    four_cpus::SCENARIO,
    pause::SCENARIO,
    reboot::SCENARIO,
    bypass::SCENARIO,
    bypass::UNATTACHED,
    rebind::SCENARIO,
    second_vm::SCENARIO,
    disk_killed::SCENARIO,
    daemon_killed::SCENARIO,
    ignored::SCENARIO,
];

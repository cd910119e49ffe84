//! The scenarios; the guest's halves are in `guest/scenarios`.

mod disk;
mod groups;
mod plain;

use super::Scenario;

/// All of them, in the order in which they run.
pub(crate) const SCENARIOS: &[Scenario] = &[plain::SCENARIO, groups::SCENARIO, disk::SCENARIO];

//! What a hub is made of.

use std::time::Duration;

use viommu_pgtable::PhysAddr;

use crate::abi::{Arch, DEFAULT_TABLE_BASE};

/// What to do about a device process that a drain has waited for long enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StuckPolicy {
    /// End it, and wait until it is gone: after the drain no access through the old happens.
    Kill,
    /// Refuse it from now on and go on without the guarantee.
    Disconnect,
}

/// What a hub is made of.
#[derive(Debug, Clone, Copy)]
pub struct HubConfig {
    /// Whose structures the region holds.
    pub arch: Arch,
    /// Address of the region's first byte; a multiple of 4096.
    pub table_base: PhysAddr,
    /// Bytes of the region; a multiple of 4096. It is sparse: what is not used costs nothing.
    pub table_bytes: u64,
    /// The longest that a drain waits for a device process.
    pub stuck: Duration,
    /// What it does then.
    pub policy: StuckPolicy,
}

impl Default for HubConfig {
    /// VT-d tables of up to 1 GiB at 2^51; 1 s; kill.
    fn default() -> Self {
        Self {
            arch: Arch::Vtd,
            table_base: PhysAddr::new(DEFAULT_TABLE_BASE),
            table_bytes: 1 << 30,
            stuck: Duration::from_secs(1),
            policy: StuckPolicy::Kill,
        }
    }
}

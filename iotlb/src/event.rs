//! What a hub tells: single events, and sums.

use std::time::Duration;

use viommu_pasid::EndpointId;

use crate::fault::FaultRecord;

/// What happened at a device's end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceEvent {
    /// A device process connected.
    Connected {
        /// The endpoint it serves.
        endpoint: EndpointId,
    },
    /// A device process is gone.
    Disconnected {
        /// The endpoint it served.
        endpoint: EndpointId,
    },
    /// The endpoint's function was reset and does no DMA until it starts. The device waits for an
    /// answer, which the next [`Hub::drain`](crate::Hub::drain) sends: act first.
    FunctionReset {
        /// Whose function.
        endpoint: EndpointId,
    },
    /// The endpoint's function is about to do DMA again. The device waits for an answer, as above.
    FunctionStarted {
        /// Whose function.
        endpoint: EndpointId,
    },
    /// An access was refused.
    Fault {
        /// Whose access.
        endpoint: EndpointId,
        /// What the device process says about it.
        record: FaultRecord,
    },
}

/// What a hub has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Drains that began a new epoch.
    pub drains: u64,
    /// Of those, drains that had to wait for a device process.
    pub waits: u64,
    /// The longest.
    pub longest_drain: Duration,
    /// Device processes killed because they were stuck.
    pub killed: u64,
    /// Device processes cut off because they were stuck: the guarantee did not hold for them.
    pub cut_off: u64,
    /// Device processes greeted.
    pub connects: u64,
    /// Device processes refused: version, limit, cut off.
    pub refused: u64,
    /// Fault records taken.
    pub faults: u64,
    /// Fault records that made no sense.
    pub bad_faults: u64,
}

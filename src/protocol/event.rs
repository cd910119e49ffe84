//! What the device reports on its event queue.

use viommu_pasid::EndpointId;
use viommu_pgtable::{Access, Iova};
use zerocopy::little_endian::{U32, U64};

use super::wire::Fault;

const FLAG_READ: u32 = 1 << 0;
const FLAG_WRITE: u32 = 1 << 1;
const FLAG_ADDRESS: u32 = 1 << 8;

/// Why an access was refused (virtio 1.4, 5.13.6.9).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultReason {
    /// None of the others.
    Unknown,
    /// The endpoint is attached to no domain.
    Domain,
    /// Nothing is mapped there, or not for this access.
    Mapping,
}

/// A refused access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Event {
    /// Why.
    pub reason: FaultReason,
    /// What the access tried; only READ and WRITE have a flag in the report.
    pub access: Access,
    /// Whose access.
    pub endpoint: EndpointId,
    /// Where, if known (E2).
    pub address: Option<Iova>,
}

impl Event {
    /// Length of a report, bytes. A shorter buffer gets none (E3).
    pub const BYTES: usize = size_of::<Fault>();

    /// The report.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let reason = match self.reason {
            FaultReason::Unknown => 0,
            FaultReason::Domain => 1,
            FaultReason::Mapping => 2,
        };
        let mut flags = 0;
        for (access, flag) in [(Access::READ, FLAG_READ), (Access::WRITE, FLAG_WRITE)] {
            if self.access.contains(access) {
                flags |= flag;
            }
        }
        if self.address.is_some() {
            flags |= FLAG_ADDRESS;
        }
        zerocopy::transmute!(Fault {
            reason,
            reserved: [0; 3],
            flags: U32::new(flags),
            endpoint: U32::new(self.endpoint.raw()),
            reserved1: U32::new(0),
            address: U64::new(self.address.map_or(0, Iova::raw)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_of_an_unmapped_address_is_reported_with_all_it_knows() {
        let event = Event {
            reason: FaultReason::Mapping,
            access: Access::READ | Access::PRIVILEGED,
            endpoint: EndpointId::new(0x20),
            address: Some(Iova::new(0x3_0000_0000)),
        };
        let expected = [2, 0, 0, 0, 1, 1, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0];
        assert_eq!(event.encode(), expected);
    }

    #[test]
    fn an_unknown_address_is_zero_and_has_no_flag() {
        let event = Event {
            reason: FaultReason::Domain,
            access: Access::WRITE,
            endpoint: EndpointId::new(0x1_0008),
            address: None,
        };
        let mut expected = [0; 24];
        expected[..12].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 8, 0, 1, 0]);
        assert_eq!(event.encode(), expected);
    }
}

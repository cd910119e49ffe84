//! What the device reports on its event queue.

use viommu_pasid::{EndpointId, Pasid};
use viommu_pgtable::{Access, Iova};
use zerocopy::little_endian::{U32, U64};

use super::Features;
use super::wire::Fault;

const FLAG_READ: u32 = 1 << 0;
const FLAG_WRITE: u32 = 1 << 1;
const FLAG_ADDRESS: u32 = 1 << 8;
/// The extension's (`docs/aux-domains.md`, 6).
const FLAG_PASID: u32 = 1 << 9;
const FLAG_SECOND_LEVEL: u32 = 1 << 12;

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
    /// The PASID that it carried.
    pub pasid: Option<Pasid>,
    /// Where, if known (E2).
    pub address: Option<Iova>,
    /// A first level had let it pass, or was itself out of reach: the second level refused.
    pub second_level: bool,
}

impl Event {
    /// Length of a report, bytes. A shorter buffer gets none (E3).
    pub const BYTES: usize = size_of::<Fault>();

    /// What a driver with these features is told: without AUX, nothing that only the extension
    /// defines (E1).
    #[must_use]
    pub const fn known_to(self, features: Features) -> Self {
        if features.contains(Features::AUX) {
            return self;
        }
        Self { pasid: None, second_level: false, ..self }
    }

    /// The report.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        let reason = match self.reason {
            FaultReason::Unknown => 0,
            FaultReason::Domain => 1,
            FaultReason::Mapping => 2,
        };
        let flags = [
            (self.access.contains(Access::READ), FLAG_READ),
            (self.access.contains(Access::WRITE), FLAG_WRITE),
            (self.address.is_some(), FLAG_ADDRESS),
            (self.pasid.is_some(), FLAG_PASID),
            (self.second_level, FLAG_SECOND_LEVEL),
        ];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |flags, (_, flag)| flags | flag);
        zerocopy::transmute!(Fault {
            reason,
            reserved: [0; 3],
            flags: U32::new(flags),
            endpoint: U32::new(self.endpoint.raw()),
            pasid: U32::new(self.pasid.map_or(0, Pasid::raw)),
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
            pasid: None,
            address: Some(Iova::new(0x3_0000_0000)),
            second_level: false,
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
            pasid: None,
            address: None,
            second_level: false,
        };
        let mut expected = [0; 24];
        expected[..12].copy_from_slice(&[1, 0, 0, 0, 2, 0, 0, 0, 8, 0, 1, 0]);
        assert_eq!(event.encode(), expected);
    }

    #[test]
    fn pasid_and_second_level_are_told_to_drivers_of_the_extension_only() {
        let event = Event {
            reason: FaultReason::Mapping,
            access: Access::WRITE,
            endpoint: EndpointId::new(0x10),
            pasid: Pasid::new(0x1_2345),
            address: Some(Iova::new(0x1000)),
            second_level: true,
        };
        let mut expected = [0; 24];
        expected[..8].copy_from_slice(&[2, 0, 0, 0, 2, 0b1_0011, 0, 0]);
        expected[8..18].copy_from_slice(&[0x10, 0, 0, 0, 0x45, 0x23, 1, 0, 0, 0x10]);
        assert_eq!(event.known_to(Features::AUX).encode(), expected);
        let plain = Event { pasid: None, second_level: false, ..event };
        assert_eq!(event.known_to(Features::STANDARD), plain);
    }
}

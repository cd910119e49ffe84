//! Fault events (virtio 1.4, 5.13.6.9; their PASID: `docs/aux-domains.md`).

use crate::bytes::{u8_at, u32_at, u64_at};

/// Bytes of a fault event.
const FAULT_BYTES: usize = 24;

const READ: u32 = 1 << 0;
const WRITE: u32 = 1 << 1;
const ADDRESS: u32 = 1 << 8;
const PASID: u32 = 1 << 9;
const SECOND_LEVEL: u32 = 1 << 12;

/// An access that was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// 0 unknown, 1 attached to no domain, 2 no mapping allows it.
    pub reason: u8,
    /// Whose access.
    pub endpoint: u32,
    /// Its tag, if it had one.
    pub pasid: Option<u32>,
    /// Its address, if it is known.
    pub address: Option<u64>,
    /// It was a read.
    pub read: bool,
    /// It was a write.
    pub write: bool,
    /// The second level refused.
    pub second_level: bool,
}

impl Fault {
    /// The event in `bytes`; `None` if they are none, or bytes that are not valid are not zero.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let flags = u32_at(bytes, 4);
        let pasid = u32_at(bytes, 12);
        let has = |flag: u32| flags & flag != 0;
        let known = READ | WRITE | 1 << 2 | ADDRESS | PASID | SECOND_LEVEL;
        let whole = bytes.len() == FAULT_BYTES && u32_at(bytes, 0) >> 8 == 0;
        if !whole || flags & !known != 0 || (pasid != 0 && !has(PASID)) {
            return None;
        }
        Some(Self {
            reason: u8_at(bytes, 0),
            endpoint: u32_at(bytes, 8),
            pasid: has(PASID).then_some(pasid),
            address: has(ADDRESS).then_some(u64_at(bytes, 16)),
            read: has(READ),
            write: has(WRITE),
            second_level: has(SECOND_LEVEL),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(reason: u32, flags: u32, pasid: u32) -> Vec<u8> {
        let words = [reason, flags, 0x20, pasid, 0x1000, 0];
        words.map(u32::to_le_bytes).concat()
    }

    #[test]
    fn a_fault_has_the_pasid_only_where_it_is_valid() {
        let tagged = Fault {
            reason: 2,
            endpoint: 0x20,
            pasid: Some(7),
            address: Some(0x1000),
            read: false,
            write: true,
            second_level: true,
        };
        assert_eq!(Fault::decode(&event(2, 0x1302, 7)), Some(tagged));
        let untagged = Fault { pasid: None, second_level: false, ..tagged };
        assert_eq!(Fault::decode(&event(2, 0x102, 0)), Some(untagged));
    }

    #[test]
    fn bytes_that_should_be_zero_and_are_not_make_no_event() {
        assert_eq!(Fault::decode(&event(2, 0x102, 7)), None);
        assert_eq!(Fault::decode(&event(0x102, 0x102, 0)), None);
        assert_eq!(Fault::decode(&event(2, 1 << 31, 0)), None);
        assert_eq!(Fault::decode(&event(2, 0x102, 0)[..23]), None);
    }
}

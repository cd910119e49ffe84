//! Feature bits.

use bitflags::bitflags;

bitflags! {
    /// Feature bits that the device offers and a driver accepts (virtio 1.4, 6 and 5.13.3).
    ///
    /// Bit 3, F_BYPASS, is left out: a new device offers BYPASS_CONFIG in its place (F2, F3). Bits
    /// from 50 on are the extension's (`docs/aux-domains.md`); its bit 52, page requests, is left
    /// out too: nothing here serves them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct Features: u64 {
        /// The configuration's `input_range` is valid.
        const INPUT_RANGE = 1 << 0;
        /// The configuration's `domain_range` is valid.
        const DOMAIN_RANGE = 1 << 1;
        /// MAP and UNMAP.
        const MAP_UNMAP = 1 << 2;
        /// PROBE.
        const PROBE = 1 << 4;
        /// The MMIO flag of MAP.
        const MMIO = 1 << 5;
        /// The configuration's `bypass`, and the BYPASS flag of ATTACH.
        const BYPASS_CONFIG = 1 << 6;
        /// A descriptor may lead to a table of descriptors.
        const RING_INDIRECT_DESC = 1 << 28;
        /// `used_event` and `avail_event`.
        const RING_EVENT_IDX = 1 << 29;
        /// Not a legacy device.
        const VERSION_1 = 1 << 32;
        /// Domains behind PASIDs: AUX_ENABLE to GET_ATTR, and PASIDs in fault reports.
        const AUX = 1 << 50;
        /// The guest's own first-level tables: BIND_TABLE, UNBIND_TABLE, INVALIDATE.
        const BIND_TABLE = 1 << 51;
    }
}

impl Features {
    /// What each device offers.
    pub const STANDARD: Self = Self::all().difference(Self::EXTENSION);
    /// What a device offers besides if one of its endpoints can make use of it.
    pub const EXTENSION: Self = Self::AUX.union(Self::BIND_TABLE);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_offer_has_no_bit_of_the_extension_and_not_the_superseded_bypass() {
        assert_eq!(Features::STANDARD.bits(), 0x1_3000_0077);
        assert_eq!(Features::STANDARD.bits() & 1 << 3, 0);
    }

    #[test]
    fn the_extension_has_the_numbers_that_its_specification_gives() {
        assert_eq!(Features::EXTENSION.bits(), 1 << 50 | 1 << 51);
    }
}

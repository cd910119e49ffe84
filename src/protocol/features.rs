//! Feature bits.

use bitflags::bitflags;

bitflags! {
    /// Feature bits that the device offers and a driver accepts (virtio 1.4, 6 and 5.13.3).
    ///
    /// Bit 3, F_BYPASS, is left out: a new device offers BYPASS_CONFIG in its place (F2, F3).
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
    }
}

impl Features {
    /// What the device offers.
    pub const OFFERED: Self = Self::all();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offer_has_the_standard_bits_and_not_the_superseded_bypass() {
        assert_eq!(Features::OFFERED.bits(), 0x1_3000_0077);
        assert_eq!(Features::OFFERED.bits() & 1 << 3, 0);
    }
}

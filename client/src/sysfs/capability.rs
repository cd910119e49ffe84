//! Where the parts of a virtio function on PCI are (virtio 1.4, 4.1.4).

use crate::bytes::{u8_at, u32_at};

/// The parts that a driver of this crate uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// VIRTIO_PCI_CAP_COMMON_CFG.
    Common,
    /// VIRTIO_PCI_CAP_NOTIFY_CFG.
    Notify,
    /// VIRTIO_PCI_CAP_DEVICE_CFG.
    Device,
}

impl Part {
    const fn number(self) -> u8 {
        match self {
            Self::Common => 1,
            Self::Notify => 2,
            Self::Device => 4,
        }
    }
}

/// A place in a BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Which BAR.
    pub(super) bar: u8,
    /// Where in it.
    pub(super) offset: u32,
    /// What follows the place: for [`Part::Notify`] the multiplier.
    pub(super) argument: u32,
}

/// Where the first capability's offset is, and the vendor's own capability.
const FIRST: usize = 0x34;
const VENDOR: u8 = 0x09;
/// As many capabilities as fit into the first 256 bytes.
const CAPABILITIES_MAX: usize = 48;

/// The place of `part` in a function with this configuration space; the first one that is told counts.
pub(super) fn find(config: &[u8], part: Part) -> Option<Place> {
    let mut at = usize::from(u8_at(config, FIRST));
    for _ in 0..CAPABILITIES_MAX {
        if at == 0 {
            return None;
        }
        if u8_at(config, at) == VENDOR && u8_at(config, at + 3) == part.number() {
            return Some(Place {
                bar: u8_at(config, at + 4),
                offset: u32_at(config, at + 8),
                argument: u32_at(config, at + 16),
            });
        }
        at = usize::from(u8_at(config, at + 1));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_found_behind_other_capabilities() {
        let mut config = [0; 256];
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x11, 0x50]);
        config[0x50..0x55].copy_from_slice(&[9, 0x70, 20, 2, 4]);
        config[0x59] = 0x30;
        config[0x60] = 4;
        config[0x70..0x75].copy_from_slice(&[9, 0, 16, 1, 1]);
        let notify = Place { bar: 4, offset: 0x3000, argument: 4 };
        assert_eq!(find(&config, Part::Notify), Some(notify));
        assert_eq!(find(&config, Part::Common).unwrap().bar, 1);
        assert_eq!(find(&config, Part::Device), None);
    }

    #[test]
    fn a_list_that_leads_to_itself_ends() {
        let mut config = [0; 256];
        config[0x34] = 0x40;
        config[0x40..0x42].copy_from_slice(&[0x11, 0x40]);
        assert_eq!(find(&config, Part::Common), None);
        assert_eq!(find(&[], Part::Common), None);
    }
}

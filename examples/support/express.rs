//! The capabilities of a PCI Express function that tags its DMA with PASIDs (PCIe 6.0, 7.5.3, 7.8.9,
//! 10.5.1).

use super::bytes::write_le;
use super::config_space::{ConfigSpace, LayoutError};

const EXPRESS: u8 = 0x10;
const ATS: u16 = 0x0f;
const PASID: u16 = 0x1b;

/// Capability version 2, an endpoint integrated into the root complex: it has no link.
const EXPRESS_FLAGS: u16 = 9 << 4 | 2;
/// Bytes of the capability's second version, without the header of two.
const EXPRESS_BYTES: usize = 0x3c - 2;
/// Role-based error reporting, which every function has to have.
const DEVICE_CAPABILITIES: u32 = 1 << 15;
/// End-to-end prefixes, one: what carries the PASID.
const DEVICE_CAPABILITIES_2: u32 = 1 << 21 | 1 << 22;

/// ATS: a queue of 32 invalidations (coded 0), requests aligned to pages.
const ATS_CAPABILITY: u16 = 1 << 5;
/// Enable, and the smallest translation unit.
const ATS_WRITABLE: u16 = 1 << 15 | 0x1f;

/// Where the width is in the PASID capability's first register.
const PASID_WIDTH_SHIFT: u16 = 8;
const PASID_ENABLE: u16 = 1;
/// The widest PASID that PCI Express has.
const PASID_BITS_MAX: u8 = 20;

/// Where a function's control of its PASIDs is.
#[derive(Debug, Clone, Copy)]
pub(super) struct PasidControl(usize);

impl PasidControl {
    /// True if software lets the function tag its DMA.
    pub(super) fn enabled(self, config: &ConfigSpace) -> bool {
        config.register(self.0) & PASID_ENABLE != 0
    }
}

/// Makes the function one of PCI Express, with PASIDs of `bits` bits and an ATS capability.
///
/// What ATS stands for is the private TLB of a reader, which the IOMMU invalidates by its epoch: the
/// capability's enable bit is kept and changes nothing.
///
/// # Errors
/// [`LayoutError`] if the width cannot be or there is no room.
pub(super) fn add_pasids(config: &mut ConfigSpace, bits: u8) -> Result<PasidControl, LayoutError> {
    if bits == 0 || bits > PASID_BITS_MAX {
        return Err(LayoutError::PasidBits { bits });
    }
    let mut body = [0; EXPRESS_BYTES];
    write_le(&mut body, 0, &EXPRESS_FLAGS.to_le_bytes());
    write_le(&mut body, 2, &DEVICE_CAPABILITIES.to_le_bytes());
    write_le(&mut body, 0x22, &DEVICE_CAPABILITIES_2.to_le_bytes());
    config.add_capability(EXPRESS, &body, &[])?;

    let register = u16::from(bits) << PASID_WIDTH_SHIFT;
    let [a, b] = register.to_le_bytes();
    let [c, d] = PASID_ENABLE.to_le_bytes();
    let pasid = config.add_extended_capability(PASID, &[a, b, 0, 0], &[0, 0, c, d])?;

    let [a, b] = ATS_CAPABILITY.to_le_bytes();
    let [c, d] = ATS_WRITABLE.to_le_bytes();
    config.add_extended_capability(ATS, &[a, b, 0, 0], &[0, 0, c, d])?;
    Ok(PasidControl(pasid + 6))
}

#[cfg(test)]
mod tests {
    use super::super::config_space::Identity;
    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace::new(&Identity {
            vendor: 0x1234,
            device: 0x5678,
            class: 0xff_00_00,
            revision: 0,
            subsystem_vendor: 0,
            subsystem: 0,
        })
    }

    fn read(config: &ConfigSpace, offset: u64) -> u32 {
        let mut data = [0; 4];
        config.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_function_with_pasids_says_how_wide_they_are_and_is_enabled_by_software() {
        let mut config = space();
        let control = add_pasids(&mut config, 20).unwrap();
        assert_eq!((read(&config, 0x40), read(&config, 0x64)), (0x0092_0010, 0x0060_0000));
        assert_eq!((read(&config, 0x100), read(&config, 0x104)), (0x1081_001b, 0x1400));
        assert_eq!((read(&config, 0x108), read(&config, 0x10c)), (0x0001_000f, 0x20));
        assert!(!control.enabled(&config));
        config.write(0x106, &[0xff, 0xff]);
        assert!(control.enabled(&config));
        assert_eq!(read(&config, 0x104), 0x0001_1400);
        config.reset();
        assert!(!control.enabled(&config));
    }

    #[test]
    fn pasids_of_no_bits_or_more_than_20_cannot_be() {
        for bits in [0, 21, 255] {
            let refused = add_pasids(&mut space(), bits).unwrap_err();
            assert_eq!(refused, LayoutError::PasidBits { bits });
        }
        add_pasids(&mut space(), 1).unwrap();
    }
}

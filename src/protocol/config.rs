//! The configuration space (virtio 1.4, 5.13.4).

use std::ops::RangeInclusive;

use viommu_pgtable::IovaRange;
use zerocopy::little_endian::{U32, U64};

use super::wire::Config;

/// Where `bypass` lies.
const BYPASS_AT: usize = 36;

/// What the configuration space says at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigSpace {
    /// Sizes of page that are good for a MAP; the lowest bit is the granule. Not 0 (C1).
    pub page_size_mask: u64,
    /// IOVAs that can be mapped.
    pub input: IovaRange,
    /// Numbers that a domain can have.
    pub domains: RangeInclusive<u32>,
    /// Bytes of `properties` that a PROBE needs.
    pub probe_size: u32,
    /// Whether the DMA of an endpoint that is attached to nothing goes where it says.
    pub bypass: bool,
}

/// A write to the configuration space that changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConfigWriteError {
    /// Not inside the space.
    #[error(
        "{bytes} bytes at {offset}, but the configuration space has {len}",
        len = ConfigSpace::BYTES
    )]
    OutOfBounds {
        /// First byte.
        offset: u32,
        /// How many.
        bytes: usize,
    },
    /// `bypass` can be 0 or 1 (C4).
    #[error("bypass can be 0 or 1, not {0}")]
    Bypass(u8),
}

impl ConfigSpace {
    /// Length of the space, bytes.
    pub const BYTES: usize = size_of::<Config>();

    /// The whole space.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(Config {
            page_size_mask: U64::new(self.page_size_mask),
            input_start: U64::new(self.input.start().raw()),
            input_end: U64::new(self.input.last().raw()),
            domain_start: U32::new(*self.domains.start()),
            domain_end: U32::new(*self.domains.end()),
            probe_size: U32::new(self.probe_size),
            bypass: u8::from(self.bypass),
            reserved: [0; 3],
        })
    }

    /// Fills `bytes` from `offset` on. What lies past the space reads as zero.
    pub fn read(&self, offset: u32, bytes: &mut [u8]) {
        bytes.fill(0);
        let image = self.encode();
        let from = usize::try_from(offset).ok().and_then(|offset| image.get(offset..));
        for (to, from) in bytes.iter_mut().zip(from.into_iter().flatten()) {
            *to = *from;
        }
    }

    /// What a driver's write of `bytes` at `offset` does: the new value of `bypass`, or `None` if
    /// it stays as it is.
    ///
    /// All other fields are read-only: bytes for them are ignored. A VMM may send the whole space
    /// for each write of the guest's, and what the guest once tried to write comes back with it.
    /// `bypass` is ignored too unless BYPASS_CONFIG was `negotiated`.
    ///
    /// # Errors
    /// [`ConfigWriteError`]; nothing changes.
    pub fn write(
        &self,
        offset: u32,
        bytes: &[u8],
        negotiated: bool,
    ) -> Result<Option<bool>, ConfigWriteError> {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        if start.checked_add(bytes.len()).is_none_or(|end| end > Self::BYTES) {
            return Err(ConfigWriteError::OutOfBounds { offset, bytes: bytes.len() });
        }
        let written = BYPASS_AT.checked_sub(start).and_then(|at| bytes.get(at));
        let bypass = match written {
            None => return Ok(None),
            Some(_) if !negotiated => return Ok(None),
            Some(0) => false,
            Some(1) => true,
            Some(&other) => return Err(ConfigWriteError::Bypass(other)),
        };
        Ok((bypass != self.bypass).then_some(bypass))
    }
}

#[cfg(test)]
mod tests {
    use viommu_pgtable::Iova;

    use super::*;

    fn space() -> ConfigSpace {
        ConfigSpace {
            page_size_mask: 0x4020_1000,
            input: IovaRange::new(Iova::new(0x1000), Iova::new(0xffff_ffff_ffff)).unwrap(),
            domains: 2..=0xffff_fffe,
            probe_size: 512,
            bypass: true,
        }
    }

    const IMAGE: [u8; 40] = [
        0x00, 0x10, 0x20, 0x40, 0, 0, 0, 0, 0x00, 0x10, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xff, 0, 0, 2, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0, 2, 0, 0, 1, 0, 0, 0,
    ];

    #[test]
    fn the_image_is_laid_out_as_the_specification_says() {
        assert_eq!(space().encode(), IMAGE);
    }

    #[test]
    fn every_offset_and_size_reads_that_part_and_zeros_past_the_end() {
        for offset in 0..50_u32 {
            for len in 0..50 {
                let mut bytes = vec![0xaa; len];
                space().read(offset, &mut bytes);
                let at = |i: usize| IMAGE.get(offset as usize + i).copied().unwrap_or(0);
                assert_eq!(bytes, (0..len).map(at).collect::<Vec<_>>(), "{len} at {offset}");
            }
        }
        let mut far = [0xaa; 4];
        space().read(u32::MAX, &mut far);
        assert_eq!(far, [0; 4]);
    }

    #[test]
    fn a_write_of_the_bypass_byte_alone_or_within_the_whole_space_changes_it() {
        let mut whole = IMAGE;
        whole[36] = 0;
        assert_eq!(space().write(36, &[0], true), Ok(Some(false)));
        assert_eq!(space().write(0, &whole, true), Ok(Some(false)));
        assert_eq!(space().write(34, &[0, 0, 0, 0], true), Ok(Some(false)));
        assert_eq!(space().write(0, &IMAGE, true), Ok(None), "the same value is no change");
    }

    #[test]
    fn a_write_to_any_other_field_changes_nothing() {
        for at in (0..40).filter(|at| *at != 36) {
            assert_eq!(space().write(at, &[0x55], true), Ok(None), "byte {at}");
        }
        let mut scribbled = [0x55; 40];
        scribbled[36] = 0;
        assert_eq!(space().write(0, &scribbled, true), Ok(Some(false)));
    }

    #[test]
    fn a_bypass_that_is_neither_0_nor_1_is_refused() {
        for value in 2..=255 {
            assert_eq!(space().write(36, &[value], true), Err(ConfigWriteError::Bypass(value)));
        }
    }

    #[test]
    fn without_the_feature_a_write_of_bypass_changes_nothing() {
        assert_eq!(space().write(36, &[0], false), Ok(None));
        assert_eq!(space().write(36, &[7], false), Ok(None));
    }

    #[test]
    fn a_write_past_the_end_is_refused() {
        let refused = |offset, bytes| Err(ConfigWriteError::OutOfBounds { offset, bytes });
        assert_eq!(space().write(36, &[0; 5], true), refused(36, 5));
        assert_eq!(space().write(u32::MAX, &[0], true), refused(u32::MAX, 1));
        assert_eq!(space().write(40, &[], true), Ok(None));
    }
}

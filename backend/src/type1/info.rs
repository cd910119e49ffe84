//! What a container says of its IOMMU (linux/vfio.h, `struct vfio_iommu_type1_info`).

use vfio_bindings::bindings::vfio::{
    VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL,
};
use viommu_pgtable::{Iova, IovaRange};

use super::sys::INFO_WORDS;

/// Where the structure has its mask of page sizes and the offset of its first capability, bytes.
const PAGE_SIZES_AT: usize = 8;
const FIRST_AT: usize = 16;
/// Where a capability has the offset of the next one, and where its own content starts, bytes.
const NEXT_AT: usize = 4;
const CONTENT_AT: usize = 8;
/// Where the ranges start in the capability that has them, bytes: behind their number.
const RANGES_AT: usize = 16;
/// Bytes of one range.
const RANGE_BYTES: usize = 16;
/// How many mappings a container takes if it does not say: the module's default.
const MAPPINGS: u32 = 65535;
/// Capabilities that are followed: each kernel has a handful, and a chain that leads round ends here.
const CAPABILITIES: usize = 32;

/// Said by the kernel, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Info {
    /// Sizes of pages, one bit each.
    pub(super) page_size_mask: u64,
    /// IOVAs that can be mapped, in ascending order; none if it does not say.
    pub(super) usable: Vec<IovaRange>,
    /// Mappings that it takes.
    pub(super) mappings: u32,
}

impl Info {
    /// Takes what the kernel has written apart.
    pub(super) fn parse(words: &[u64; INFO_WORDS]) -> Self {
        let bytes: Vec<u8> = words.iter().copied().flat_map(u64::to_ne_bytes).collect();
        let mut info = Self {
            page_size_mask: long(&bytes, PAGE_SIZES_AT).unwrap_or(0),
            usable: Vec::new(),
            mappings: MAPPINGS,
        };
        let mut at = offset(&bytes, FIRST_AT);
        for _ in 0..CAPABILITIES {
            let Some(here) = at.filter(|at| *at != 0) else { break };
            info.note(&bytes, here);
            at = offset(&bytes, here.saturating_add(NEXT_AT));
        }
        info
    }

    fn note(&mut self, bytes: &[u8], at: usize) {
        let content = at.saturating_add(CONTENT_AT);
        match bytes.get(at..).and_then(<[u8]>::first_chunk).map(|id| u16::from_ne_bytes(*id)) {
            Some(id) if u32::from(id) == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE => {
                let count = offset(bytes, content).unwrap_or(0);
                let ranges = bytes.get(at.saturating_add(RANGES_AT)..).unwrap_or_default();
                let ranges = ranges.chunks_exact(RANGE_BYTES).take(count);
                self.usable = ranges.filter_map(range).collect();
            }
            Some(id) if u32::from(id) == VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL => {
                self.mappings = word(bytes, content).unwrap_or(MAPPINGS);
            }
            _ => {}
        }
    }
}

fn range(bytes: &[u8]) -> Option<IovaRange> {
    IovaRange::new(Iova::new(long(bytes, 0)?), Iova::new(long(bytes, 8)?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_ne_bytes(*word))
}

fn offset(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(word(bytes, at)?).ok()
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|long| u64::from_ne_bytes(*long))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(bytes: &[u8]) -> Info {
        let mut words = [0; INFO_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(8)) {
            let mut whole = [0; 8];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u64::from_ne_bytes(whole);
        }
        Info::parse(&words)
    }

    fn head(first: u32) -> Vec<u8> {
        let words = [4096_u32, 3, 0x4020_1000, 0, first, 0];
        words.into_iter().flat_map(u32::to_ne_bytes).collect()
    }

    #[test]
    fn a_kernel_without_capabilities_has_the_default_limit_and_says_no_ranges() {
        let said = info(&head(0));
        let expected = Info { page_size_mask: 0x4020_1000, usable: vec![], mappings: MAPPINGS };
        assert_eq!(said, expected);
    }

    #[test]
    fn ranges_and_the_limit_are_found_along_the_chain() {
        let mut bytes = head(24);
        bytes.extend([3_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        bytes.extend([40_u32, 7, 0].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend([1_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        bytes.extend([0_u32, 2, 0].into_iter().flat_map(u32::to_ne_bytes));
        bytes.extend([0, 0xfff, 0x2000, 0xffff].into_iter().flat_map(u64::to_ne_bytes));
        let range = |first, last| IovaRange::new(Iova::new(first), Iova::new(last)).unwrap();
        let expected = Info {
            page_size_mask: 0x4020_1000,
            usable: vec![range(0, 0xfff), range(0x2000, 0xffff)],
            mappings: 7,
        };
        assert_eq!(info(&bytes), expected);
    }

    #[test]
    fn a_chain_that_leads_round_ends() {
        let mut bytes = head(24);
        bytes.extend([9_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        bytes.extend(24_u32.to_ne_bytes());
        assert_eq!(info(&bytes).mappings, MAPPINGS);
    }
}

//! A reader's private TLB: direct-mapped, valid for one epoch.

use std::cell::Cell;

use viommu_pgtable::Access;
use zerocopy::FromZeros;

use crate::path::Leaf;

/// Entries of a reader's TLB: 64 Ki, 2 MiB of address space, of which the touched pages cost
/// memory. As many 4 KiB mappings in a row, 256 MiB of IOVAs, fit without a conflict.
const ENTRIES: usize = 1 << 16;

/// One translation. All zero is no translation: generations begin with 1.
#[derive(Debug, Clone, Copy, FromZeros)]
#[repr(C, align(32))]
struct Entry {
    /// IOVA shifted right by the page's size.
    page: u64,
    /// Generation in bits 63:32, page size in bits 31:24, tag below.
    stamp: u64,
    /// Address of the page that it leads to.
    oa: u64,
    /// [`Access`] bits.
    access: u64,
}

/// The translations that a reader remembers.
pub(crate) struct Tlb {
    entries: Box<[Cell<Entry>]>,
    /// What the entries of the current epoch carry.
    generation: Cell<u32>,
    /// Page sizes present in this generation, one bit each: what a lookup has to try.
    sizes: Cell<u64>,
}

const fn stamp(generation: u32, size_lg2: u32, tag: u32) -> u64 {
    (generation as u64) << 32 | (size_lg2 as u64) << 24 | tag as u64
}

impl Tlb {
    pub(crate) fn new() -> Self {
        // zeroed by the kernel page by page, when touched
        let entries = <[Cell<Entry>]>::new_box_zeroed_with_elems(ENTRIES).unwrap_or_default();
        Self { entries, generation: Cell::new(1), sizes: Cell::new(0) }
    }

    /// Neighbouring pages have neighbouring places; tags and sizes are spread.
    #[inline]
    fn place(&self, page: u64, size_lg2: u32, tag: u32) -> Option<&Cell<Entry>> {
        let spread = stamp(0, size_lg2, tag).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let index = (page ^ (page >> 16) ^ spread) & (ENTRIES as u64 - 1);
        self.entries.get(usize::try_from(index).ok()?)
    }

    /// Where `iova` leads for an access with tag `tag` (below 2^24) that does `access`.
    #[inline]
    pub(crate) fn find(&self, tag: u32, iova: u64, access: Access) -> Option<Leaf> {
        let mut sizes = self.sizes.get();
        while sizes != 0 {
            let size_lg2 = sizes.trailing_zeros();
            sizes &= sizes - 1;
            let page = iova >> size_lg2;
            let entry = self.place(page, size_lg2, tag)?.get();
            let wanted = stamp(self.generation.get(), size_lg2, tag);
            let missing = u64::from(access.bits()) & !entry.access;
            if entry.page == page && entry.stamp == wanted && missing == 0 {
                let within = iova & ((1 << size_lg2) - 1);
                let access = Access::from_bits_truncate(entry.access.to_le_bytes()[0]);
                return Some(Leaf { oa: entry.oa | within, size_lg2, access });
            }
        }
        None
    }

    /// Remembers that `iova` leads to `leaf`.
    #[inline]
    pub(crate) fn insert(&self, tag: u32, iova: u64, leaf: Leaf) {
        let size_lg2 = leaf.size_lg2;
        let page = iova >> size_lg2;
        if let Some(place) = self.place(page, size_lg2, tag) {
            place.set(Entry {
                page,
                stamp: stamp(self.generation.get(), size_lg2, tag),
                oa: leaf.oa & !((1 << size_lg2) - 1),
                access: u64::from(leaf.access.bits()),
            });
            self.sizes.set(self.sizes.get() | 1 << size_lg2);
        }
    }

    /// Forgets everything.
    pub(crate) fn flush(&self) {
        self.sizes.set(0);
        let next = self.generation.get().wrapping_add(1);
        if next == 0 {
            // after 2^32 flushes old generations come back
            for entry in &self.entries {
                entry.set(Entry::new_zeroed());
            }
        }
        self.generation.set(next.max(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn leaf(oa: u64, size_lg2: u32, access: Access) -> Leaf {
        Leaf { oa, size_lg2, access }
    }

    #[test]
    fn a_leaf_is_found_at_every_offset_of_its_page_and_nowhere_else() {
        let tlb = Tlb::new();
        tlb.insert(5, 0x40_1234, leaf(0x8000_1234, 21, Access::RW));
        let found = |tag, iova| tlb.find(tag, iova, Access::READ).map(|leaf| leaf.oa);
        assert_eq!(found(5, 0x40_0000), Some(0x8000_0000));
        assert_eq!(found(5, 0x5f_ffff), Some(0x801f_ffff));
        for (tag, iova) in [(5, 0x3f_ffff), (5, 0x60_0000), (4, 0x40_0000), (0, 0x40_0000)] {
            assert_eq!(found(tag, iova), None, "{tag} {iova:#x}");
        }
    }

    #[test]
    fn pages_of_different_sizes_are_found_side_by_side() {
        let tlb = Tlb::new();
        tlb.insert(0, 0x1000, leaf(0xa000, 12, Access::RW));
        tlb.insert(0, 0x4000_0000, leaf(0, 30, Access::RW));
        assert_eq!(tlb.find(0, 0x1008, Access::READ), Some(leaf(0xa008, 12, Access::RW)));
        let far = tlb.find(0, 0x7fff_fff8, Access::READ);
        assert_eq!(far, Some(leaf(0x3fff_fff8, 30, Access::RW)));
    }

    #[test]
    fn what_is_not_allowed_is_no_hit() {
        let tlb = Tlb::new();
        tlb.insert(0, 0x1000, leaf(0xa000, 12, Access::READ));
        assert!(tlb.find(0, 0x1000, Access::READ).is_some());
        assert_eq!(tlb.find(0, 0x1000, Access::WRITE), None);
        assert_eq!(tlb.find(0, 0x1000, Access::RW), None);
    }

    #[test]
    fn a_flush_forgets_everything_also_when_generations_come_around() {
        let tlb = Tlb::new();
        tlb.insert(0, 0x1000, leaf(0xa000, 12, Access::RW));
        tlb.flush();
        assert_eq!(tlb.find(0, 0x1000, Access::READ), None);
        // what a page of the same size does not bring back
        tlb.insert(0, 0x2000, leaf(0xb000, 12, Access::RW));
        assert_eq!(tlb.find(0, 0x1000, Access::READ), None);
        tlb.generation.set(u32::MAX);
        tlb.insert(0, 0x3000, leaf(0xc000, 12, Access::RW));
        tlb.flush();
        assert_eq!(tlb.generation.get(), 1);
        tlb.insert(0, 0x4000, leaf(0xd000, 12, Access::RW));
        assert_eq!(tlb.find(0, 0x1000, Access::READ), None, "an entry of the first generation");
        assert_eq!(tlb.find(0, 0x3000, Access::READ), None);
    }

    #[test]
    fn the_last_page_of_all_is_a_page_like_others() {
        let tlb = Tlb::new();
        tlb.insert(0, u64::MAX, leaf(0xfff, 12, Access::RW));
        assert_eq!(tlb.find(0, u64::MAX - 1, Access::READ).map(|leaf| leaf.oa), Some(0xffe));
        assert_eq!(tlb.find(0, 0, Access::READ), None);
    }
}

//! VT-d first-level tables, those of x86-64 (Intel VT-d specification, 3.6 "First-Stage Translation"
//! and 9.7 "First-Stage Paging Entries"). The specification's level n is level n - 1 here: its FS-PTE
//! is level 0, its FS-PML5E level 4.
//!
//! | bits | here |
//! | --- | --- |
//! | 0 | P: present; reading is always allowed, a page for writing only cannot be expressed |
//! | 1 | R/W: writing. Privileged software needs it only where WPE is set (3.6.2) |
//! | 2 | U/S: others than privileged software; a path is theirs if each of its entries is |
//! | 3, 4 | PWT, PCD: ignored, memory type does not matter to a software walker |
//! | 5 | A: set in each entry of a path before the access is granted (3.6.3) |
//! | 6 | D: set in the leaf before a write is granted; ignored in table entries |
//! | 7 | PS at levels 1 and 2 where such pages are offered (CAP.FS1GP for 1 GiB); otherwise reserved; PAT at level 0 |
//! | 8, 9, 11 | G and ignored bits |
//! | 10 | EA: ignored, extended-access flags are not offered (EAFE clear) |
//! | 12 | PAT in large leaves: ignored |
//! | 51:12 | address; bits at and above the host address width, and below a leaf's size, are reserved |
//! | 62:52 | ignored |
//! | 63 | XD: no fetching (NXE set); a path is executable if none of its entries forbids it |
//!
//! Addresses are canonical: bits 63 down to the highest that indexes are all alike (3.6, 7.1.3).
//! Privileged software may fetch from pages of others (SMEP clear).

use super::{Entry, Format, Geometry, Mark};
use crate::{Access, Iova, PhysAddr, Stage};

const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE_SIZE: u64 = 1 << 7;
const LARGE_PAT: u64 = 1 << 12;
const NO_EXECUTE: u64 = 1 << 63;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const SIZES: [u64; 3] = [1 << 12, 1 << 21, 1 << 30];

/// The widest host address (9.7): bits 51:12 of an entry.
const MAX_OUTPUT_BITS: u8 = 52;

/// The VT-d first-level format: 4 KiB granule, 4 or 5 levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VtdFirst {
    levels: u8,
    leaf_levels: u8,
    output_bits: u8,
    write_protect: bool,
}

impl VtdFirst {
    /// Tables for `input_bits` of 48 or 57 (9.6, FSPM) whose leaves have the sizes `leaf_sizes_mask`:
    /// bit n stands for `1 << n` bytes; 4 KiB, 2 MiB, and 1 GiB or not (CAP.FS1GP). Output addresses
    /// have 52 bits, WPE is clear. `None` for anything else.
    #[must_use]
    pub const fn new(input_bits: u8, leaf_sizes_mask: u64) -> Option<Self> {
        let levels = match input_bits {
            48 => 4,
            57 => 5,
            _ => return None,
        };
        let [small, middle, large] = SIZES;
        let leaf_levels = match leaf_sizes_mask ^ (small | middle) {
            0 => 0b011,
            also if also == large => 0b111,
            _ => return None,
        };
        Some(Self { levels, leaf_levels, output_bits: MAX_OUTPUT_BITS, write_protect: false })
    }

    /// The same with an output of `output_bits`, 32 to 52: address bits from there on are reserved.
    /// `None` for another width.
    #[must_use]
    pub const fn with_output_bits(self, output_bits: u8) -> Option<Self> {
        if output_bits < 32 || output_bits > MAX_OUTPUT_BITS {
            return None;
        }
        Some(Self { output_bits, ..self })
    }

    /// The same with WPE (9.6) as given: if set, privileged software may not write to read-only pages.
    #[must_use]
    pub const fn with_write_protect(self, write_protect: bool) -> Self {
        Self { write_protect, ..self }
    }

    #[inline]
    fn rights(self, raw: u64) -> Access {
        let has = |set: bool, right: Access| if set { right } else { Access::empty() };
        let write = raw & WRITE != 0;
        let common = Access::READ.union(has(raw & NO_EXECUTE == 0, Access::EXEC));
        let others = common.union(has(write, Access::WRITE));
        let privileged = common.union(has(write || !self.write_protect, Access::WRITE));
        has(raw & USER != 0, others).union(privileged.to_privileged())
    }

    /// Address bits that no present entry may have.
    #[inline]
    const fn too_wide(self) -> u64 {
        ADDRESS & !((1 << self.output_bits) - 1)
    }

    #[inline]
    fn decode_leaf(self, level: u8, raw: u64) -> Entry {
        let geometry = self.geometry();
        let below_page = ADDRESS & ((1 << geometry.entry_lg2(level)) - 1) & !LARGE_PAT;
        if !geometry.has_leaves(level) || raw & (self.too_wide() | below_page) != 0 {
            return Entry::Malformed;
        }
        let pat = if level == 0 { 0 } else { LARGE_PAT };
        Entry::Leaf { oa: PhysAddr::new(raw & ADDRESS & !pat), access: self.rights(raw) }
    }
}

impl Format for VtdFirst {
    const STAGE: Stage = Stage::First;
    const TABLES_DENY: bool = true;

    #[inline]
    fn geometry(&self) -> Geometry {
        Geometry {
            granule_lg2: 12,
            levels: self.levels,
            input_bits: 12 + 9 * self.levels,
            output_bits: self.output_bits,
            leaf_levels: self.leaf_levels,
        }
    }

    #[inline]
    fn decode(&self, level: u8, raw: u64) -> Entry {
        if raw & PRESENT == 0 {
            return Entry::Empty;
        }
        if level == 0 || raw & PAGE_SIZE != 0 {
            return self.decode_leaf(level, raw);
        }
        if raw & self.too_wide() != 0 {
            return Entry::Malformed;
        }
        Entry::Table { next: PhysAddr::new(raw & ADDRESS), access: self.rights(raw) }
    }

    #[inline]
    fn table(&self, next: PhysAddr) -> u64 {
        next.raw() | PRESENT | WRITE | USER | ACCESSED
    }

    #[inline]
    fn leaf(&self, level: u8, oa: PhysAddr, access: Access) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        oa.raw()
            | (PRESENT | ACCESSED | DIRTY)
            | bit(level > 0, PAGE_SIZE)
            | bit(access.contains(Access::WRITE), WRITE)
            | bit(!access.contains(Access::PRIVILEGED), USER)
            | bit(!access.contains(Access::EXEC), NO_EXECUTE)
    }

    fn expresses(&self, access: Access) -> bool {
        // without WPE nothing is read-only for privileged software
        let writable = access.contains(Access::WRITE) || self.write_protect;
        let known = Access::RWX.union(Access::PRIVILEGED).contains(access);
        known && access.contains(Access::READ) && (writable || !access.contains(Access::PRIVILEGED))
    }

    #[inline]
    fn input(&self, iova: Iova) -> Option<u64> {
        let input_bits = 12 + 9 * self.levels;
        let sign = iova.raw() >> (input_bits - 1);
        let canonical = sign == 0 || sign == u64::MAX >> (input_bits - 1);
        canonical.then_some(iova.raw() & ((1 << input_bits) - 1))
    }

    #[inline]
    fn granted(&self, path: Access, wanted: Access) -> Access {
        if wanted.contains(Access::PRIVILEGED) {
            path.from_privileged().union(Access::PRIVILEGED)
        } else {
            path.intersection(Access::RWX)
        }
    }

    #[inline]
    fn mark(&self, raw: u64, leaf: bool, access: Access) -> Mark {
        let dirty = if leaf && access.contains(Access::WRITE) { DIRTY } else { 0 };
        let marked = raw | ACCESSED | dirty;
        if marked == raw { Mark::Done } else { Mark::Set(marked) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format() -> VtdFirst {
        VtdFirst::new(48, SIZES[0] | SIZES[1] | SIZES[2]).unwrap()
    }

    #[test]
    fn only_widths_and_page_sizes_of_the_specification_make_a_format() {
        for (bits, sizes) in [(39, 0x20_1000), (48, 0x1000), (48, 0x20_0000), (57, 0x4000_1000)] {
            assert_eq!(VtdFirst::new(bits, sizes), None, "{bits} {sizes:#x}");
        }
        let geometry = VtdFirst::new(57, 0x20_1000).unwrap().geometry();
        assert_eq!((geometry.levels, geometry.page_size_mask()), (5, 0x20_1000));
    }

    // 9.7: FS-PTE, FS-PDE and FS-PDPTE of a page, FS-PDE of a table
    #[test]
    fn entries_are_the_bits_of_the_manual() {
        let page = PhysAddr::new(0x1234_5000);
        assert_eq!(format().leaf(0, page, Access::RWX), 0x1234_5067);
        assert_eq!(format().leaf(0, page, Access::READ), 0x8000_0000_1234_5065);
        let privileged = Access::RW | Access::PRIVILEGED;
        assert_eq!(format().leaf(0, page, privileged), 0x8000_0000_1234_5063);
        assert_eq!(format().leaf(1, PhysAddr::new(0x4020_0000), Access::RWX), 0x4020_00e7);
        assert_eq!(format().leaf(2, PhysAddr::new(0x4000_0000), Access::RWX), 0x4000_00e7);
        assert_eq!(format().table(page), 0x1234_5027);
    }

    #[test]
    fn ignored_bits_are_ignored() {
        let ignored = 0x7ff0_0000_0000_0f18;
        let access = format().rights(PRESENT | USER);
        let leaf = |oa| Entry::Leaf { oa: PhysAddr::new(oa), access };
        assert_eq!(format().decode(0, ignored | 0x7000 | 5), leaf(0x7000));
        let large = PAGE_SIZE | LARGE_PAT | 0x20_0000 | 5;
        assert_eq!(format().decode(1, ignored | large), leaf(0x20_0000));
        assert_eq!(format().decode(0, !PRESENT), Entry::Empty, "reserved bits need presence");
    }

    #[test]
    fn a_reserved_bit_makes_a_present_entry_malformed() {
        let narrow = format().with_output_bits(46).unwrap();
        let small = VtdFirst::new(48, 0x20_1000).unwrap().with_output_bits(46).unwrap();
        for (level, raw) in [
            (3, PAGE_SIZE | 7),
            (1, 0x2000 | PAGE_SIZE | 7),
            (2, 0x2000_0000 | PAGE_SIZE | 7),
            (0, 1 << 46 | 7),
            (3, 1 << 51 | 7),
        ] {
            assert_eq!(narrow.decode(level, raw), Entry::Malformed, "{level} {raw:#x}");
        }
        assert_eq!(small.decode(2, 0x4000_0000 | PAGE_SIZE | 7), Entry::Malformed, "not offered");
    }

    #[test]
    fn canonical_addresses_translate_and_no_others() {
        for (bits, half) in [(48, 1u64 << 47), (57, 1 << 56)] {
            let format = VtdFirst::new(bits, 0x20_1000).unwrap();
            let input = |raw| format.input(Iova::new(raw));
            assert_eq!(input(half - 1), Some(half - 1));
            assert_eq!((input(half), input(half.wrapping_neg() - 1)), (None, None));
            assert_eq!(input(half.wrapping_neg()), Some(half));
            assert_eq!(input(u64::MAX), Some(2 * half - 1));
        }
    }

    // 3.6.2
    #[test]
    fn privileged_software_writes_to_read_only_pages_unless_write_protected() {
        let privileged = Access::WRITE | Access::PRIVILEGED;
        for (protect, granted) in [(false, Access::RWX), (true, Access::READ | Access::EXEC)] {
            let format = format().with_write_protect(protect);
            let rights = format.rights(PRESENT | USER);
            assert_eq!(format.granted(rights, privileged), granted | Access::PRIVILEGED);
            assert_eq!(format.granted(rights, Access::WRITE), Access::READ | Access::EXEC);
            let kernel = format.rights(PRESENT | WRITE);
            assert_eq!(format.granted(kernel, Access::READ), Access::empty());
        }
    }

    // 3.6.3
    #[test]
    fn accessed_and_dirty_are_due_where_the_manual_says() {
        let mark = |raw, leaf, access| format().mark(raw, leaf, access);
        assert_eq!(mark(1, false, Access::WRITE), Mark::Set(1 | ACCESSED));
        assert_eq!(mark(1, true, Access::READ), Mark::Set(1 | ACCESSED));
        assert_eq!(mark(1, true, Access::WRITE), Mark::Set(1 | ACCESSED | DIRTY));
        assert_eq!(mark(1 | ACCESSED, true, Access::READ), Mark::Done);
        assert_eq!(mark(1 | ACCESSED, true, Access::RW), Mark::Set(1 | ACCESSED | DIRTY));
        assert_eq!(mark(1 | ACCESSED | DIRTY, true, Access::RW), Mark::Done);
    }
}

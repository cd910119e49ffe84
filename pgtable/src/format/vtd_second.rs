//! VT-d second-level tables (Intel VT-d specification, 3.7 "Second-Stage Translation" and 9.8
//! "Second-Stage Paging Entries"). The specification's level n is level n - 1 here: its SS-PTE is
//! level 0, its SS-PML5E level 4.
//!
//! | bits | here |
//! | --- | --- |
//! | 0, 1 | R, W: an entry is present if either is set (3.7); the rights of a path are the AND |
//! | 2 | X: ignored, as by hardware without execute requests (ECAP.ERS clear): they are not offered |
//! | 6:3 | EMT, IPAT in leaves: ignored, memory type does not matter to a software walker |
//! | 7 | PS at levels 1 and 2 where such pages are offered (CAP.SSLPS); otherwise reserved |
//! | 8, 9 | A, D: set in entries made here; ignored when read, A/D updates are not offered (ECAP.SSADS clear) |
//! | 10 | ignored |
//! | 11 | SNP in leaves: ignored, every access here snoops (ECAP.SC); reserved in table entries |
//! | 51:12 | address; bits at and above the host address width, and below a leaf's size, are reserved |
//! | 61:52 | ignored |
//! | 62 | TM in leaves, reserved without device TLBs (ECAP.DT clear); reserved in table entries |
//! | 63 | ignored |
//!
//! Reserved bits count only in present entries (3.7, 7.1.3). Write-only pages can be expressed.

use super::{Entry, Format, Geometry};
use crate::{Access, PhysAddr, Stage};

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const PAGE_SIZE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const SNOOP: u64 = 1 << 11;
const TRANSIENT: u64 = 1 << 62;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

const RIGHTS: u64 = READ | WRITE;
// decode and leaf move the two bits as they are
const _: () = assert!(Access::READ.bits() as u64 == READ && Access::WRITE.bits() as u64 == WRITE);

const SIZES: [u64; 3] = [1 << 12, 1 << 21, 1 << 30];

/// The widest host address (9.8): bits 51:12 of an entry.
const MAX_OUTPUT_BITS: u8 = 52;

/// The VT-d second-level format: 4 KiB granule, 3, 4 or 5 levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct VtdSecond {
    levels: u8,
    leaf_levels: u8,
    output_bits: u8,
}

impl VtdSecond {
    /// Tables for `input_bits` of 39, 48 or 57 (9.6, AW) whose leaves have the sizes `leaf_sizes_mask`:
    /// bit n stands for `1 << n` bytes; 4 KiB, and any of 2 MiB and 1 GiB (CAP.SSLPS). Output
    /// addresses have 52 bits. `None` for anything else.
    #[must_use]
    pub const fn new(input_bits: u8, leaf_sizes_mask: u64) -> Option<Self> {
        let levels = match input_bits {
            39 => 3,
            48 => 4,
            57 => 5,
            _ => return None,
        };
        let [small, middle, large] = SIZES;
        if leaf_sizes_mask & small == 0 || leaf_sizes_mask & !(small | middle | large) != 0 {
            return None;
        }
        let leaf_levels = 1
            | if leaf_sizes_mask & middle != 0 { 1 << 1 } else { 0 }
            | if leaf_sizes_mask & large != 0 { 1 << 2 } else { 0 };
        Some(Self { levels, leaf_levels, output_bits: MAX_OUTPUT_BITS })
    }

    /// The same with a host address width of `output_bits`, 32 to 52: address bits from there on are
    /// reserved. `None` for another width.
    #[must_use]
    pub const fn with_output_bits(self, output_bits: u8) -> Option<Self> {
        if output_bits < 32 || output_bits > MAX_OUTPUT_BITS {
            return None;
        }
        Some(Self { output_bits, ..self })
    }

    /// Bits that no present entry may have.
    #[inline]
    const fn always_reserved(&self) -> u64 {
        TRANSIENT | (ADDRESS & !((1 << self.output_bits) - 1))
    }

    #[inline]
    fn decode_leaf(self, level: u8, raw: u64) -> Entry {
        let geometry = self.geometry();
        let below_page = ADDRESS & ((1 << geometry.entry_lg2(level)) - 1);
        if !geometry.has_leaves(level) || raw & (self.always_reserved() | below_page) != 0 {
            return Entry::Malformed;
        }
        Entry::Leaf { oa: PhysAddr::new(raw & ADDRESS), access: rights(raw) }
    }
}

#[inline]
const fn rights(raw: u64) -> Access {
    Access::from_bits_truncate((raw & RIGHTS) as u8)
}

impl Format for VtdSecond {
    const STAGE: Stage = Stage::Second;
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
        if raw & RIGHTS == 0 {
            return Entry::Empty;
        }
        if level == 0 || raw & PAGE_SIZE != 0 {
            return self.decode_leaf(level, raw);
        }
        if raw & (self.always_reserved() | SNOOP) != 0 {
            return Entry::Malformed;
        }
        Entry::Table { next: PhysAddr::new(raw & ADDRESS), access: rights(raw) }
    }

    #[inline]
    fn table(&self, next: PhysAddr) -> u64 {
        next.raw() | RIGHTS | ACCESSED
    }

    #[inline]
    fn leaf(&self, level: u8, oa: PhysAddr, access: Access) -> u64 {
        let size = if level == 0 { 0 } else { PAGE_SIZE };
        let rights = u64::from(access.intersection(Access::RW).bits());
        oa.raw() | rights | size | ACCESSED | DIRTY
    }

    fn expresses(&self, access: Access) -> bool {
        !access.is_empty() && Access::RW.contains(access)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format() -> VtdSecond {
        VtdSecond::new(48, SIZES[0] | SIZES[1] | SIZES[2]).unwrap()
    }

    fn leaf_at(oa: u64, access: Access) -> Entry {
        Entry::Leaf { oa: PhysAddr::new(oa), access }
    }

    #[test]
    fn only_widths_and_page_sizes_of_the_specification_make_a_format() {
        for (bits, sizes) in [(47, 1 << 12), (64, 1 << 12), (48, 0), (48, 1 << 21)] {
            assert_eq!(VtdSecond::new(bits, sizes), None, "{bits} {sizes:#x}");
        }
        assert_eq!(VtdSecond::new(48, 1 << 12 | 1 << 16), None);
        assert_eq!(VtdSecond::new(48, 1 << 12 | 1 << 39), None);
        let sizes = 1 << 12 | 1 << 30;
        let geometry = VtdSecond::new(57, sizes).unwrap().geometry();
        assert_eq!((geometry.levels, geometry.page_size_mask()), (5, sizes));
        assert_eq!(format().with_output_bits(31), None);
        assert_eq!(format().with_output_bits(53), None);
    }

    // 9.8: SS-PTE, SS-PDE and SS-PDPTE of a page, SS-PDE of a table
    #[test]
    fn entries_are_the_bits_of_the_manual() {
        assert_eq!(format().leaf(0, PhysAddr::new(0x1234_5000), Access::RW), 0x1234_5303);
        assert_eq!(format().leaf(0, PhysAddr::new(0x1234_5000), Access::WRITE), 0x1234_5302);
        assert_eq!(format().leaf(1, PhysAddr::new(0x4020_0000), Access::READ), 0x4020_0381);
        assert_eq!(format().leaf(2, PhysAddr::new(0x4000_0000), Access::RW), 0x4000_0383);
        assert_eq!(format().table(PhysAddr::new(0x8_0000_0000_1000)), 0x8_0000_0000_1103);
    }

    #[test]
    fn ignored_bits_are_ignored() {
        let ignored = 0xbff0_0000_0000_0f7c;
        assert_eq!(format().decode(0, 0x7000 | ignored | 1), leaf_at(0x7000, Access::READ));
        let table = Entry::Table { next: PhysAddr::new(0x7000), access: Access::WRITE };
        assert_eq!(format().decode(1, 0x7000 | (ignored & !SNOOP) | 2), table);
        assert_eq!(format().decode(0, !RIGHTS), Entry::Empty, "reserved bits need presence");
        assert_eq!(format().decode(3, 4), Entry::Empty, "X alone is not present");
    }

    #[test]
    fn a_reserved_bit_makes_a_present_entry_malformed() {
        let narrow = format().with_output_bits(46).unwrap();
        for (level, raw) in [
            (0, TRANSIENT | 3),
            (2, TRANSIENT | 3),
            (1, SNOOP | 3),
            (3, PAGE_SIZE | 3),
            (1, 0x1000 | PAGE_SIZE | 3),
            (2, 0x2000_0000 | PAGE_SIZE | 1),
            (0, 1 << 46 | 3),
            (3, 1 << 51 | 2),
        ] {
            assert_eq!(narrow.decode(level, raw), Entry::Malformed, "{level} {raw:#x}");
        }
        let small = VtdSecond::new(48, SIZES[0]).unwrap();
        assert_eq!(small.decode(1, PAGE_SIZE | 3), Entry::Malformed, "not offered");
    }

    #[test]
    fn write_only_is_expressible_and_execute_is_not() {
        assert!(format().expresses(Access::WRITE) && format().expresses(Access::RW));
        assert!(!format().expresses(Access::empty()) && !format().expresses(Access::RWX));
        assert!(!format().expresses(Access::READ | Access::PRIVILEGED));
    }
}

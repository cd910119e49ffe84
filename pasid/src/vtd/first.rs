//! The first-level fields of a PASID entry: word 2 (VT-d 5.0, 9.6).

use bitflags::bitflags;
use viommu_pgtable::{PhysAddr, VtdFirst};

use super::POINTER;

/// Bits 3:2: FSPM, the paging mode.
const FSPM_SHIFT: u32 = 2;
const FSPM_MASK: u64 = 3;
const FSPM_FOUR_LEVELS: u64 = 0;
const FSPM_FIVE_LEVELS: u64 = 1;
/// Bit 5: NXE. Revisions that define it want it set, or bit 63 of a page-table entry is reserved;
/// later ones ignore it, and bit 6 (SMEP) with it, and always know execute-disable, as we do.
const NXE: u64 = 1 << 5;
/// Bit 1 and bits 11:8.
const RESERVED: u64 = 0b1111 << 8 | 1 << 1;

bitflags! {
    /// How a first level is walked: the controls of a PASID entry, in the places that they have in
    /// word 2.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct FirstControls: u64 {
        /// SRE: requests of privileged software are allowed.
        const SUPERVISOR = 1;
        /// WPE: privileged software does not write read-only pages either.
        const WRITE_PROTECT = 1 << 4;
        /// EAFE: the walk sets the extended-accessed flag (bit 10) as well.
        const EXTENDED_ACCESSED = 1 << 7;
    }
}

/// A first-level table, as a PASID entry names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FirstLevel {
    /// The root table, 4 KiB aligned.
    pub root: PhysAddr,
    /// 5 levels (57-bit addresses); otherwise 4 (48-bit).
    pub five_levels: bool,
    /// How it is walked.
    pub controls: FirstControls,
}

impl FirstLevel {
    /// What its entries mean, with leaves of the sizes `leaf_sizes_mask`: bit n stands for `1 << n`
    /// bytes; 4 KiB, 2 MiB, and 1 GiB or not. `None` for other sizes.
    ///
    /// [`FirstControls::WRITE_PROTECT`] is part of it. Who cannot honour
    /// [`FirstControls::EXTENDED_ACCESSED`], or is asked by privileged software without
    /// [`FirstControls::SUPERVISOR`], refuses the access.
    #[must_use]
    pub const fn format(&self, leaf_sizes_mask: u64) -> Option<VtdFirst> {
        let Some(format) = VtdFirst::new(if self.five_levels { 57 } else { 48 }, leaf_sizes_mask)
        else {
            return None;
        };
        Some(format.with_write_protect(self.controls.contains(FirstControls::WRITE_PROTECT)))
    }

    /// Word 2 of the entry.
    pub(super) const fn pack(&self) -> u64 {
        let mode = if self.five_levels { FSPM_FIVE_LEVELS } else { FSPM_FOUR_LEVELS };
        (self.root.raw() & POINTER) | (mode << FSPM_SHIFT) | NXE | self.controls.bits()
    }

    /// What word 2 says; `None` for an unknown paging mode or a reserved bit.
    pub(super) const fn unpack(word2: u64) -> Option<Self> {
        if word2 & RESERVED != 0 {
            return None;
        }
        let five_levels = match (word2 >> FSPM_SHIFT) & FSPM_MASK {
            FSPM_FOUR_LEVELS => false,
            FSPM_FIVE_LEVELS => true,
            _ => return None,
        };
        let controls = FirstControls::from_bits_truncate(word2);
        Some(Self { root: PhysAddr::new(word2 & POINTER), five_levels, controls })
    }

    /// True if word 2 of an entry without a first level has no reserved bit set.
    pub(super) const fn is_clean(word2: u64) -> bool {
        word2 & RESERVED == 0
    }
}

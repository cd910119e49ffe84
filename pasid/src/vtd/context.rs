//! The scalable-mode context entry: from a function to its PASID directory (VT-d 5.0, 9.4).

use viommu_pgtable::PhysAddr;

use super::table::LEAF_ENTRIES_LG2;
use super::{POINTER, PRESENT};

/// Bytes of an entry.
pub(super) const ENTRY_BYTES: u64 = 32;

/// Word 0, bit 3: PASIDE, requests with a PASID are allowed.
const PASID_ENABLE: u64 = 1 << 3;
/// Word 0, bits 11:9: PDTS, the directory has 2^(PDTS + 7) entries.
const PDTS_SHIFT: u32 = 9;
const PDTS_MASK: u64 = 7;
/// Word 1, bits 19:0: the PASID that untagged requests take.
const RID_PASID: u64 = (1 << 20) - 1;

/// Word 0, bits 8:5, and word 1, bits 63:21, are reserved, and so are words 2 and 3. The other
/// fields that we do not write (FPD, DTE, PRE, RID_PRIV) change no translation.
const WORD0_RESERVED: u64 = 0xf << 5;
const WORD1_RESERVED: u64 = !((1 << 21) - 1);

/// The smallest PASID directory, entries, log2 (PDTS = 0).
pub const MIN_DIRECTORY_LG2: u8 = 7;
/// PASIDs have at most 20 bits.
pub const MAX_PASID_BITS: u8 = 20;
const _: () = assert!(MIN_DIRECTORY_LG2 + LEAF_ENTRIES_LG2 <= MAX_PASID_BITS);

/// A present context entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextEntry {
    /// The PASID directory, 4 KiB aligned.
    pub directory: PhysAddr,
    /// Entries of the directory, log2: 7 to 14.
    pub directory_lg2: u8,
    /// Requests with a PASID are allowed.
    pub pasid_enable: bool,
    /// The PASID-table index that untagged requests take, 20 bits.
    pub rid_pasid: u32,
}

impl ContextEntry {
    /// Words 0 and 1; words 2 and 3 are zero.
    ///
    /// A `directory_lg2` outside 7 to 14 takes the nearest size: [`PasidTable`](super::PasidTable)
    /// makes no other.
    #[must_use]
    pub fn pack(&self) -> [u64; 2] {
        let pdts = u64::from(self.directory_lg2.saturating_sub(MIN_DIRECTORY_LG2)).min(PDTS_MASK);
        let enable = if self.pasid_enable { PASID_ENABLE } else { 0 };
        let word0 = (self.directory.raw() & POINTER) | (pdts << PDTS_SHIFT) | enable | PRESENT;
        [word0, u64::from(self.rid_pasid) & RID_PASID]
    }

    /// The entry in these words, or `None` if it is not present.
    #[must_use]
    pub fn unpack(words: [u64; 2]) -> Option<Self> {
        let [word0, word1] = words;
        if word0 & PRESENT == 0 {
            return None;
        }
        let pdts = u8::try_from((word0 >> PDTS_SHIFT) & PDTS_MASK).ok()?;
        Some(Self {
            directory: PhysAddr::new(word0 & POINTER),
            directory_lg2: pdts + MIN_DIRECTORY_LG2,
            pasid_enable: word0 & PASID_ENABLE != 0,
            rid_pasid: u32::try_from(word1 & RID_PASID).ok()?,
        })
    }

    /// True if the directory has a place for PASID-table index `index`.
    #[must_use]
    pub const fn covers(&self, index: u32) -> bool {
        (index >> LEAF_ENTRIES_LG2) >> self.directory_lg2 == 0
    }
}

/// True if no reserved bit is set in the four words of an entry.
pub(super) const fn is_clean(words: [u64; 4]) -> bool {
    let [word0, word1, word2, word3] = words;
    (word0 & WORD0_RESERVED) | (word1 & WORD1_RESERVED) | word2 | word3 == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_entry_has_the_manuals_bits() {
        let entry = ContextEntry {
            directory: PhysAddr::new(0x8_0000_0000_4000),
            directory_lg2: 14,
            pasid_enable: true,
            rid_pasid: 0,
        };
        // 9.4: P = bit 0, PASIDE = bit 3, PDTS = 7 at 11:9, PASIDDIRPTR at 63:12
        assert_eq!(entry.pack(), [0x8_0000_0000_4e09, 0]);
        assert_eq!(ContextEntry::unpack(entry.pack()), Some(entry));
    }

    #[test]
    fn the_smallest_directory_holds_8192_pasids_and_the_largest_all() {
        let mut entry = ContextEntry {
            directory: PhysAddr::new(0),
            directory_lg2: MIN_DIRECTORY_LG2,
            pasid_enable: true,
            rid_pasid: 0,
        };
        assert!(entry.covers(8191) && !entry.covers(8192));
        entry.directory_lg2 = 14;
        assert!(entry.covers((1 << 20) - 1) && !entry.covers(1 << 20));
    }
}

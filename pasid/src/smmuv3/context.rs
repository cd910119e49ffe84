//! A table of context descriptors: the writer's side (IHI 0070, 5.3 and 5.4).

use viommu_pgtable::{OutOfTables, PhysAddr, TableStore};

use super::SUBSTREAM_BITS;
use super::cd::{self, ContextDescriptor};
use super::ste::{ContextLayout, Stage1, Untagged};
use crate::leaf::{LEAF_BYTES, LEAF_ENTRIES_LG2, Leaves};
use crate::{SetError, Staged};

/// Level 1 descriptor, bit 0: V.
const LINK: u64 = 1;

const LEAVES: Leaves = Leaves { link: LINK, valid: cd::VALID };

/// The context descriptors of one function: pointers, and leaves of 4 KiB where there are
/// descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextTable {
    pointers: PhysAddr,
    pasid_bits: u8,
}

impl ContextTable {
    /// An empty table for PASIDs of `pasid_bits` bits. More than 20 is 20; 0 is 1, because only a
    /// table of two levels lets a descriptor change by one 64-bit store. PASID 1 of a function that
    /// sends none has no descriptor, and faults.
    ///
    /// # Errors
    /// If there are not enough table pages for the pointers.
    pub fn new<S: TableStore>(store: &mut S, pasid_bits: u8) -> Result<Self, OutOfTables> {
        let pasid_bits = pasid_bits.clamp(1, SUBSTREAM_BITS);
        let pointers_lg2 = pasid_bits.saturating_sub(LEAF_ENTRIES_LG2);
        let pages = (8_u64 << pointers_lg2).div_ceil(LEAF_BYTES);
        Ok(Self { pointers: store.alloc_pages(pages)?, pasid_bits })
    }

    /// The stage 1 fields that lead here; `None` if the table lies above 2^48, where no SMMU finds
    /// it.
    #[must_use]
    pub const fn stage1(&self, untagged: Untagged) -> Option<Stage1> {
        Stage1::new(self.pointers, ContextLayout::Leaves4K, self.pasid_bits, untagged)
    }

    /// Sets the descriptor of `index`, a PASID or 0, by copying its leaf; requests see the old
    /// descriptor or the new one. The old leaf is freed: it is withdrawn, and readers may still be
    /// in it.
    ///
    /// # Errors
    /// If no table page is left for the copy, or the table is too small; nothing changes.
    pub fn set<S: TableStore>(
        &self,
        store: &mut S,
        index: u32,
        descriptor: &ContextDescriptor,
    ) -> Result<(), SetError> {
        let slot = self.slot(index).ok_or(SetError::TooWide { index })?;
        LEAVES.set(store, slot, index, &descriptor.pack()).map_err(SetError::OutOfTables)
    }

    /// Makes `descriptor` for each of `indices`, PASIDs or 0, part of `staged`.
    ///
    /// # Errors
    /// If no table page is left, or the table is too small for one of them; what was staged of the
    /// others stays so.
    pub fn stage<S: TableStore>(
        &self,
        store: &mut S,
        indices: impl IntoIterator<Item = u32>,
        descriptor: &ContextDescriptor,
        staged: &mut Staged,
    ) -> Result<(), SetError> {
        let words = descriptor.pack();
        for index in indices {
            let slot = self.slot(index).ok_or(SetError::TooWide { index })?;
            LEAVES.stage(store, slot, (index, &words), staged).map_err(SetError::OutOfTables)?;
        }
        Ok(())
    }

    /// True if `index`, a PASID or 0, has a descriptor.
    #[must_use]
    pub fn holds<S: TableStore>(&self, store: &S, index: u32) -> bool {
        self.slot(index).is_some_and(|slot| LEAVES.holds(store, slot, index))
    }

    /// Clears the descriptor of `index`: from now on its requests fault. A leaf without descriptors
    /// is freed. Needs no memory.
    pub fn clear<S: TableStore>(&self, store: &mut S, index: u32) {
        if let Some(slot) = self.slot(index) {
            LEAVES.clear(store, slot, index);
        }
    }

    fn slot(&self, index: u32) -> Option<PhysAddr> {
        if index >> self.pasid_bits != 0 {
            return None;
        }
        self.pointers.checked_add(u64::from(index >> LEAF_ENTRIES_LG2) * 8)
    }
}

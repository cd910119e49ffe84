//! A PASID directory and its leaves: the writer's side (VT-d 5.0, 9.5 and 9.6).

use viommu_pgtable::{OutOfTables, PhysAddr, TableStore};

use super::context::{ContextEntry, MAX_PASID_BITS, MIN_DIRECTORY_LG2};
use super::entry::PasidEntry;
use super::{PRESENT, TABLE_BYTES};
use crate::leaf::{self, Leaves, SetError, Staged};

/// Entries of a leaf, log2.
pub const LEAF_ENTRIES_LG2: u8 = leaf::LEAF_ENTRIES_LG2;

/// Directory entries and PASID entries have their present bit in the same place.
const LEAVES: Leaves = Leaves { link: PRESENT, valid: PRESENT };

/// The address of the directory entry for PASID-table index `index`.
pub(super) fn slot_at(directory: PhysAddr, index: u32) -> Option<PhysAddr> {
    directory.checked_add(u64::from(index >> LEAF_ENTRIES_LG2) * 8)
}

/// The PASID table of one function: a directory, and leaves where there are entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasidTable {
    directory: PhysAddr,
    directory_lg2: u8,
    pasid_enable: bool,
}

impl PasidTable {
    /// An empty table for PASIDs of `pasid_bits` bits; 0: untagged traffic only. More than 20 is
    /// 20.
    ///
    /// # Errors
    /// If there are not enough table pages for the directory.
    pub fn new<S: TableStore>(store: &mut S, pasid_bits: u8) -> Result<Self, OutOfTables> {
        let bits = pasid_bits.min(MAX_PASID_BITS);
        let directory_lg2 = bits.saturating_sub(LEAF_ENTRIES_LG2).max(MIN_DIRECTORY_LG2);
        let pages = (8u64 << directory_lg2).div_ceil(TABLE_BYTES);
        let directory = store.alloc_pages(pages)?;
        Ok(Self { directory, directory_lg2, pasid_enable: pasid_bits > 0 })
    }

    /// The context entry that leads here; untagged traffic takes index 0.
    #[must_use]
    pub const fn context(&self) -> ContextEntry {
        ContextEntry {
            directory: self.directory,
            directory_lg2: self.directory_lg2,
            pasid_enable: self.pasid_enable,
            rid_pasid: 0,
        }
    }

    /// Sets the entry of `index` by copying its leaf; requests see the old entry or the new one.
    /// The old leaf is freed: it is withdrawn, and readers may still be in it.
    ///
    /// # Errors
    /// If no table page is left for the copy, or the table is too small; nothing changes.
    pub fn set<S: TableStore>(
        &self,
        store: &mut S,
        index: u32,
        entry: &PasidEntry,
    ) -> Result<(), SetError> {
        let slot = self.slot(index).ok_or(SetError::TooWide { index })?;
        LEAVES.set(store, slot, index, &entry.pack()).map_err(SetError::OutOfTables)
    }

    /// Makes `entry` for each of `indices` part of `staged`.
    ///
    /// # Errors
    /// If no table page is left, or the table is too small for one of them; what was staged of the
    /// others stays so.
    pub fn stage<S: TableStore>(
        &self,
        store: &mut S,
        indices: impl IntoIterator<Item = u32>,
        entry: &PasidEntry,
        staged: &mut Staged,
    ) -> Result<(), SetError> {
        let words = entry.pack();
        for index in indices {
            let slot = self.slot(index).ok_or(SetError::TooWide { index })?;
            LEAVES.stage(store, slot, (index, &words), staged).map_err(SetError::OutOfTables)?;
        }
        Ok(())
    }

    /// Clears the entry of `index`: from now on its requests fault. A leaf without entries is
    /// freed. Needs no memory.
    pub fn clear<S: TableStore>(&self, store: &mut S, index: u32) {
        if let Some(slot) = self.slot(index) {
            LEAVES.clear(store, slot, index);
        }
    }

    fn slot(&self, index: u32) -> Option<PhysAddr> {
        if !self.context().covers(index) {
            return None;
        }
        slot_at(self.directory, index)
    }
}

//! A PASID directory and its leaves: the writer's side (VT-d 5.0, 9.5 and 9.6).
//!
//! A PASID entry has 64 bytes and a reader loads it word by word, so an entry that may be in use never
//! changes from one valid state to another in place. To set one, its 4 KiB leaf is copied, changed in the
//! copy, and the directory's 64-bit pointer stored. To clear one, its first word is zeroed: a reader that
//! saw it before finds the other words as they were, and the slot is not written again, because the next
//! set goes into another copy.

use core::fmt;

use viommu_pgtable::{OutOfTables, PhysAddr, TableMemory, TableStore};

use super::context::{ContextEntry, MAX_PASID_BITS, MIN_DIRECTORY_LG2};
use super::entry::{ENTRY_BYTES, PasidEntry, WORDS};
use super::{PRESENT, TABLE_BYTES, follow, within};

/// Entries of a leaf, log2.
pub const LEAF_ENTRIES_LG2: u8 = 6;
const LEAF_ENTRIES: u32 = 1 << LEAF_ENTRIES_LG2;
const _: () = assert!(LEAF_ENTRIES as u64 * ENTRY_BYTES == TABLE_BYTES);

/// The address of the directory entry for PASID-table index `index`.
pub(super) fn slot_at(directory: PhysAddr, index: u32) -> Option<PhysAddr> {
    directory.checked_add(u64::from(index >> LEAF_ENTRIES_LG2) * 8)
}

/// The address of entry `index` in its leaf.
pub(super) fn entry_at(leaf: PhysAddr, index: u32) -> PhysAddr {
    within(leaf, u64::from(index % LEAF_ENTRIES) * ENTRY_BYTES)
}

/// Why an entry was not set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetError {
    /// No table page is left.
    OutOfTables(OutOfTables),
    /// The table has no place for this index.
    TooWide {
        /// The index.
        index: u32,
    },
}

impl fmt::Display for SetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfTables(error) => error.fmt(f),
            Self::TooWide { index } => write!(f, "PASID {index:#x} is wider than the table"),
        }
    }
}

impl core::error::Error for SetError {}

/// The PASID table of one function: a directory, and leaves where there are entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasidTable {
    directory: PhysAddr,
    directory_lg2: u8,
    pasid_enable: bool,
}

impl PasidTable {
    /// An empty table for PASIDs of `pasid_bits` bits; 0: untagged traffic only. More than 20 is 20.
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

    /// Sets the entry of `index` by copying its leaf; requests see the old entry or the new one. The
    /// old leaf is freed: it is withdrawn, and readers may still be in it.
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
        let old = store.load(slot).and_then(follow);
        let new = store.alloc_pages(1).map_err(SetError::OutOfTables)?;
        let mut live = 0;
        if let Some(old) = old {
            copy(store, old, new);
            live = store.live(old);
        }
        if !is_present(store, new, index) {
            live += 1;
        }
        store.set_live(new, live);
        write(store, entry_at(new, index), &entry.pack());
        store.store(slot, new.raw() | PRESENT);
        if let Some(old) = old {
            store.free_pages(old, 1);
        }
        Ok(())
    }

    /// Clears the entry of `index`: from now on its requests fault. A leaf without entries is freed.
    /// Needs no memory.
    pub fn clear<S: TableStore>(&self, store: &mut S, index: u32) {
        let Some(slot) = self.slot(index) else { return };
        let Some(leaf) = store.load(slot).and_then(follow) else { return };
        if !is_present(store, leaf, index) {
            return;
        }
        store.store(entry_at(leaf, index), 0);
        let live = store.live(leaf).saturating_sub(1);
        store.set_live(leaf, live);
        if live == 0 {
            store.store(slot, 0);
            store.free_pages(leaf, 1);
        }
    }

    fn slot(&self, index: u32) -> Option<PhysAddr> {
        if !self.context().covers(index) {
            return None;
        }
        slot_at(self.directory, index)
    }
}

fn is_present<S: TableMemory>(store: &S, leaf: PhysAddr, index: u32) -> bool {
    store.load(entry_at(leaf, index)).is_some_and(|word| word & PRESENT != 0)
}

/// Words 1 to 7 first: word 0 carries the present bit.
fn write<S: TableStore>(store: &mut S, at: PhysAddr, words: &[u64; WORDS]) {
    let [word0, rest @ ..] = words;
    for (word, offset) in rest.iter().zip((8u64..).step_by(8)) {
        store.store(within(at, offset), *word);
    }
    store.store(at, *word0);
}

fn copy<S: TableStore>(store: &mut S, from: PhysAddr, to: PhysAddr) {
    for offset in (0..TABLE_BYTES).step_by(8) {
        if let Some(word) = store.load(within(from, offset)) {
            store.store(within(to, offset), word);
        }
    }
}

//! Entries of 64 bytes in leaves of 4 KiB, and how a live one changes.
//!
//! VT-d's PASID entries, SMMUv3's stream table entries and context descriptors have this shape in
//! common. A reader loads an entry word by word, so one that may be in use never changes from one
//! valid state to another in place. To set one, its leaf is copied, changed in the copy, and the
//! 64-bit pointer to the leaf stored. To clear one, its first word, which holds its valid bit, is
//! zeroed: a reader that saw it before finds the other words as they were, and the slot is not
//! written again, because the next set goes into another copy.
//!
//! Entries that change together are [`Staged`] first: all copies are made, then all pointers stored.

use core::fmt;
use std::collections::BTreeMap;

use viommu_pgtable::{OutOfTables, PhysAddr, TableMemory, TableStore};

/// 64-bit words of an entry.
pub(crate) const WORDS: usize = 8;
/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: u64 = 64;
/// Base-2 logarithm of [`ENTRY_BYTES`].
pub(crate) const ENTRY_LG2: u8 = 6;
/// Entries of a leaf, log2.
pub(crate) const LEAF_ENTRIES_LG2: u8 = 6;
/// Bytes of a leaf.
pub(crate) const LEAF_BYTES: u64 = 4096;

const LEAF_ENTRIES: u32 = 1 << LEAF_ENTRIES_LG2;
/// Bits 63:12 of a pointer: the address of a leaf.
const ADDRESS: u64 = !(LEAF_BYTES - 1);

const _: () = assert!(ENTRY_BYTES == WORDS as u64 * 8 && ENTRY_BYTES == 1 << ENTRY_LG2);
const _: () = assert!(LEAF_ENTRIES as u64 * ENTRY_BYTES == LEAF_BYTES);

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

/// The address `offset` bytes (below 4096) into a table: tables are 4 KiB aligned, so nothing
/// carries.
pub(crate) const fn within(table: PhysAddr, offset: u64) -> PhysAddr {
    PhysAddr::new(table.raw() | offset)
}

/// The address of entry `index` in its leaf.
pub(crate) fn entry_at(leaf: PhysAddr, index: u32) -> PhysAddr {
    within(leaf, u64::from(index % LEAF_ENTRIES) * ENTRY_BYTES)
}

/// Which bits tell that something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaves {
    /// What a pointer to a leaf holds below bit 12; an absent pointer holds 0.
    pub(crate) link: u64,
    /// The bit of an entry's first word that makes it valid.
    pub(crate) valid: u64,
}

impl Leaves {
    /// Sets entry `index`, below the pointer at `slot`, by copying its leaf; requests see the old
    /// entry or the new one. The old leaf is freed: it is withdrawn, and readers may still be in
    /// it.
    ///
    /// # Errors
    /// If no table page is left for the copy; nothing changes.
    pub(crate) fn set<S: TableStore>(
        self,
        store: &mut S,
        slot: PhysAddr,
        index: u32,
        words: &[u64; WORDS],
    ) -> Result<(), OutOfTables> {
        let mut staged = Staged::default();
        self.stage(store, slot, (index, words), &mut staged)?;
        staged.commit(store);
        Ok(())
    }

    /// Makes `entry`, an index and its words below the pointer at `slot`, part of `staged`.
    ///
    /// # Errors
    /// If no table page is left for a copy of the leaf; `staged` is as before.
    pub(crate) fn stage<S: TableStore>(
        self,
        store: &mut S,
        slot: PhysAddr,
        entry: (u32, &[u64; WORDS]),
        staged: &mut Staged,
    ) -> Result<(), OutOfTables> {
        let leaf = match staged.copy_of(slot) {
            Some(leaf) => leaf,
            None => staged.copy(store, slot, self)?,
        };
        let (index, words) = entry;
        if !self.is_valid(store, leaf, index) {
            let live = store.live(leaf);
            store.set_live(leaf, live + 1);
        }
        write(store, entry_at(leaf, index), words);
        Ok(())
    }

    /// True if entry `index`, below the pointer at `slot`, is valid.
    pub(crate) fn holds<S: TableMemory>(self, store: &S, slot: PhysAddr, index: u32) -> bool {
        self.leaf(store, slot).is_some_and(|leaf| self.is_valid(store, leaf, index))
    }

    /// Clears entry `index`, below the pointer at `slot`: from now on its requests fault. A leaf
    /// without entries is freed. Needs no memory.
    pub(crate) fn clear<S: TableStore>(self, store: &mut S, slot: PhysAddr, index: u32) {
        let Some(leaf) = self.leaf(store, slot) else { return };
        if !self.is_valid(store, leaf, index) {
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

    fn leaf<S: TableMemory>(self, store: &S, slot: PhysAddr) -> Option<PhysAddr> {
        let pointer = store.load(slot)?;
        (pointer & self.link != 0).then(|| PhysAddr::new(pointer & ADDRESS))
    }

    fn is_valid<S: TableMemory>(self, store: &S, leaf: PhysAddr, index: u32) -> bool {
        store.load(entry_at(leaf, index)).is_some_and(|word| word & self.valid != 0)
    }
}

/// Changes of entries that are written and not in force: copies of leaves to which nothing leads.
///
/// To be ended by [`commit`](Self::commit) or [`discard`](Self::discard); one that is dropped keeps
/// its pages.
#[derive(Debug, Default)]
#[must_use]
pub struct Staged {
    /// In the order in which they come into force.
    copies: Vec<LeafCopy>,
    /// Place in `copies` of the copy for each pointer.
    by_slot: BTreeMap<PhysAddr, usize>,
}

/// A leaf that will take another's place.
#[derive(Debug)]
struct LeafCopy {
    /// Where the pointer is.
    slot: PhysAddr,
    leaf: PhysAddr,
    /// What the pointer holds below bit 12.
    link: u64,
    old: Option<PhysAddr>,
}

impl Staged {
    /// Brings all changes into force, in the order in which they were staged: one 64-bit store for
    /// each leaf. The old leaves are freed.
    pub fn commit<S: TableStore>(self, store: &mut S) {
        for copy in self.copies {
            store.store(copy.slot, copy.leaf.raw() | copy.link);
            if let Some(old) = copy.old {
                store.free_pages(old, 1);
            }
        }
    }

    /// Gives the copies back; nothing has changed.
    pub fn discard<S: TableStore>(self, store: &mut S) {
        for copy in self.copies {
            store.free_pages(copy.leaf, 1);
        }
    }

    fn copy_of(&self, slot: PhysAddr) -> Option<PhysAddr> {
        Some(self.copies.get(*self.by_slot.get(&slot)?)?.leaf)
    }

    /// Copies the leaf that the pointer at `slot` leads to, or makes an empty one.
    fn copy<S: TableStore>(
        &mut self,
        store: &mut S,
        slot: PhysAddr,
        leaves: Leaves,
    ) -> Result<PhysAddr, OutOfTables> {
        let old = leaves.leaf(store, slot);
        let leaf = store.alloc_pages(1)?;
        if let Some(old) = old {
            copy(store, old, leaf);
            let live = store.live(old);
            store.set_live(leaf, live);
        }
        self.by_slot.insert(slot, self.copies.len());
        self.copies.push(LeafCopy { slot, leaf, link: leaves.link, old });
        Ok(leaf)
    }
}

/// Words 1 to 7 first: word 0 carries the valid bit.
fn write<S: TableStore>(store: &mut S, at: PhysAddr, words: &[u64; WORDS]) {
    let [word0, rest @ ..] = words;
    for (word, offset) in rest.iter().zip((8u64..).step_by(8)) {
        store.store(within(at, offset), *word);
    }
    store.store(at, *word0);
}

fn copy<S: TableStore>(store: &mut S, from: PhysAddr, to: PhysAddr) {
    for offset in (0..LEAF_BYTES).step_by(8) {
        if let Some(word) = store.load(within(from, offset)) {
            store.store(within(to, offset), word);
        }
    }
}

//! The mapper: one for all formats.
//!
//! Invariant: every table but the root holds at least one leaf, itself or further down. [`Table::map`]
//! makes a table only to fill it and [`Table::unmap`] frees what it empties. So a table inside a
//! range means a mapping inside it, and the pages that a mapping needs follow from its two edges.
//!
//! Readers may walk meanwhile. An entry becomes visible by one store, after everything below it.

mod count;
mod map;
mod path;
mod plan;
mod unmap;

pub use map::MapError;
pub use unmap::{UnmapError, Unmapped};

use self::path::Path;
use crate::format::{Entry, Format, Geometry};
use crate::{Iova, OutOfTables, PhysAddr, TableStore};

/// A page table that this side owns: a format and a root.
///
/// The pages belong to the store; [`destroy`](Self::destroy) gives them back, dropping does not.
#[derive(Debug)]
pub struct Table<F> {
    format: F,
    root: PhysAddr,
}

impl<F: Format> Table<F> {
    /// An empty table. The pages of `store` lie within the width of the format's output.
    ///
    /// # Errors
    /// [`OutOfTables`] if there is no room for the root.
    pub fn new<S: TableStore>(format: F, store: &mut S) -> Result<Self, OutOfTables> {
        let root = store.alloc_pages(root_pages::<S>(&format.geometry()))?;
        Ok(Self { format, root })
    }

    /// Where the root table is.
    #[must_use]
    pub const fn root(&self) -> PhysAddr {
        self.root
    }

    /// The format.
    #[must_use]
    pub const fn format(&self) -> &F {
        &self.format
    }

    /// Has the entry of level 0 for `iova` fetched, so that it is at hand when it is written. Changes nothing.
    #[inline]
    pub fn look_ahead<S: TableStore>(&self, store: &S, iova: Iova) {
        if let Some(input) = self.format.input(iova)
            && let Reached { level: 1, entry: Entry::Table { next, .. }, .. } =
                self.reach(store, input, 1)
        {
            store.prefetch(self.format.geometry().entry_at(0, next, input));
        }
    }

    /// Gives all table pages back, the root's too. Nothing leads to the root any more; readers may
    /// still be inside until the store's owner has drained them.
    pub fn destroy<S: TableStore>(self, store: &mut S) {
        let geometry = self.format.geometry();
        let top = geometry.root_level();
        let mut path = Path::new(top, self.root);
        // where the lowest table begins, and its entry to look at next
        let (mut base, mut index) = (0, 0);
        loop {
            let level = path.level();
            if let Some((found, child)) = self.next_child(store, &path, index) {
                if level == 1 {
                    store.free_pages(child, table_pages::<S>(&geometry));
                    index = found + 1;
                } else {
                    (base, index) = (base | found << geometry.entry_lg2(level), 0);
                    path.down(child);
                }
            } else if level < top {
                store.free_pages(path.table(), table_pages::<S>(&geometry));
                path.up();
                index = geometry.index(level + 1, base) + 1;
                let table_lg2 = geometry.table_lg2(level + 1);
                base = base >> table_lg2 << table_lg2;
            } else {
                break;
            }
        }
        store.free_pages(self.root, root_pages::<S>(&geometry));
    }

    /// The first entry from `from` on, in the lowest table of `path`, that leads to a table: its index
    /// and that table.
    fn next_child<S: TableStore>(
        &self,
        store: &S,
        path: &Path,
        from: u64,
    ) -> Option<(u64, PhysAddr)> {
        let (geometry, level) = (self.format.geometry(), path.level());
        if level == 0 {
            return None;
        }
        (from..geometry.entries(level)).find_map(|index| {
            let at = geometry.entry_at(level, path.table(), index << geometry.entry_lg2(level));
            match self.entry(store, level, at) {
                Entry::Table { next, .. } => Some((index, next)),
                _ => None,
            }
        })
    }

    /// The entry at `at`, in a table of ours.
    #[inline]
    fn entry<S: TableStore>(&self, store: &S, level: u8, at: PhysAddr) -> Entry {
        // the store gave the page, so it loads; a store that lost it holds nothing
        self.format.decode(level, store.load(at).unwrap_or(0))
    }

    /// The entry at the lowest level, not below `lowest`, to which tables lead for `input`.
    #[inline]
    fn reach<S: TableStore>(&self, store: &S, input: u64, lowest: u8) -> Reached {
        let geometry = self.format.geometry();
        let (mut level, mut table) = (geometry.root_level(), self.root);
        loop {
            let at = geometry.entry_at(level, table, input);
            match self.entry(store, level, at) {
                Entry::Table { next, .. } if level > lowest => (level, table) = (level - 1, next),
                entry => return Reached { level, table, entry },
            }
        }
    }

    /// Adds to the entries in use in `table`. The root's are not counted: it is never freed, and one
    /// of concatenated tables has more than the store's number holds.
    #[inline]
    fn add_live<S: TableStore>(&self, store: &mut S, level: u8, table: PhysAddr, entries: u64) {
        if level != self.format.geometry().root_level() {
            let live = u64::from(store.live(table)) + entries;
            // at most 8192: the entries of a 64 KiB table
            store.set_live(table, u16::try_from(live).unwrap_or(u16::MAX));
        }
    }

    /// Takes from the entries in use in `table`.
    #[inline]
    fn sub_live<S: TableStore>(&self, store: &mut S, level: u8, table: PhysAddr, entries: u64) {
        if entries != 0 && level != self.format.geometry().root_level() {
            let live = u64::from(store.live(table)).saturating_sub(entries);
            store.set_live(table, u16::try_from(live).unwrap_or(u16::MAX));
        }
    }
}

/// Where [`Table::reach`] ended.
struct Reached {
    level: u8,
    table: PhysAddr,
    entry: Entry,
}

/// Store pages of a table below the root.
const fn table_pages<S: TableStore>(geometry: &Geometry) -> u64 {
    pages::<S>(geometry.granule_lg2)
}

/// Store pages of the root table.
const fn root_pages<S: TableStore>(geometry: &Geometry) -> u64 {
    pages::<S>(geometry.root_bytes_lg2())
}

const fn pages<S: TableStore>(bytes_lg2: u8) -> u64 {
    (1u64 << bytes_lg2).div_ceil(S::PAGE_BYTES)
}

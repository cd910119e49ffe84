//! The root table of one PCI segment, and the context tables under it (VT-d 5.0, 9.2 and 9.3).

use viommu_pgtable::{OutOfTables, PhysAddr, TableStore};

use super::context::{self, ContextEntry};
use super::{PRESENT, TABLE_BYTES, follow};
use crate::leaf::within;

/// Bytes of a root entry: the context tables of devices 0 to 15, then of 16 to 31.
const ENTRY_BYTES: u64 = 16;
const _: () = assert!(256 * ENTRY_BYTES == TABLE_BYTES);
const _: () = assert!(128 * context::ENTRY_BYTES == TABLE_BYTES);

/// The address of the root table's pointer to the context table of `bdf`.
pub(super) fn pointer_at(root: PhysAddr, bdf: u16) -> PhysAddr {
    let [devfn, bus] = bdf.to_le_bytes();
    within(root, u64::from(bus) * ENTRY_BYTES + u64::from(devfn >> 7) * 8)
}

/// The address of the context entry of `bdf` in its context table.
pub(super) fn context_at(table: PhysAddr, bdf: u16) -> PhysAddr {
    let [devfn, _] = bdf.to_le_bytes();
    within(table, u64::from(devfn & 0x7f) * context::ENTRY_BYTES)
}

/// The root table of a segment: the writer's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootTable {
    root: PhysAddr,
}

impl RootTable {
    /// An empty root table: requests of every function are blocked.
    ///
    /// # Errors
    /// If no table page is left.
    pub fn new<S: TableStore>(store: &mut S) -> Result<Self, OutOfTables> {
        Ok(Self { root: store.alloc_pages(1)? })
    }

    /// Its address, which readers start from.
    #[must_use]
    pub const fn root(&self) -> PhysAddr {
        self.root
    }

    /// Writes the context entry of `bdf`, once: before any request of the function is looked up. A
    /// context entry is 32 bytes and never changes while it is present.
    ///
    /// # Errors
    /// If no table page is left; nothing changes.
    pub fn set_context<S: TableStore>(
        &self,
        store: &mut S,
        bdf: u16,
        entry: &ContextEntry,
    ) -> Result<(), OutOfTables> {
        let pointer_at = pointer_at(self.root, bdf);
        let known = store.load(pointer_at).and_then(follow);
        let table = match known {
            Some(table) => table,
            None => store.alloc_pages(1)?,
        };
        let at = context_at(table, bdf);
        let [word0, word1] = entry.pack();
        store.store(within(at, 8), word1);
        store.store(at, word0); // last: it carries the present bit
        if known.is_none() {
            store.store(pointer_at, table.raw() | PRESENT);
        }
        Ok(())
    }
}

//! Whose memory a pointer leads into.
//!
//! The table region and guest memory are different address spaces, although the addresses of both
//! are physical ones to the hardware that the tables are written for. Which of them a pointer leads
//! into is chosen once, from the entry that the daemon wrote, and inherited by everything below
//! that entry. So a guest's table, or a guest's context descriptor, never leads into the region,
//! whatever its bytes say.

use viommu_pgtable::{Behind, Fault, PhysAddr, TableMemory};

use crate::smmuv3::Stage2;

/// The memory that a table's pointers lead into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    /// The daemon's own structures and tables.
    Tables,
    /// Guest memory, by guest-physical address.
    Guest,
    /// Guest memory, by an address that the requester's second level translates.
    SecondLevel,
}

/// What a lookup reads: the spaces of one requester, seen by one reader.
///
/// No method blocks or panics, and each takes a bounded number of steps.
pub trait Spaces {
    /// What holds the daemon's structures.
    type Tables: TableMemory + ?Sized;

    /// The daemon's structures.
    fn tables(&self) -> &Self::Tables;

    /// The lowest address of the daemon's structures. A pointer in an entry that the daemon wrote
    /// leads to them if it is this or more, and otherwise to the guest's.
    fn table_base(&self) -> PhysAddr;

    /// The word at guest-physical address `at`, little-endian, loaded once and as a whole; `None`
    /// where the guest has no memory, which includes all addresses of the daemon's structures.
    ///
    /// `at` is a multiple of 8.
    fn load_guest(&self, at: PhysAddr) -> Option<u64>;

    /// The word at `at`, an address that `second` translates to guest memory: an access that reads,
    /// on behalf of a first level. `None` where the second level leads to no memory.
    ///
    /// `at` is a multiple of 8.
    ///
    /// # Errors
    /// How the second level refused.
    fn load_through(&self, second: &Stage2, at: PhysAddr) -> Result<Option<u64>, Fault>;

    /// The side that `pointer`, which the daemon wrote, leads to: [`Space::Tables`] or
    /// [`Space::Guest`]. Under a second level the guest's side is [`Space::SecondLevel`].
    fn space_of(&self, pointer: PhysAddr) -> Space {
        if pointer >= self.table_base() { Space::Tables } else { Space::Guest }
    }
}

/// The guest's memory, as far as it lies below the tables.
#[derive(Debug)]
pub(crate) struct GuestSide<'a, G: ?Sized> {
    memory: &'a G,
    table_base: PhysAddr,
}

impl<G: TableMemory + ?Sized> TableMemory for GuestSide<'_, G> {
    #[inline]
    fn load(&self, at: PhysAddr) -> Option<u64> {
        if at < self.table_base { self.memory.load(at) } else { None }
    }

    #[inline]
    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
        if at < self.table_base { self.memory.compare_exchange(at, old, new) } else { None }
    }
}

/// The spaces of a reader that has the region and the guest's memory at hand.
#[derive(Debug)]
pub struct Memories<'a, T: ?Sized, G: ?Sized> {
    pub(crate) tables: &'a T,
    pub(crate) guest: GuestSide<'a, G>,
    pub(crate) table_base: PhysAddr,
}

impl<'a, T: TableMemory + ?Sized, G: TableMemory + ?Sized> Memories<'a, T, G> {
    /// `tables` from `table_base` on, a multiple of 4096; of `guest`, what lies below.
    #[must_use]
    pub const fn new(tables: &'a T, guest: &'a G, table_base: PhysAddr) -> Self {
        Self { tables, guest: GuestSide { memory: guest, table_base }, table_base }
    }
}

impl<T: TableMemory + ?Sized, G: TableMemory + ?Sized> Spaces for Memories<'_, T, G> {
    type Tables = T;

    fn tables(&self) -> &T {
        self.tables
    }

    fn table_base(&self) -> PhysAddr {
        self.table_base
    }

    fn load_guest(&self, at: PhysAddr) -> Option<u64> {
        self.guest.load(at)
    }

    fn load_through(&self, second: &Stage2, at: PhysAddr) -> Result<Option<u64>, Fault> {
        let behind = Behind::new(*second.format(), self.tables, second.root(), &self.guest);
        match (behind.load(at), behind.take_fault()) {
            (None, Some(fault)) => Err(fault),
            (word, _) => Ok(word),
        }
    }
}

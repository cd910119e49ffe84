//! The guest's page tables, where the guest keeps them: in its memory.

use viommu_pgtable::{PhysAddr, TableMemory};

/// Guest memory of a reader that reads none of the guest's tables: there is nothing at any address,
/// and an access through a bound table faults.
#[derive(Debug)]
pub(crate) struct NoGuestMemory;

impl TableMemory for NoGuestMemory {
    fn load(&self, _: PhysAddr) -> Option<u64> {
        None
    }
}

#[cfg(feature = "vm-memory")]
mod in_vm_memory {
    use std::sync::atomic::{AtomicU64, Ordering};

    use viommu_pgtable::{PhysAddr, TableMemory};
    use vm_memory::bitmap::Bitmap;
    use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileMemory};

    /// Bytes of a table entry.
    const ENTRY_BYTES: usize = 8;

    /// Page tables in guest memory `M`, which is addressed by guest-physical address: what
    /// [`Guard::translate_with`](crate::Guard::translate_with) reads a bound table from.
    ///
    /// Accessed and dirty flags are set in memory that may be written, and marked in its dirty
    /// bitmap as other writes are; in other memory they are not, and the access faults.
    #[derive(Debug)]
    pub struct GuestTables<'m, M: ?Sized>(&'m M);

    impl<'m, M: GuestMemory + ?Sized> GuestTables<'m, M> {
        /// The tables in `memory`.
        #[must_use]
        pub const fn new(memory: &'m M) -> Self {
            Self(memory)
        }

        /// What `use_entry` makes of the entry at `at`; `None` where there is no memory for
        /// `access`.
        fn entry<R>(
            &self,
            at: PhysAddr,
            access: Permissions,
            use_entry: impl FnOnce(&AtomicU64) -> R,
        ) -> Option<R> {
            let at = GuestAddress(at.raw());
            let slice = self.0.get_slices(at, ENTRY_BYTES, access).ok()?.next()?.ok()?;
            let entry = slice.get_atomic_ref::<AtomicU64>(0).ok()?;
            let result = use_entry(entry);
            if access.has_write() {
                slice.bitmap().mark_dirty(0, ENTRY_BYTES);
            }
            Some(result)
        }
    }

    impl<M: GuestMemory + ?Sized> TableMemory for GuestTables<'_, M> {
        fn load(&self, at: PhysAddr) -> Option<u64> {
            // Acquire: pairs with whatever the guest's driver orders its table writes by
            self.entry(at, Permissions::Read, |entry| u64::from_le(entry.load(Ordering::Acquire)))
        }

        fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
            self.entry(at, Permissions::ReadWrite, |entry| {
                // AcqRel: the flag comes before the access; pairs with the guest's own exchanges
                let order = (Ordering::AcqRel, Ordering::Acquire);
                let done = entry.compare_exchange(old.to_le(), new.to_le(), order.0, order.1);
                done.map(drop).map_err(u64::from_le)
            })
        }
    }
}

#[cfg(feature = "vm-memory")]
pub use in_vm_memory::GuestTables;

//! Two stages: a first level whose every table access and output goes through a second.

use core::cell::Cell;

use crate::format::Format;
use crate::{Access, Fault, FaultKind, Iova, PhysAddr, Purpose, TableMemory, Translation, walk};

/// Memory as software under a second level sees it: an address is translated, then used.
///
/// The second level's own tables are read from `tables`, everything else from `memory`: no address that
/// the software underneath wrote is ever looked up in `tables`.
#[derive(Debug)]
pub struct Behind<'a, F, T: ?Sized, M: ?Sized> {
    format: F,
    tables: &'a T,
    root: PhysAddr,
    memory: &'a M,
    /// Why the last access did not reach memory, if the second level is the reason.
    fault: Cell<Option<Fault>>,
}

impl<'a, F: Format, T: TableMemory + ?Sized, M: TableMemory + ?Sized> Behind<'a, F, T, M> {
    /// `memory` behind the second level whose root is at `root` in `tables`.
    #[must_use]
    pub const fn new(format: F, tables: &'a T, root: PhysAddr, memory: &'a M) -> Self {
        Self { format, tables, root, memory, fault: Cell::new(None) }
    }

    /// Where the second level leads `input`.
    ///
    /// # Errors
    /// The second level's [`Fault`].
    #[inline]
    pub fn translate(&self, input: PhysAddr, access: Access) -> Result<Translation, Fault> {
        walk(&self.format, self.tables, self.root, Iova::new(input.raw()), access)
    }

    /// Why the last access as a [`TableMemory`] did not reach memory, if the second level is the reason.
    #[must_use]
    pub const fn take_fault(&self) -> Option<Fault> {
        self.fault.replace(None)
    }

    fn reach(&self, at: PhysAddr, access: Access) -> Option<PhysAddr> {
        match self.translate(at, access) {
            Ok(translation) => Some(translation.oa),
            Err(fault) => {
                self.fault.set(Some(Fault { purpose: Purpose::TableEntry, ..fault }));
                None
            }
        }
    }
}

impl<F: Format, T: TableMemory + ?Sized, M: TableMemory + ?Sized> TableMemory
    for Behind<'_, F, T, M>
{
    #[inline]
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.memory.load(self.reach(at, Access::READ)?)
    }

    /// Needs the second level's right to write, too.
    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
        self.memory.compare_exchange(self.reach(at, Access::RW)?, old, new)
    }
}

/// Follows `iova` through the first level at `root`, whose tables and outputs lie behind a second level.
///
/// The size is that of the smaller leaf, the access what both grant. Takes at most
/// `n * (m + 1) + m` steps with `n` and `m` levels, and as many again for each flag that must be set.
///
/// # Errors
/// The [`Fault`] of the stage that ended it; of the second with [`Purpose::TableEntry`] if it was the
/// way to an entry of the first.
#[inline]
pub fn walk_nested<F, G, T, M>(
    first: &F,
    root: PhysAddr,
    second: &Behind<'_, G, T, M>,
    iova: Iova,
    access: Access,
) -> Result<Translation, Fault>
where
    F: Format,
    G: Format,
    T: TableMemory + ?Sized,
    M: TableMemory + ?Sized,
{
    second.fault.set(None);
    let upper = match walk(first, second, root, iova, access) {
        Ok(upper) => upper,
        Err(fault) => {
            let lost = matches!(fault.kind, FaultKind::Unreadable | FaultKind::NotUpdated);
            let cause = second.take_fault().filter(|_| lost);
            return Err(cause.unwrap_or(fault));
        }
    };
    let lower = second.translate(upper.oa, access)?;
    Ok(Translation {
        oa: lower.oa,
        size_lg2: upper.size_lg2.min(lower.size_lg2),
        access: upper.access.intersection(lower.access),
    })
}

//! The way from the root down to a table.

use crate::PhysAddr;
use crate::format::MAX_LEVELS;

/// The tables from the root down to one of them, the lowest.
pub(super) struct Path {
    tables: [PhysAddr; MAX_LEVELS as usize],
    level: u8,
}

impl Path {
    pub(super) const fn new(root_level: u8, root: PhysAddr) -> Self {
        Self { tables: [root; MAX_LEVELS as usize], level: root_level }
    }

    /// Level of the lowest table.
    #[inline]
    pub(super) const fn level(&self) -> u8 {
        self.level
    }

    /// The lowest table.
    #[inline]
    pub(super) fn table(&self) -> PhysAddr {
        self.tables.get(usize::from(self.level)).copied().unwrap_or_default()
    }

    /// Goes down to the table at `next`. Not from level 0.
    #[inline]
    pub(super) fn down(&mut self, next: PhysAddr) {
        self.level -= 1;
        if let Some(table) = self.tables.get_mut(usize::from(self.level)) {
            *table = next;
        }
    }

    /// Goes back up one level. Not from the root.
    #[inline]
    pub(super) const fn up(&mut self) {
        self.level += 1;
    }
}

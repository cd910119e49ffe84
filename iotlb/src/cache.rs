//! What a reader remembers of the tables, all of it for one epoch: translations, where walks of
//! their neighbours can begin, and routes. Nothing here remembers that something is *not* mapped.
//!
//! It knows no shared word but those of the tables, so `models` can run it over others.

use std::cell::Cell;
use std::fmt;

use viommu_pasid::{EndpointId, Pasid, Route, Structures};
use viommu_pgtable::{Access, TableMemory};

use crate::conn::ReaderCounters;
use crate::fault::FaultReason;
use crate::path::{self, Leaf, Tables};
use crate::routes::Routes;
use crate::shortcuts::Shortcuts;
use crate::tlb::Tlb;

/// One access to one address.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) pasid: Option<Pasid>,
    pub(crate) iova: u64,
    pub(crate) access: Access,
}

impl Wanted {
    /// What the private TLB tells translations apart by: the PASID, and whether the access is
    /// privileged, because tables may grant other rights then.
    #[inline]
    fn tag(&self) -> u32 {
        const PRIVILEGED: u32 = Pasid::MAX.raw() + 1;
        let privileged = if self.access.contains(Access::PRIVILEGED) { PRIVILEGED } else { 0 };
        self.pasid.map_or(0, Pasid::raw) | privileged
    }
}

/// Whose walks these are, and in which memory.
pub(crate) struct Origin<'a, T: ?Sized> {
    pub(crate) tables: Tables<'a, T>,
    pub(crate) structures: &'a Structures,
    pub(crate) endpoint: EndpointId,
}

/// What one reader remembers.
pub(crate) struct Cache {
    tlb: Tlb,
    shortcuts: Shortcuts,
    routes: Routes,
    hits: Cell<u64>,
    misses: Cell<u64>,
    flushes: Cell<u64>,
}

/// Without the entries: there are tens of thousands.
impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Cache").field(&self.counters()).finish()
    }
}

impl Cache {
    /// Nothing yet.
    pub(crate) fn new() -> Self {
        Self {
            tlb: Tlb::new(),
            shortcuts: Shortcuts::new(),
            routes: Routes::new(),
            hits: Cell::new(0),
            misses: Cell::new(0),
            flushes: Cell::new(0),
        }
    }

    /// Where `wanted` leads, if that is known since the last [`flush`](Self::flush).
    #[inline]
    pub(crate) fn find(&self, wanted: Wanted) -> Option<Leaf> {
        let leaf = self.tlb.find(wanted.tag(), wanted.iova, wanted.access)?;
        self.hits.set(self.hits.get() + 1);
        Some(leaf)
    }

    /// Where `wanted` leads, by the tables, as far as it is not known since `epoch` began: shortcuts
    /// and routes carry the epoch in which they were noted, for they are not flushed.
    #[inline]
    pub(crate) fn walk<T: TableMemory + ?Sized>(
        &self,
        from: &Origin<'_, T>,
        epoch: u64,
        wanted: Wanted,
    ) -> Result<Leaf, FaultReason> {
        self.misses.set(self.misses.get() + 1);
        let (tag, Wanted { iova, access, .. }) = (wanted.tag(), wanted);
        if let Some(shortcut) = self.shortcuts.find(epoch, tag, iova)
            && let Some(leaf) = path::follow_from(&from.tables, &shortcut, iova, access)
        {
            self.tlb.insert(tag, iova, leaf);
            return Ok(leaf);
        }
        let route = self.route(from, epoch, wanted.pasid)?;
        let (leaf, shortcut) = path::follow(&from.tables, &route, iova, access)?;
        self.tlb.insert(tag, iova, leaf);
        if let Some(shortcut) = shortcut {
            self.shortcuts.insert(epoch, tag, iova, shortcut);
        }
        Ok(leaf)
    }

    fn route<T: TableMemory + ?Sized>(
        &self,
        from: &Origin<'_, T>,
        epoch: u64,
        pasid: Option<Pasid>,
    ) -> Result<Route, FaultReason> {
        if let Some(known) = self.routes.find(epoch, pasid) {
            return Ok(known);
        }
        let route = path::find(&from.tables, from.structures, from.endpoint, pasid)?;
        self.routes.insert(epoch, pasid, route);
        Ok(route)
    }

    /// Forgets all translations; routes and shortcuts are out of date with their epoch.
    pub(crate) fn flush(&self) {
        self.tlb.flush();
        self.flushes.set(self.flushes.get() + 1);
    }

    /// What it did so far.
    #[inline]
    pub(crate) fn counters(&self) -> ReaderCounters {
        let (hits, misses, flushes) = (self.hits.get(), self.misses.get(), self.flushes.get());
        ReaderCounters { hits, misses, flushes, faults_dropped: 0 }
    }
}

//! The routes that a reader remembers: what the structures say of a PASID, looked up once an epoch.

use std::cell::Cell;

use viommu_pasid::{Pasid, Route};

/// Routes that a reader remembers: PASIDs in turn beyond this many are looked up each time.
const ROUTES: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Entry {
    epoch: u64,
    pasid: Option<Pasid>,
    route: Route,
}

/// The routes that a reader remembers: direct-mapped.
pub(crate) struct Routes {
    entries: Box<[Cell<Option<Entry>>]>,
}

impl Routes {
    pub(crate) fn new() -> Self {
        Self { entries: vec![Cell::new(None); ROUTES].into_boxed_slice() }
    }

    fn place(&self, pasid: Option<Pasid>) -> Option<&Cell<Option<Entry>>> {
        self.entries.get(pasid.map_or(0, Pasid::raw) as usize % ROUTES)
    }

    /// The route of `pasid` that was noted in `epoch`.
    pub(crate) fn find(&self, epoch: u64, pasid: Option<Pasid>) -> Option<Route> {
        let known = self.place(pasid)?.get()?;
        ((known.epoch, known.pasid) == (epoch, pasid)).then_some(known.route)
    }

    /// Notes the route of `pasid` in `epoch`.
    pub(crate) fn insert(&self, epoch: u64, pasid: Option<Pasid>, route: Route) {
        if let Some(place) = self.place(pasid) {
            place.set(Some(Entry { epoch, pasid, route }));
        }
    }
}

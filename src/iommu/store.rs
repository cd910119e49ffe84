//! The mappings of one domain, in order.

use std::collections::BTreeMap;

use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

/// An UNMAP's range covers a part of a mapping (U4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WouldSplit;

/// What a mapping's start leads to.
#[derive(Debug, Clone, Copy)]
struct Entry {
    last: Iova,
    oa: PhysAddr,
    access: Access,
}

/// Mappings that do not overlap, ordered by their starts.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    by_start: BTreeMap<Iova, Entry>,
}

impl Mappings {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.by_start.len()
    }

    /// True if a mapping shares an address with `range`.
    pub(super) fn overlaps(&self, range: &IovaRange) -> bool {
        self.last_not_after(range.last()).is_some_and(|(_, entry)| entry.last >= range.start())
    }

    /// Adds a mapping that [`overlaps`](Self::overlaps) none.
    pub(super) fn insert(&mut self, mapping: &Mapping) {
        let entry =
            Entry { last: mapping.iova().last(), oa: mapping.oa(), access: mapping.access() };
        self.by_start.insert(mapping.iova().start(), entry);
    }

    /// Checks that each mapping that shares an address with `range` lies inside it. Since mappings do
    /// not overlap, only those at its two ends can fail.
    pub(super) fn check_whole(&self, range: &IovaRange) -> Result<(), WouldSplit> {
        let Some((start, entry)) = self.last_not_after(range.last()) else { return Ok(()) };
        if entry.last < range.start() {
            return Ok(());
        }
        let splits_at_end = entry.last > range.last() || start < range.start();
        if splits_at_end || (start > range.start() && self.straddles(range.start())) {
            return Err(WouldSplit);
        }
        Ok(())
    }

    /// Removes the mappings inside `range` and hands each out, in order. `range` splits none.
    pub(super) fn remove(&mut self, range: &IovaRange, mut removed: impl FnMut(&Mapping)) {
        while let Some((&start, _)) = self.by_start.range(range.start()..=range.last()).next() {
            let Some(entry) = self.by_start.remove(&start) else { return };
            if let Some(mapping) = mapping(start, &entry) {
                removed(&mapping);
            }
        }
    }

    /// The mapping that starts last of those that start at `iova` or before.
    fn last_not_after(&self, iova: Iova) -> Option<(Iova, &Entry)> {
        self.by_start.range(..=iova).next_back().map(|(start, entry)| (*start, entry))
    }

    /// True if a mapping starts before `iova` and reaches it.
    fn straddles(&self, iova: Iova) -> bool {
        self.by_start.range(..iova).next_back().is_some_and(|(_, entry)| entry.last >= iova)
    }
}

/// The mapping that was put in; always `Some`, for it was one then.
fn mapping(start: Iova, entry: &Entry) -> Option<Mapping> {
    let range = IovaRange::new(start, entry.last)?;
    Mapping::new(range, entry.oa, entry.access).ok()
}

//! What was taken out of the tables since the last drain, as far as pins need to know.

use viommu_pasid::{EndpointId, Requester};
use viommu_pgtable::{Iova, IovaRange};

/// Withdrawals that are told apart: one for each request of the largest request queue, which is one
/// batch. With more, a drain waits for every pin.
const MAX_TOLD_APART: usize = 1024;

/// Translations that were withdrawn. Table pages need no mention: a drain waits for all readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawn {
    /// A range of one requester's inputs: UNMAP, for each requester that goes through the domain
    /// alone, and INVALIDATE.
    Range {
        /// Who can no longer use it.
        requester: Requester,
        /// What can no longer be used.
        range: IovaRange,
    },
    /// All of one requester: DETACH, or an ATTACH that replaces; an UNMAP below its bound table, of
    /// which nobody knows the inputs that lead there.
    Requester(Requester),
    /// All of an endpoint, its PASIDs included.
    Endpoint(EndpointId),
    /// Everything: reset, another memory table.
    Everything,
}

impl Withdrawn {
    fn covers(&self, requester: Requester, first: u64, last: u64) -> bool {
        match self {
            Self::Range { requester: whose, range } => {
                *whose == requester && range.start().raw() <= last && first <= range.last().raw()
            }
            Self::Requester(whose) => *whose == requester,
            Self::Endpoint(endpoint) => *endpoint == requester.endpoint,
            Self::Everything => true,
        }
    }

    /// One withdrawal in place of two, if they are of one requester and leave no gap.
    fn joined(&self, other: &Self) -> Option<Self> {
        match (self, other) {
            (Self::Range { requester, range: a }, Self::Range { requester: theirs, range: b })
                if requester == theirs =>
            {
                Some(Self::Range { requester: *requester, range: join(a, b)? })
            }
            _ => (self == other).then_some(*self),
        }
    }
}

/// The range from the first address of both to the last, if no address in between is in neither.
fn join(a: &IovaRange, b: &IovaRange) -> Option<IovaRange> {
    let reaches = |from: &IovaRange, to: Iova| from.last().raw() >= to.raw().saturating_sub(1);
    if !reaches(a, b.start()) || !reaches(b, a.start()) {
        return None;
    }
    IovaRange::new(a.start().min(b.start()), a.last().max(b.last()))
}

/// The withdrawals since the last drain.
#[derive(Debug, Default)]
pub(crate) struct WithdrawnSet {
    list: Vec<Withdrawn>,
}

impl WithdrawnSet {
    pub(crate) const fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    /// Adds one, to the last one if they are neighbours: guests unmap in order. Beyond the limit
    /// all of them become [`Withdrawn::Everything`].
    pub(crate) fn add(&mut self, withdrawn: Withdrawn) {
        if self.list.first() == Some(&Withdrawn::Everything) {
            return;
        }
        if let Some(last) = self.list.last_mut()
            && let Some(joined) = last.joined(&withdrawn)
        {
            *last = joined;
        } else if withdrawn == Withdrawn::Everything || self.list.len() == MAX_TOLD_APART {
            self.list.clear();
            self.list.push(Withdrawn::Everything);
        } else {
            self.list.push(withdrawn);
        }
    }

    /// True if an access of `requester` to `first..=last` (any two numbers) may use what was
    /// withdrawn.
    pub(crate) fn covers(&self, requester: Requester, first: u64, last: u64) -> bool {
        self.list.iter().any(|withdrawn| withdrawn.covers(requester, first, last))
    }
}

#[cfg(test)]
mod tests {
    use viommu_pgtable::Iova;

    use super::*;

    fn range(start: u64) -> Withdrawn {
        let requester = Requester::rid(EndpointId::new(8));
        let range = IovaRange::with_len(Iova::new(start), 0x1000).unwrap();
        Withdrawn::Range { requester, range }
    }

    #[test]
    fn a_range_covers_its_requesters_accesses_that_touch_it() {
        let mut set = WithdrawnSet::default();
        set.add(range(0x1000));
        let us = Requester::rid(EndpointId::new(8));
        assert!(set.covers(us, 0x1fff, 0x2fff) && set.covers(us, 0, u64::MAX));
        assert!(!set.covers(us, 0x2000, 0x2fff) && !set.covers(us, 0, 0xfff));
        assert!(!set.covers(Requester::rid(EndpointId::new(9)), 0x1000, 0x1fff));
    }

    #[test]
    fn more_withdrawals_than_are_told_apart_become_everything() {
        let mut set = WithdrawnSet::default();
        for n in 0..=MAX_TOLD_APART as u64 {
            assert_eq!(set.list.len(), usize::try_from(n).unwrap());
            set.add(range(n << 13));
        }
        assert_eq!(set.list, [Withdrawn::Everything]);
        set.add(range(0));
        assert_eq!(set.list, [Withdrawn::Everything]);
    }

    #[test]
    fn neighbours_are_one_withdrawal_in_either_order_and_to_the_last_address() {
        let mut set = WithdrawnSet::default();
        for start in [0x3000, 0x4000, 0x2000, 0x2000] {
            set.add(range(start));
        }
        let us = Requester::rid(EndpointId::new(8));
        assert_eq!(set.list.len(), 1);
        assert!(set.covers(us, 0x2000, 0x2000) && set.covers(us, 0x4fff, 0x4fff));
        assert!(!set.covers(us, 0x1000, 0x1fff) && !set.covers(us, 0x5000, 0x5fff));
        set.add(range(0x6000));
        assert_eq!(set.list.len(), 2, "a gap");
        let last = IovaRange::new(Iova::new(u64::MAX - 0xfff), Iova::new(u64::MAX)).unwrap();
        let first = IovaRange::new(Iova::new(0), Iova::new(0xfff)).unwrap();
        assert_eq!(join(&last, &first), None, "the ends of the space are no neighbours");
        assert_eq!(join(&last, &last), Some(last));
    }
}

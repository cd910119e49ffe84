//! What was taken out of the tables since the last drain, as far as pins need to know.

use viommu_pasid::{EndpointId, Requester};
use viommu_pgtable::IovaRange;

/// Withdrawals that are told apart; with more, a drain waits for every pin.
const MAX_TOLD_APART: usize = 64;

/// Translations that were withdrawn. Table pages need no mention: a drain waits for all readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawn {
    /// A range of one requester: UNMAP, for each requester that used the domain.
    Range {
        /// Who can no longer use it.
        requester: Requester,
        /// What can no longer be used.
        range: IovaRange,
    },
    /// All of one requester: DETACH, or an ATTACH that replaces.
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

    /// Adds one; beyond the limit all of them become [`Withdrawn::Everything`].
    pub(crate) fn add(&mut self, withdrawn: Withdrawn) {
        if withdrawn == Withdrawn::Everything || self.list.len() == MAX_TOLD_APART {
            self.list.clear();
            self.list.push(Withdrawn::Everything);
        } else if self.list.first() != Some(&Withdrawn::Everything) {
            self.list.push(withdrawn);
        }
    }

    /// True if an access of `requester` to `first..=last` (any two numbers) may use what was withdrawn.
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
            set.add(range(n << 12));
        }
        assert_eq!(set.list, [Withdrawn::Everything]);
        set.add(range(0));
        assert_eq!(set.list, [Withdrawn::Everything]);
    }
}

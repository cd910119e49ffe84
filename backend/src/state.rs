//! What calls of [`HostIommu`](crate::HostIommu) make, as maps: the model that backends are
//! compared with.

use std::collections::BTreeMap;

use viommu_pasid::{FirstTable, Memories, Requester, Route, Space};
use viommu_pgtable::{Access, Iova, Mapping, PhysAddr, TableMemory};

use crate::{DomainId, Output, Target};

/// The state that the calls so far have made: what two backends, or two moments, are compared by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct State {
    /// The mappings of each domain, by first IOVA.
    pub domains: BTreeMap<DomainId, BTreeMap<Iova, Mapping>>,
    /// The tables that are bound, and where their output goes.
    pub bound: BTreeMap<DomainId, (FirstTable, Output)>,
    /// Where each requester goes; one that is missing is blocked.
    pub targets: BTreeMap<Requester, Target>,
    /// Whose accesses wait.
    pub parked: Vec<Requester>,
}

impl State {
    /// Where an access of one byte leads, or `None` if it is refused, or if it goes through a bound
    /// table: the guest's memory is not known here.
    #[must_use]
    pub fn translate(&self, requester: Requester, iova: Iova, access: Access) -> Option<PhysAddr> {
        self.translate_with(&NoGuestMemory, requester, iova, access)
    }

    /// [`translate`](Self::translate), through tables in `guest` memory as well. Their accessed and
    /// dirty flags are set there.
    #[must_use]
    pub fn translate_with(
        &self,
        guest: &dyn TableMemory,
        requester: Requester,
        iova: Iova,
        access: Access,
    ) -> Option<PhysAddr> {
        let domain = match self.targets.get(&requester)? {
            Target::Blocked => return None,
            Target::Identity => return Some(PhysAddr::new(iova.raw())),
            Target::Domain(domain) => *domain,
        };
        let Some((table, output)) = self.bound.get(&domain) else {
            return self.mapped(domain, iova, access);
        };
        match output {
            Output::GuestPhysical => walk(table, guest, iova, access),
            Output::Through(parent) => {
                let below = Below { state: self, parent: *parent, guest };
                let output = walk(table, &below, iova, access)?;
                self.mapped(*parent, Iova::new(output.raw()), access)
            }
        }
    }

    /// Where the mappings of `domain` lead.
    fn mapped(&self, domain: DomainId, iova: Iova, access: Access) -> Option<PhysAddr> {
        let (_, mapping) = self.domains.get(&domain)?.range(..=iova).next_back()?;
        let usable = mapping.iova().contains(iova) && mapping.access().permits(access);
        let offset = iova.raw().checked_sub(mapping.iova().start().raw())?;
        usable.then(|| mapping.oa().checked_add(offset))?
    }
}

/// Guest memory whose tables are not known.
struct NoGuestMemory;

impl TableMemory for NoGuestMemory {
    fn load(&self, _: PhysAddr) -> Option<u64> {
        None
    }
}

/// Guest memory as a bound table finds it: through the mappings of a domain.
struct Below<'a> {
    state: &'a State,
    parent: DomainId,
    guest: &'a dyn TableMemory,
}

impl Below<'_> {
    fn reach(&self, at: PhysAddr, access: Access) -> Option<PhysAddr> {
        self.state.mapped(self.parent, Iova::new(at.raw()), access)
    }
}

impl TableMemory for Below<'_> {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.guest.load(self.reach(at, Access::READ)?)
    }

    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
        self.guest.compare_exchange(self.reach(at, Access::RW)?, old, new)
    }
}

/// Where a table whose pointers lead into `memory` leads.
fn walk(
    table: &FirstTable,
    memory: &dyn TableMemory,
    iova: Iova,
    access: Access,
) -> Option<PhysAddr> {
    // no tables of a daemon: all that is not the guest's is out of reach
    let memories = Memories::new(&NoGuestMemory, memory, PhysAddr::new(u64::MAX));
    let route = Route::First { table: *table, space: Space::Guest };
    memories.translate(&route, iova, access).ok().map(|page| page.oa)
}

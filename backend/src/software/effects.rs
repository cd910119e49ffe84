//! The effects, as the state machine asks for them.

use viommu_iotlb::{State, Withdrawn};
use viommu_pasid::{EndpointId, FirstTable, Requester};
use viommu_pgtable::{Iova, IovaRange, Mapping};

use super::budget::Budget;
use super::domain::{Bound, Domain};
use super::layout::{DomainTables, Form};
use super::{NO_DOMAIN, SoftwareIommu};
use crate::{
    Capabilities, DomainId, EndpointCapabilities, HostError, HostIommu, Output, Role, Target,
};

impl SoftwareIommu {
    /// Makes the table of `form` for `domain`, which is there already unless the domain is empty.
    fn prepare_empty(&mut self, domain: DomainId, form: Form) -> Result<(), HostError> {
        let domain = self.domains.get_mut(&domain).ok_or(NO_DOMAIN)?;
        let store = &mut Budget(self.hub.region_mut());
        domain.prepare_empty(&self.layout.formats(), form, store)
    }

    /// Withdraws all that goes through the table of `domain`, or its mappings alone.
    fn withdraw_attached(&mut self, domain: DomainId, range: Option<IovaRange>) {
        let hub = &mut self.hub;
        self.books.withdraw_attached(domain, range, &mut |what| hub.withdraw(what));
    }

    /// Binds or unbinds: what is attached to `domain` is led anew, all of it or nothing changes.
    fn rebind(&mut self, id: DomainId, bound: Option<Bound>) -> Result<(), HostError> {
        let domain = self.domains.get_mut(&id).ok_or(NO_DOMAIN)?;
        let before = std::mem::replace(&mut domain.bound, bound);
        let attached: Vec<Requester> = self.books.attached(id).collect();
        if let Err(error) = self.lead(&attached, Target::Domain(id)) {
            if let Some(domain) = self.domains.get_mut(&id) {
                domain.bound = before;
            }
            return Err(error);
        }
        self.books.orphan(id);
        if let Some(Output::Through(parent)) = bound.map(|bound| bound.output)
            && parent != id
        {
            self.books.adopt(parent, id);
        }
        self.withdraw_attached(id, None);
        Ok(())
    }

    /// Gives back the tables of an empty domain that is given no mappings while it is bound.
    fn strip(&mut self, id: DomainId) {
        if self.books.is_parent(id) {
            return;
        }
        let empty = DomainTables::new(&self.layout.formats());
        if let Some(domain) = self.domains.get_mut(&id) {
            std::mem::replace(&mut domain.tables, empty).destroy(self.hub.region_mut());
        }
    }

    /// Cuts off whoever goes through a domain whose tables are not what the caller's books say.
    fn block_all(&mut self, domain: DomainId) {
        let attached: Vec<Requester> = self.books.through(domain).collect();
        for requester in attached {
            self.block(requester);
        }
    }
}

impl HostIommu for SoftwareIommu {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn endpoint_capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        let Some(pasid_bits) = self.endpoints.get(&endpoint) else {
            return EndpointCapabilities::default();
        };
        let all = self.layout.endpoint_capabilities(self.table_base);
        EndpointCapabilities { pasid_bits: *pasid_bits, ..all }
    }

    fn create_domain(&mut self, domain: DomainId) -> Result<(), HostError> {
        let tag = self.take_tag();
        self.domains.insert(domain, Domain::new(&self.layout.formats(), tag));
        Ok(())
    }

    fn destroy_domain(&mut self, id: DomainId) {
        self.books.orphan(id);
        if let Some(domain) = self.domains.remove(&id) {
            domain.tables.destroy(self.hub.region_mut());
        }
    }

    /// A second level for VT-d; for SMMUv3 stage 1, stage 2, or both where both roles are played.
    /// Nothing leads to the new table yet; one that finds no room is given back before this
    /// returns.
    fn prepare(
        &mut self,
        domain: DomainId,
        role: Role,
        mappings: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError> {
        let form = match role {
            Role::Alone(_) => Form::Alone,
            Role::SecondLevel => Form::Below,
        };
        let domain = self.domains.get_mut(&domain).ok_or(NO_DOMAIN)?;
        let store = &mut Budget(self.hub.region_mut());
        let prepared = domain.prepare(&self.layout.formats(), form, store, mappings);
        if prepared.is_err() {
            self.sync();
        }
        prepared
    }

    fn bind(&mut self, id: DomainId, table: &FirstTable, output: Output) -> Result<(), HostError> {
        let domain = self.domains.get(&id).ok_or(NO_DOMAIN)?;
        if domain.bound.is_some() {
            return Err(HostError::Unsupported("a second table for one domain"));
        }
        let strips = output != Output::Through(id);
        if strips && domain.mappings != 0 {
            return Err(HostError::Unsupported("mappings beside a table that does not use them"));
        }
        self.layout.check_bindable(table, output, self.table_base)?;
        if let Output::Through(parent) = output {
            self.prepare_empty(parent, Form::Below)?;
        }
        self.rebind(id, Some(Bound { table: *table, output }))?;
        if strips {
            self.strip(id);
        }
        Ok(())
    }

    fn unbind(&mut self, domain: DomainId) -> Result<(), HostError> {
        if self.books.attached(domain).next().is_some() {
            self.prepare_empty(domain, Form::Alone)?;
        }
        self.rebind(domain, None)
    }

    fn invalidate(&mut self, domain: DomainId, range: Option<IovaRange>) {
        self.withdraw_attached(domain, range);
    }

    fn attach(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        let domain = match target {
            Target::Blocked => {
                self.block(requester);
                self.unpark(requester);
                return Ok(());
            }
            Target::Identity => None,
            Target::Domain(id) => Some(id),
        };
        if let Some(id) = domain
            && self.domains.get(&id).is_some_and(|domain| domain.bound.is_none())
        {
            self.prepare_empty(id, Form::Alone)?;
        }
        self.lead(&[requester], target)?;
        self.books.attach(requester, domain);
        self.hub.withdraw(Withdrawn::Requester(requester));
        self.unpark(requester);
        Ok(())
    }

    fn look_ahead(&self, domain: DomainId, iova: Iova) {
        if let Some(domain) = self.domains.get(&domain) {
            domain.tables.look_ahead(self.hub.region(), iova);
        }
    }

    fn map(&mut self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let domain = self.domains.get_mut(&domain).ok_or(NO_DOMAIN)?;
        domain.map(&self.layout.formats(), &mut Budget(self.hub.region_mut()), mapping)
    }

    /// Inputs of a bound table that lead to the range are not known: all of them are withdrawn.
    fn unmap(&mut self, id: DomainId, mapping: &Mapping) {
        let Some(domain) = self.domains.get_mut(&id) else { return };
        domain.mappings = domain.mappings.saturating_sub(1);
        let range = Some(mapping.iova()).filter(|_| domain.bound.is_none());
        let removed = domain.tables.unmap(self.hub.region_mut(), mapping.iova());
        self.withdraw_attached(id, range);
        let hub = &mut self.hub;
        self.books.withdraw_below(id, &mut |what| hub.withdraw(what));
        if let Err(error) = removed {
            log::error!("domain {id} blocked: unmap of {}: {error}", mapping.iova());
            self.block_all(id);
        }
    }

    /// Readers wait by endpoint: so do those of its other requesters.
    fn park(&mut self, requester: Requester) {
        self.parked.insert(requester);
        self.hub.set_state(requester.endpoint, State::Parked);
    }

    fn resume(&mut self, requester: Requester) {
        self.unpark(requester);
    }

    fn withdraw_all(&mut self) {
        self.hub.withdraw(Withdrawn::Everything);
    }

    fn readmit(&mut self) {
        self.hub.readmit_all();
    }

    fn sync(&mut self) {
        self.hub.drain();
        self.layout.settle(self.hub.region_mut());
    }
}

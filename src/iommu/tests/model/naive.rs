//! The naive model: lists, scanned; rules judged on what a request would leave behind.

mod extension;

use std::collections::{BTreeMap, BTreeSet};

use viommu_backend::{Output, State};
use viommu_pasid::Pasid;

use self::extension::can_use;
use super::*;
use crate::protocol::GuestTable;

#[derive(Debug, Clone)]
pub(super) struct ModelEndpoint {
    id: EndpointId,
    enabled: bool,
    quiesced: bool,
    lent: bool,
}

/// One attachment: an endpoint's untagged traffic or a PASID, and a domain.
type Attachment = (EndpointId, Option<Pasid>, DomainId);

/// Kind of each domain, everything else in flat lists.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) bypass: bool,
    parked: bool,
    endpoints: Vec<ModelEndpoint>,
    attachments: Vec<Attachment>,
    pub(super) kinds: Vec<(DomainId, bool)>,
    bound: Vec<(DomainId, GuestTable, Output)>,
    pub(super) mappings: Vec<(DomainId, Mapping)>,
    /// Detached, not drained.
    freed: Vec<(EndpointId, Pasid)>,
}

impl Model {
    pub(super) fn new() -> Self {
        let endpoint = |id| ModelEndpoint { id, enabled: false, quiesced: false, lent: false };
        Self {
            bypass: true,
            parked: false,
            endpoints: ENDPOINTS.into_iter().map(endpoint).collect(),
            attachments: Vec::new(),
            kinds: Vec::new(),
            bound: Vec::new(),
            mappings: Vec::new(),
            freed: Vec::new(),
        }
    }

    fn kind(&self, id: DomainId) -> Option<bool> {
        self.kinds.iter().find(|(known, _)| *known == id).map(|(_, bypass)| *bypass)
    }

    fn place(&self, id: EndpointId) -> Option<usize> {
        self.endpoints.iter().position(|endpoint| endpoint.id == id)
    }

    fn attached(&self, endpoint: EndpointId, pasid: Option<Pasid>) -> Option<DomainId> {
        let found = self.attachments.iter().find(|(e, p, _)| (*e, *p) == (endpoint, pasid));
        found.map(|(.., domain)| *domain)
    }

    fn members(&self, id: DomainId) -> impl Iterator<Item = EndpointId> + '_ {
        self.attachments.iter().filter(move |(.., domain)| *domain == id).map(|(e, ..)| *e)
    }

    fn pasids(&self, endpoint: EndpointId) -> impl Iterator<Item = (Pasid, DomainId)> + '_ {
        let own = self.attachments.iter().filter(move |(e, ..)| *e == endpoint);
        own.filter_map(|(_, pasid, domain)| Some(((*pasid)?, *domain)))
    }

    fn mappings_of(&self, id: DomainId) -> impl Iterator<Item = &Mapping> {
        self.mappings.iter().filter(move |(owner, _)| *owner == id).map(|(_, mapping)| mapping)
    }

    fn table_of(&self, id: DomainId) -> Option<(&GuestTable, Output)> {
        let found = self.bound.iter().find(|(owner, ..)| *owner == id);
        found.map(|(_, table, output)| (table, *output))
    }

    /// Domains that are attached, bound, or parents.
    fn used(&self) -> BTreeSet<DomainId> {
        let attached = self.attachments.iter().map(|(.., domain)| *domain);
        let parents = self.bound.iter().filter_map(|(.., output)| match output {
            Output::GuestPhysical => None,
            Output::Through(parent) => Some(*parent),
        });
        attached.chain(parents).chain(self.bound.iter().map(|(id, ..)| *id)).collect()
    }

    fn bury_the_dead(&mut self) {
        let used = self.used();
        self.kinds.retain(|(id, _)| used.contains(id));
        self.mappings.retain(|(id, _)| used.contains(id));
    }

    /// Whether `attachment` can be under second level `shared` of its endpoint.
    fn suits(&self, (_, pasid, domain): Attachment, shared: Option<DomainId>) -> bool {
        match (self.kind(domain), self.table_of(domain)) {
            (_, Some((_, Output::Through(parent)))) => shared == Some(parent),
            (_, Some((_, Output::GuestPhysical))) | (Some(true), None) => shared.is_none(),
            _ => shared.is_none() || (pasid.is_none() && shared == Some(domain)),
        }
    }

    /// Whether each endpoint that has one second level for all can have one for what is attached.
    fn agrees(&self) -> bool {
        ENDPOINTS.iter().filter(|id| !capabilities(**id).own_second_level).all(|id| {
            let own = || self.attachments.iter().filter(|(e, ..)| e == id);
            // Untagged traffic alone has what it wants.
            let tagged = own().any(|(_, pasid, _)| pasid.is_some());
            let mut candidates = [None].into_iter().chain(self.used().into_iter().map(Some));
            !tagged || candidates.any(|shared| own().all(|one| self.suits(*one, shared)))
        })
    }

    /// This, with one attachment more, in the place of what the requester had, in a domain that may
    /// be new.
    fn with(&self, attachment: Attachment, bypass: bool) -> Self {
        let mut after = self.clone();
        let (endpoint, pasid, domain) = attachment;
        after.attachments.retain(|(e, p, _)| (*e, *p) != (endpoint, pasid));
        after.attachments.push(attachment);
        if after.kind(domain).is_none() {
            after.kinds.push((domain, bypass));
        }
        after.bury_the_dead();
        after
    }

    /// Whether `endpoint` can use what is bound to `domain`, and has no reserved memory in it.
    fn fits(&self, endpoint: EndpointId, domain: DomainId) -> bool {
        let usable = |(table, output)| can_use(endpoint, table, output);
        let hit = |region: &ResvMem| {
            self.mappings_of(domain).any(|mapping| mapping.iova().overlaps(&region.range))
        };
        self.table_of(domain).is_none_or(usable) && !reserved(endpoint).iter().any(hit)
    }

    pub(super) fn request(&mut self, request: &Request) -> Reply<'static> {
        if self.parked {
            return Status::DEVERR.into();
        }
        match request {
            Request::Attach(attach) => self.attach(attach).into(),
            Request::Detach(detach) => self.detach(detach).into(),
            Request::Map(map) => self.map(map).into(),
            Request::Unmap(unmap) => self.unmap(unmap).into(),
            Request::Probe(probe) => match self.place(probe.endpoint) {
                Some(_) => Status::OK.into(),
                None => Status::NOENT.into(),
            },
            Request::AuxEnable(endpoint) => self.enable(*endpoint, true).into(),
            Request::AuxDisable(endpoint) => self.enable(*endpoint, false).into(),
            Request::AuxAttach(attach) => self.aux_attach(attach).unwrap_or_else(Reply::from),
            Request::AuxDetach(detach) => self.aux_detach(detach).into(),
            Request::GetAttr(attribute) => self.attribute(*attribute),
            Request::BindTable(bind) => self.bind(bind).into(),
            Request::UnbindTable(domain) => self.unbind(*domain).into(),
            Request::Invalidate(invalidate) => self.invalidate(invalidate).into(),
        }
    }

    fn attach(&mut self, attach: &Attach) -> Status {
        let Attach { domain, endpoint, bypass } = *attach;
        if self.place(endpoint).is_none() {
            return Status::NOENT;
        }
        if self.kind(domain).is_some_and(|kind| kind != bypass) {
            return Status::INVAL;
        }
        if self.attached(endpoint, None) == Some(domain) {
            return Status::OK;
        }
        let after = self.with((endpoint, None, domain), bypass);
        if !self.fits(endpoint, domain) || !after.agrees() {
            return Status::UNSUPP;
        }
        if after.kinds.len() > MAX_DOMAINS && self.kind(domain).is_none() {
            return Status::NOMEM;
        }
        *self = after;
        Status::OK
    }

    fn detach(&mut self, detach: &Detach) -> Status {
        if self.place(detach.endpoint).is_none() {
            return Status::NOENT;
        }
        if self.attached(detach.endpoint, None) != Some(detach.domain) {
            return Status::INVAL;
        }
        self.attachments.retain(|(e, p, _)| (*e, *p) != (detach.endpoint, None));
        self.bury_the_dead();
        Status::OK
    }

    /// What MAP and UNMAP refuse a domain for.
    fn unmappable(&self, id: DomainId) -> Option<Status> {
        let elsewhere = |(_, output)| output != Output::Through(id);
        match self.kind(id) {
            None => Some(Status::NOENT),
            Some(true) => Some(Status::INVAL),
            Some(false) => self.table_of(id).is_some_and(elsewhere).then_some(Status::INVAL),
        }
    }

    fn map(&mut self, map: &Map) -> Status {
        if let Some(status) = self.unmappable(map.domain) {
            return status;
        }
        let (start, last) = (u128::from(map.iova.start().raw()), u128::from(map.iova.last().raw()));
        let oa = u128::from(map.oa.raw());
        let ragged = [start, last + 1, oa].iter().any(|at| at % 4096 != 0);
        let outside = start < u128::from(INPUT.0 << 12) || last >= u128::from((INPUT.1 + 1) << 12);
        if ragged || outside || oa + (last - start) > u128::from(HOST.output_last) {
            return Status::RANGE;
        }
        let regions = self.members(map.domain).flat_map(reserved);
        let taken = regions.map(|region| region.range);
        let taken = taken.chain(self.mappings_of(map.domain).map(Mapping::iova));
        if taken.into_iter().any(|range| range.overlaps(&map.iova)) {
            return Status::INVAL;
        }
        if self.mappings_of(map.domain).count() >= MAX_MAPPINGS {
            return Status::NOMEM;
        }
        let mapping = Mapping::new(map.iova, map.oa, map.access).unwrap();
        self.mappings.push((map.domain, mapping));
        Status::OK
    }

    fn unmap(&mut self, unmap: &Unmap) -> Status {
        if let Some(status) = self.unmappable(unmap.domain) {
            return status;
        }
        let touched = |m: &Mapping| m.iova().overlaps(&unmap.iova);
        if self.mappings_of(unmap.domain).any(|m| touched(m) && !unmap.iova.covers(&m.iova())) {
            return Status::RANGE;
        }
        self.mappings.retain(|(id, mapping)| *id != unmap.domain || !touched(mapping));
        Status::OK
    }

    pub(super) fn pasid_count(&self) -> usize {
        self.attachments.iter().filter(|(_, pasid, _)| pasid.is_some()).count()
    }

    pub(super) fn synced(&mut self) {
        self.freed.clear();
    }

    pub(super) fn reset(&mut self) {
        self.parked = false;
        let tagged = self.attachments.iter().filter_map(|(e, pasid, _)| Some((*e, (*pasid)?)));
        self.freed.extend(tagged);
        self.attachments.clear();
        self.bound.clear();
        for endpoint in &mut self.endpoints {
            (endpoint.enabled, endpoint.lent) = (false, false);
        }
        self.bury_the_dead();
    }

    fn is_attached(&self, id: EndpointId) -> bool {
        self.attachments.iter().any(|(endpoint, ..)| *endpoint == id)
    }

    pub(super) fn park(&mut self) {
        if !self.parked {
            self.parked = true;
            for place in 0..self.endpoints.len() {
                let attached = self.is_attached(self.endpoints[place].id);
                let endpoint = &mut self.endpoints[place];
                endpoint.lent = endpoint.quiesced && attached;
            }
        }
    }

    pub(super) fn resume(&mut self) {
        self.parked = false;
        self.endpoints.iter_mut().for_each(|endpoint| endpoint.lent = false);
    }

    pub(super) fn function_reset(&mut self, id: EndpointId) {
        let lends = self.parked && self.is_attached(id);
        for endpoint in self.endpoints.iter_mut().filter(|endpoint| endpoint.id == id) {
            endpoint.quiesced = true;
            endpoint.lent |= lends;
        }
    }

    pub(super) fn function_started(&mut self, id: EndpointId) {
        self.endpoints.iter_mut().filter(|e| e.id == id).for_each(|e| e.quiesced = false);
    }

    /// What the host has to hold.
    pub(super) fn host(&self) -> State {
        let mut state = State::default();
        for (id, _) in self.kinds.iter().filter(|(_, bypass)| !bypass) {
            let usable = self.mappings_of(*id).filter(|mapping| !mapping.access().is_empty());
            let by_start: BTreeMap<_, _> = usable.map(|m| (m.iova().start(), *m)).collect();
            state.domains.insert(*id, by_start);
        }
        for (id, table, output) in &self.bound {
            state.bound.insert(*id, (host_table(table), *output));
        }
        for ModelEndpoint { id, lent, .. } in &self.endpoints {
            let untagged = self.attached(*id, None).filter(|_| !lent);
            let bypasses = untagged.map_or(self.bypass, |domain| self.kind(domain).unwrap());
            let target =
                if bypasses { Some(Target::Identity) } else { untagged.map(Target::Domain) };
            state.targets.extend(target.map(|target| (rid(*id), target)));
            if *lent {
                continue;
            }
            for (pasid, domain) in self.pasids(*id) {
                state.targets.insert(tagged(*id, pasid.raw()), Target::Domain(domain));
            }
            let own = self.attachments.iter().filter(|(e, ..)| self.parked && e == id);
            state
                .parked
                .extend(own.map(|(_, pasid, _)| Requester { endpoint: *id, pasid: *pasid }));
        }
        state.parked.sort();
        state
    }
}

//! What a guest's requests come to, said naively: lists that are scanned.

use viommu::protocol::{Attach, Detach, Map, Request, Status, Unmap};
use viommu_backend::DomainId;
use viommu_pasid::EndpointId;
use viommu_pgtable::{Access, IovaRange, Mapping};

/// Fixed properties of the IOMMU.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) endpoints: Vec<EndpointId>,
    /// Reserved at all endpoints.
    pub(crate) reserved: IovaRange,
    pub(crate) input: IovaRange,
    pub(crate) output_last: u64,
    pub(crate) max_domains: usize,
    pub(crate) max_mappings: usize,
    /// The tables cannot allow a write without a read (rule M6).
    pub(crate) writes_read: bool,
}

#[derive(Debug, Clone)]
struct Domain {
    id: DomainId,
    bypass: bool,
    mappings: Vec<Mapping>,
}

/// The state of a guest's IOMMU.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    rules: Rules,
    pub(crate) bypass: bool,
    domains: Vec<Domain>,
    /// Which domain each endpoint is attached to.
    attached: Vec<Option<DomainId>>,
}

impl Model {
    pub(crate) fn new(rules: Rules) -> Self {
        let attached = vec![None; rules.endpoints.len()];
        Self { rules, bypass: true, domains: Vec::new(), attached }
    }

    pub(crate) fn domain_count(&self) -> usize {
        self.domains.len()
    }

    pub(crate) fn mappings(&self) -> impl Iterator<Item = &Mapping> {
        self.domains.iter().flat_map(|domain| &domain.mappings)
    }

    /// The status that answers `request`; done if that is OK.
    pub(crate) fn request(&mut self, request: &Request) -> Status {
        let done = match request {
            Request::Attach(attach) => self.attach(attach),
            Request::Detach(detach) => self.detach(detach),
            Request::Map(map) => self.map(map),
            Request::Unmap(unmap) => self.unmap(unmap),
            Request::Probe(probe) => self.place(probe.endpoint).map(|_| ()),
            other => panic!("{other:?} is not of the standard"),
        };
        done.err().unwrap_or(Status::OK)
    }

    pub(crate) fn reset(&mut self) {
        self.attached.fill(None);
        self.domains.clear();
    }

    /// Where an access of `endpoint` leads.
    pub(crate) fn translate(&self, endpoint: EndpointId, iova: u64, access: Access) -> Option<u64> {
        let place = self.place(endpoint).ok()?;
        let passed = (iova <= self.rules.output_last).then_some(iova);
        let Some(id) = self.attached[place] else { return passed.filter(|_| self.bypass) };
        let domain = self.domains.iter().find(|domain| domain.id == id).unwrap();
        if domain.bypass {
            return passed;
        }
        let mapping = domain.mappings.iter().find(|mapping| {
            let range = mapping.iova();
            range.start().raw() <= iova && iova <= range.last().raw()
        })?;
        let mut granted = mapping.access();
        if self.rules.writes_read && granted.contains(Access::WRITE) {
            granted |= Access::READ;
        }
        let within = iova - mapping.iova().start().raw();
        granted
            .contains(access)
            .then(|| mapping.oa().raw() + within)
            .filter(|_| !granted.is_empty())
    }

    fn place(&self, endpoint: EndpointId) -> Result<usize, Status> {
        self.rules.endpoints.iter().position(|known| *known == endpoint).ok_or(Status::NOENT)
    }

    fn find(&mut self, id: DomainId) -> Option<&mut Domain> {
        self.domains.iter_mut().find(|domain| domain.id == id)
    }

    /// A domain for mappings.
    fn mapped(&mut self, id: DomainId) -> Result<&mut Domain, Status> {
        match self.find(id) {
            None => Err(Status::NOENT),
            Some(domain) if domain.bypass => Err(Status::INVAL),
            Some(domain) => Ok(domain),
        }
    }

    /// Domains end with their last endpoint.
    fn bury(&mut self) {
        let attached = self.attached.clone();
        self.domains.retain(|domain| attached.contains(&Some(domain.id)));
    }

    fn attach(&mut self, attach: &Attach) -> Result<(), Status> {
        let place = self.place(attach.endpoint)?;
        let old = self.attached[place];
        match self.find(attach.domain) {
            Some(domain) if domain.bypass != attach.bypass => return Err(Status::INVAL),
            Some(_) => {}
            None => {
                let only =
                    |id| self.attached.iter().filter(|other| **other == Some(id)).count() == 1;
                let ends = usize::from(old.is_some_and(only));
                if self.domains.len() - ends >= self.rules.max_domains {
                    return Err(Status::NOMEM);
                }
                let (id, bypass) = (attach.domain, attach.bypass);
                self.domains.push(Domain { id, bypass, mappings: Vec::new() });
            }
        }
        self.attached[place] = Some(attach.domain);
        self.bury();
        Ok(())
    }

    fn detach(&mut self, detach: &Detach) -> Result<(), Status> {
        let place = self.place(detach.endpoint)?;
        if self.attached[place] != Some(detach.domain) {
            return Err(Status::INVAL);
        }
        self.attached[place] = None;
        self.bury();
        Ok(())
    }

    fn map(&mut self, map: &Map) -> Result<(), Status> {
        let Rules { reserved, input, output_last, max_mappings, .. } = self.rules.clone();
        let domain = self.mapped(map.domain)?;
        let (first, last) = (u128::from(map.iova.start().raw()), u128::from(map.iova.last().raw()));
        let oa = u128::from(map.oa.raw());
        let ragged = [first, last + 1, oa].iter().any(|at| at % 4096 != 0);
        if ragged || !input.covers(&map.iova) || oa + (last - first) > u128::from(output_last) {
            return Err(Status::RANGE);
        }
        let mut taken = domain.mappings.iter().map(Mapping::iova).chain([reserved]);
        if taken.any(|range| range.overlaps(&map.iova)) {
            return Err(Status::INVAL);
        }
        if domain.mappings.len() >= max_mappings {
            return Err(Status::NOMEM);
        }
        domain.mappings.push(Mapping::new(map.iova, map.oa, map.access).unwrap());
        Ok(())
    }

    fn unmap(&mut self, unmap: &Unmap) -> Result<(), Status> {
        let domain = self.mapped(unmap.domain)?;
        let touched = |mapping: &Mapping| mapping.iova().overlaps(&unmap.iova);
        let split = |mapping: &&Mapping| touched(mapping) && !unmap.iova.covers(&mapping.iova());
        if domain.mappings.iter().any(|mapping| split(&mapping)) {
            return Err(Status::RANGE);
        }
        domain.mappings.retain(|mapping| !touched(mapping));
        Ok(())
    }
}

//! Many PASIDs and domains. `cargo bench --bench pasids` does it with all that there can be.

use viommu_backend::HostError;

use super::*;
use crate::protocol::Attribute;

/// Width of the endpoint's PASIDs.
const PASID_BITS: u8 = 15;
const PASIDS: u32 = (1 << PASID_BITS) - 1;
/// As many as are attached, and may be made.
const DOMAINS: u32 = 1 << 11;

/// A host that does whatever it is asked, and keeps nothing: [`Recording`] looks at all that it
/// holds in each call.
#[derive(Debug)]
struct Willing;

impl HostIommu for Willing {
    fn capabilities(&self) -> Capabilities {
        HOST
    }

    fn endpoint_capabilities(&self, _: EndpointId) -> EndpointCapabilities {
        like_vtd(PASID_BITS)
    }

    fn create_domain(&mut self, _: DomainId) -> Result<(), HostError> {
        Ok(())
    }

    fn destroy_domain(&mut self, _: DomainId) {}

    fn prepare(
        &mut self,
        _: DomainId,
        _: Role,
        _: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError> {
        Ok(())
    }

    fn bind(&mut self, _: DomainId, _: &FirstTable, _: Output) -> Result<(), HostError> {
        Ok(())
    }

    fn unbind(&mut self, _: DomainId) -> Result<(), HostError> {
        Ok(())
    }

    fn invalidate(&mut self, _: DomainId, _: Option<IovaRange>) {}

    fn attach(&mut self, _: Requester, _: Target) -> Result<(), HostError> {
        Ok(())
    }

    fn map(&mut self, _: DomainId, _: &Mapping) -> Result<(), HostError> {
        Ok(())
    }

    fn unmap(&mut self, _: DomainId, _: &Mapping) {}

    fn park(&mut self, _: Requester) {}

    fn resume(&mut self, _: Requester) {}

    fn withdraw_all(&mut self) {}

    fn readmit(&mut self) {}

    fn sync(&mut self) {}
}

#[test]
fn every_pasid_of_an_endpoint_goes_to_one_of_all_domains_and_leaves_it() {
    let settings = Settings { max_domains: DOMAINS as usize, ..settings() };
    let mut iommu = Iommu::new(settings, vec![EndpointSpec::x86(A)]).unwrap();
    iommu.start(&mut Willing).unwrap();
    assert_eq!(iommu.request(&mut Willing, &Request::AuxEnable(A)), Status::OK.into());
    for raw in 1..=PASIDS {
        let attach = aux_attach(A, raw % DOMAINS, PasidChoice::Any);
        assert_eq!(iommu.request(&mut Willing, &attach), Reply::pasid(pasid(raw)));
    }
    for over in
        [aux_attach(A, 0, PasidChoice::Any), aux_attach(A, DOMAINS, PasidChoice::This(pasid(1)))]
    {
        assert_eq!(iommu.request(&mut Willing, &over), Status::NOMEM.into(), "{over:?}");
    }
    let lowest = Request::GetAttr(Attribute::AuxId(domain(DOMAINS - 1), A));
    let reply = iommu.request(&mut Willing, &lowest);
    assert_eq!(reply, Reply::value(u64::from(DOMAINS) - 1));
    assert_eq!((iommu.pasid_count(), iommu.domain_count()), (PASIDS as usize, DOMAINS as usize));
    iommu.reset(&mut Willing);
    assert_eq!((iommu.pasid_count(), iommu.domain_count()), (0, 0));
}

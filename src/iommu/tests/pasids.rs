//! PASIDs: what the host is told, in which order, and what a refusal leaves.

use super::*;
use crate::protocol::{Attribute, FaultReason, PasidChoice};

/// A, with PASIDs of 4 bits that have second levels of their own, and B, with one for all.
fn rig() -> Rig {
    let endpoints = [(EndpointSpec::x86(A), like_vtd(4)), (EndpointSpec::x86(B), like_smmu(4))];
    let mut rig = Rig::with_capabilities(settings(), endpoints);
    for endpoint in [A, B] {
        assert_eq!(rig.request(&Request::AuxEnable(endpoint)), Status::OK);
    }
    rig
}

fn attribute(rig: &mut Rig, attribute: Attribute) -> Reply<'_> {
    rig.iommu.request(&mut rig.host, &Request::GetAttr(attribute))
}

fn attached_at(rig: &mut Rig, endpoint: EndpointId, id: u32) -> Reply<'_> {
    rig.iommu.request(&mut rig.host, &aux_attach(endpoint, id, PasidChoice::Any))
}

fn reply(raw: u32) -> Reply<'static> {
    Reply::pasid(pasid(raw))
}

#[test]
fn a_pasid_is_prepared_then_attached_and_the_domain_made_before() {
    let mut rig = rig();
    assert_eq!(attached_at(&mut rig, A, 5), reply(1));
    let through = Target::Domain(domain(5));
    let calls = [
        Call::CreateDomain(domain(5)),
        Call::Prepare(domain(5), Role::Alone(tagged(A, 1))),
        Call::Attach(tagged(A, 1), through),
    ];
    assert_eq!(rig.host.take_calls(), calls);
    assert_eq!(attached_at(&mut rig, A, 5), reply(2), "the same domain at another PASID");
    assert_eq!(rig.calls(), [Call::Attach(tagged(A, 2), through)]);
    assert_eq!(rig.iommu.pasid_count(), 2);
}

#[test]
fn any_chooses_the_lowest_pasid_that_nothing_uses() {
    let mut rig = rig();
    assert_eq!(rig.aux_attach(A, 1, 2), Status::OK);
    assert_eq!(attached_at(&mut rig, A, 1), reply(1));
    assert_eq!(attached_at(&mut rig, A, 1), reply(3));
    assert_eq!(attached_at(&mut rig, B, 1), reply(1), "each endpoint has its own");
}

#[test]
fn a_pasid_is_given_out_again_only_after_its_users_have_drained() {
    let mut rig = rig();
    assert_eq!(attached_at(&mut rig, A, 1), reply(1));
    assert_eq!(rig.aux_detach(A, 1, 1), Status::OK);
    assert_eq!(attached_at(&mut rig, A, 1), reply(2), "somebody may still use 1");
    rig.host.sync();
    rig.iommu.synced();
    assert_eq!(attached_at(&mut rig, A, 1), reply(1));
}

#[test]
fn a_pasid_that_was_named_again_before_the_drain_stays_taken_after_it() {
    let mut rig = rig();
    assert_eq!(rig.aux_attach(A, 1, 1), Status::OK);
    assert_eq!(rig.aux_detach(A, 1, 1), Status::OK);
    assert_eq!(rig.aux_attach(A, 2, 1), Status::OK);
    rig.iommu.synced();
    assert_eq!(attached_at(&mut rig, A, 1), reply(2));
}

#[test]
fn a_reset_frees_the_pasids_after_the_drain_that_follows_it() {
    let mut rig = rig();
    assert_eq!(attached_at(&mut rig, A, 1), reply(1));
    rig.iommu.reset(&mut rig.host);
    assert_eq!(rig.request(&Request::AuxEnable(A)), Status::OK, "a reset disables");
    assert_eq!(attached_at(&mut rig, A, 1), reply(2));
    rig.iommu.synced();
    assert_eq!(rig.aux_detach(A, 1, 2), Status::OK);
    assert_eq!(attached_at(&mut rig, A, 1), reply(1));
}

#[test]
fn all_pasids_of_an_endpoint_can_be_attached_and_not_one_more() {
    let mut rig = rig();
    for raw in 1..16 {
        assert_eq!(attached_at(&mut rig, A, 1), reply(raw));
    }
    rig.refuses(&aux_attach(A, 1, PasidChoice::Any), Status::NOMEM);
    assert_eq!(rig.aux_attach(A, 2, 15), Status::OK, "a replacement needs no other");
}

#[test]
fn a_replacement_is_one_call_and_ends_the_domain_that_lost_its_last_use_after_it() {
    let mut rig = rig();
    assert_eq!(rig.aux_attach(A, 1, 3), Status::OK);
    assert_eq!(rig.map(1, 0, 3), Status::OK);
    rig.calls();
    assert_eq!(rig.aux_attach(A, 2, 3), Status::OK);
    let calls = [
        Call::CreateDomain(domain(2)),
        Call::Attach(tagged(A, 3), Target::Domain(domain(2))),
        Call::DestroyDomain(domain(1)),
    ];
    assert_eq!(rig.calls(), calls);
    rig.refuses(&map(1, pages(0, 0), output(0)), Status::NOENT);
}

#[test]
fn the_same_domain_at_the_same_pasid_is_ok_and_the_host_is_not_asked() {
    let mut rig = rig();
    assert_eq!(rig.aux_attach(A, 1, 3), Status::OK);
    rig.host.take_calls();
    let again = aux_attach(A, 1, PasidChoice::This(pasid(3)));
    assert_eq!(rig.iommu.request(&mut rig.host, &again), reply(3));
    assert_eq!(rig.host.take_calls(), []);
}

#[test]
fn a_domain_lives_until_both_untagged_traffic_and_pasids_have_left() {
    let mut rig = rig();
    assert_eq!(rig.attach(A, 1), Status::OK);
    assert_eq!(rig.aux_attach(B, 1, 1), Status::OK);
    assert_eq!(rig.detach(A, 1), Status::OK);
    assert_eq!(rig.iommu.domain_count(), 1);
    assert_eq!(rig.aux_detach(B, 1, 1), Status::OK);
    assert_eq!(rig.iommu.domain_count(), 0);
}

#[test]
fn reserved_memory_counts_once_for_an_endpoint_however_often_it_is_attached() {
    let mut rig = rig();
    let msi = 0xfee00;
    assert_eq!(rig.aux_attach(A, 1, 1), Status::OK);
    assert_eq!(rig.attach(A, 1), Status::OK);
    rig.refuses(&map(1, pages(msi, msi), output(0)), Status::INVAL);
    assert_eq!(rig.detach(A, 1), Status::OK);
    rig.refuses(&map(1, pages(msi, msi), output(0)), Status::INVAL);
}

#[test]
fn the_lowest_pasid_of_a_domain_is_its_id() {
    let mut rig = rig();
    assert_eq!(rig.aux_attach(A, 1, 9), Status::OK);
    assert_eq!(rig.aux_attach(A, 1, 4), Status::OK);
    assert_eq!(rig.aux_attach(A, 2, 2), Status::OK);
    assert_eq!(attribute(&mut rig, Attribute::AuxId(domain(1), A)), Reply::value(4));
    assert_eq!(rig.aux_detach(A, 1, 4), Status::OK);
    assert_eq!(attribute(&mut rig, Attribute::AuxId(domain(1), A)), Reply::value(9));
    assert_eq!(attribute(&mut rig, Attribute::AuxId(domain(1), B)), Status::NOENT.into());
}

#[test]
fn a_stop_parks_pasids_with_the_untagged_traffic_and_a_resume_brings_them_back() {
    let mut rig = rig();
    assert_eq!(rig.attach(A, 1), Status::OK);
    assert_eq!(rig.aux_attach(A, 2, 3), Status::OK);
    assert_eq!(rig.aux_attach(B, 2, 7), Status::OK);
    rig.calls();
    rig.iommu.park(&mut rig.host);
    let each = [rid(A), tagged(A, 3), tagged(B, 7)];
    assert_eq!(rig.calls(), each.map(Call::Park));
    rig.iommu.resume(&mut rig.host);
    assert_eq!(rig.calls(), each.map(Call::Resume));
}

#[test]
fn firmware_gets_the_untagged_traffic_and_no_pasid() {
    let mut rig = rig();
    assert_eq!(rig.aux_attach(A, 2, 3), Status::OK);
    rig.iommu.set_bypass(&mut rig.host, true).unwrap();
    rig.iommu.park(&mut rig.host);
    rig.calls();
    rig.iommu.function_reset(&mut rig.host, A);
    let lent = [Call::Attach(tagged(A, 3), Target::Blocked), attached_call(A, Target::Identity)];
    assert_eq!(rig.calls(), lent);
    assert_eq!(rig.iommu.fault_reason(tagged(A, 3)), Some(FaultReason::Domain));
    rig.iommu.resume(&mut rig.host);
    assert_eq!(rig.calls(), [Call::Attach(tagged(A, 3), Target::Domain(domain(2)))]);
    assert_eq!(rig.iommu.fault_reason(tagged(A, 3)), Some(FaultReason::Mapping));
}

#[test]
fn a_pasid_that_the_host_does_not_restore_is_blocked_until_it_is_attached_again() {
    let mut rig = rig();
    assert_eq!(rig.aux_attach(A, 2, 3), Status::OK);
    rig.iommu.function_reset(&mut rig.host, A);
    rig.iommu.park(&mut rig.host);
    rig.host.fail_after(0);
    rig.iommu.resume(&mut rig.host);
    assert_eq!(rig.iommu.fault_reason(tagged(A, 3)), Some(FaultReason::Domain));
    rig.calls();
    assert_eq!(rig.aux_attach(A, 2, 3), Status::OK, "not taken for done");
    assert_eq!(rig.calls(), [Call::Attach(tagged(A, 3), Target::Domain(domain(2)))]);
    assert_eq!(rig.iommu.fault_reason(tagged(A, 3)), Some(FaultReason::Mapping));
}

#[test]
fn the_reason_of_a_fault_is_that_of_its_pasid() {
    let mut rig = rig();
    assert_eq!(rig.attach(A, 1), Status::OK);
    assert_eq!(rig.aux_attach(B, 1, 1), Status::OK);
    let reasons = [rid(A), tagged(A, 1), rid(B), tagged(B, 1), tagged(STRANGER, 1)]
        .map(|requester| rig.iommu.fault_reason(requester));
    let [mapping, domain] = [Some(FaultReason::Mapping), Some(FaultReason::Domain)];
    assert_eq!(reasons, [mapping, domain, domain, mapping, None]);
}

#[test]
fn a_domain_past_the_limit_is_made_in_the_place_of_one_that_ends() {
    let endpoints = [(EndpointSpec::x86(A), like_vtd(4))];
    let settings = Settings { max_domains: 1, ..settings() };
    let mut rig = Rig::with_capabilities(settings, endpoints);
    assert_eq!(rig.request(&Request::AuxEnable(A)), Status::OK);
    assert_eq!(rig.aux_attach(A, 1, 1), Status::OK);
    rig.refuses(&aux_attach(A, 2, PasidChoice::Any), Status::NOMEM);
    assert_eq!(rig.aux_attach(A, 2, 1), Status::OK, "domain 1 ends");
    assert_eq!(rig.aux_attach(A, 2, 2), Status::OK);
    rig.refuses(&aux_attach(A, 3, PasidChoice::This(pasid(1))), Status::NOMEM);
}

#[test]
fn of_several_reasons_to_refuse_an_aux_attach_the_first_of_the_page_wins() {
    let plain = (EndpointSpec::x86(C), EndpointCapabilities::default());
    let endpoints = [(EndpointSpec::x86(A), like_vtd(4)), plain];
    let settings = Settings { domains: 0..=9, max_domains: 1, ..settings() };
    let mut rig = Rig::with_capabilities(settings, endpoints);
    assert_eq!(rig.attach_bypass(C, 1), Status::OK);
    let worst = |endpoint, page_request, pasid, id| {
        Request::AuxAttach(AuxAttach { domain: domain(id), endpoint, pasid, page_request })
    };
    rig.refuses(&worst(STRANGER, true, PasidChoice::TooWide, 10), Status::NOENT);
    rig.refuses(&worst(A, true, PasidChoice::TooWide, 10), Status::UNSUPP);
    rig.refuses(&worst(C, false, PasidChoice::TooWide, 10), Status::UNSUPP);
    rig.refuses(&worst(A, false, PasidChoice::Any, 10), Status::INVAL);
    assert_eq!(rig.request(&Request::AuxEnable(A)), Status::OK);
    rig.refuses(&worst(A, false, PasidChoice::TooWide, 10), Status::INVAL);
    rig.refuses(&worst(A, false, PasidChoice::This(pasid(16)), 10), Status::INVAL);
    rig.refuses(&worst(A, false, PasidChoice::Any, 1), Status::INVAL);
    rig.refuses(&worst(A, false, PasidChoice::Any, 10), Status::RANGE);
    rig.refuses(&worst(A, false, PasidChoice::Any, 9), Status::NOMEM);
}

#[test]
fn features_are_those_that_an_endpoint_can_use() {
    let offered = |capabilities| {
        let endpoints = [(EndpointSpec::x86(A), capabilities)];
        Rig::with_capabilities(settings(), endpoints).iommu.features() - Features::STANDARD
    };
    let without_tables = EndpointCapabilities { formats: Vec::new(), ..like_vtd(1) };
    assert_eq!(offered(EndpointCapabilities::default()), Features::empty());
    assert_eq!(offered(like_vtd(0)), Features::empty(), "an endpoint without PASIDs has no use");
    assert_eq!(offered(without_tables), Features::AUX);
    assert_eq!(offered(like_vtd(1)), Features::AUX | Features::BIND_TABLE);
}

#[test]
fn a_probe_tells_pasids_and_tables_to_a_driver_that_knows_of_them() {
    let mut rig = rig();
    let capabilities = like_smmu(4);
    let all = Properties {
        regions: &[X86_MSI_WINDOW],
        aux: AuxProperty::of(&capabilities),
        formats: &capabilities.formats,
    };
    let told = |aux, formats| Request::Probe(Probe { endpoint: B, aux, formats });
    let reply = rig.iommu.request(&mut rig.host, &told(true, true));
    assert_eq!(reply, Reply::properties(all));
    let reply = rig.iommu.request(&mut rig.host, &told(true, false));
    assert_eq!(reply, Reply::properties(Properties { formats: &[], ..all }));
    let reply = rig.iommu.request(&mut rig.host, &told(false, false));
    assert_eq!(reply, Reply::properties(Properties { aux: None, formats: &[], ..all }));
}

#[test]
fn properties_that_a_probe_cannot_tell_make_no_device() {
    let mut host = Recording::new(HOST);
    host.offer(A, like_vtd(4));
    let settings = Settings { probe_size: 59, ..settings() };
    let mut iommu = Iommu::new(settings, vec![EndpointSpec::x86(A)]).unwrap();
    let error = iommu.start(&mut host).unwrap_err();
    let expected = "endpoint 0000:00:02.0 has 60 bytes of properties, but a probe tells 59 at most";
    assert_eq!(error.to_string(), expected);
}

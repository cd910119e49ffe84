//! Tables of the guest's: who may use them, what the host is told, how long domains live.

use super::*;
use crate::protocol::PasidChoice;

const IDENTITY: Output = Output::GuestPhysical;

fn through(id: u32) -> Output {
    Output::Through(domain(id))
}

/// A, with PASIDs of 4 bits that have second levels of their own, and B, with one for all.
fn rig() -> Rig {
    let both = |capabilities: EndpointCapabilities| EndpointCapabilities {
        formats: vec![VTD_TABLES, ARM_TABLES],
        ..capabilities
    };
    let endpoints =
        [(EndpointSpec::x86(A), both(like_vtd(4))), (EndpointSpec::x86(B), both(like_smmu(4)))];
    let mut rig = Rig::with_capabilities(settings(), endpoints);
    for endpoint in [A, B] {
        assert_eq!(rig.request(&Request::AuxEnable(endpoint)), Status::OK);
    }
    rig
}

fn bind(id: u32, output: Output) -> Request {
    Request::BindTable(BindTable { domain: domain(id), table: vtd_table(0x7000), output })
}

fn unbind(id: u32) -> Request {
    Request::UnbindTable(domain(id))
}

fn at(endpoint: EndpointId, id: u32, raw: u32) -> Request {
    aux_attach(endpoint, id, PasidChoice::This(pasid(raw)))
}

fn bound_call(id: u32, output: Output) -> Call {
    Call::Bind(domain(id), host_table(&vtd_table(0x7000)), output)
}

#[test]
fn bind_makes_the_domain_and_prepares_the_parent_before_the_host_binds() {
    let mut rig = rig();
    assert_eq!(rig.request(&bind(1, through(1))), Status::OK);
    let calls = [
        Call::CreateDomain(domain(1)),
        Call::Prepare(domain(1), Role::SecondLevel),
        bound_call(1, through(1)),
    ];
    assert_eq!(rig.host.take_calls(), calls);
    assert_eq!(rig.request(&bind(2, IDENTITY)), Status::OK);
    let calls = [Call::CreateDomain(domain(2)), bound_call(2, IDENTITY)];
    assert_eq!(rig.host.take_calls(), calls);
}

#[test]
fn a_parent_lives_as_long_as_its_children_and_ends_after_the_last() {
    let mut rig = rig();
    assert_eq!(rig.attach(A, 9), Status::OK);
    assert_eq!(rig.request(&bind(1, through(9))), Status::OK);
    assert_eq!(rig.request(&bind(2, through(9))), Status::OK);
    assert_eq!(rig.detach(A, 9), Status::OK);
    assert_eq!(rig.map(9, 0, 3), Status::OK, "the parent is there, attached to nothing");
    assert_eq!(rig.request(&unbind(1)), Status::OK);
    rig.calls();
    assert_eq!(rig.request(&unbind(2)), Status::OK);
    let ends = [Call::DestroyDomain(domain(2)), Call::DestroyDomain(domain(9))];
    assert_eq!(rig.calls(), ends);
    assert_eq!(rig.iommu.domain_count(), 0);
}

#[test]
fn an_attached_domain_is_unbound_only_if_its_own_mappings_are_left() {
    let mut rig = rig();
    assert_eq!(rig.request(&bind(1, through(1))), Status::OK);
    assert_eq!(rig.request(&bind(2, IDENTITY)), Status::OK);
    for request in [at(A, 1, 1), at(A, 1, 4), at(A, 2, 2), attach(A, 1, false)] {
        assert_eq!(rig.request(&request), Status::OK);
    }
    rig.refuses(&unbind(2), Status::INVAL);
    rig.host.take_calls();
    assert_eq!(rig.request(&unbind(1)), Status::OK);
    let calls = [
        Call::Prepare(domain(1), Role::Alone(rid(A))),
        Call::Prepare(domain(1), Role::Alone(tagged(A, 1))),
        Call::Unbind(domain(1)),
    ];
    assert_eq!(rig.host.take_calls(), calls);
    rig.refuses(&unbind(1), Status::INVAL);
}

#[test]
fn a_bound_domain_outlives_its_attachments_and_keeps_its_mappings() {
    let mut rig = rig();
    assert_eq!(rig.request(&bind(1, through(1))), Status::OK);
    assert_eq!(rig.request(&at(A, 1, 1)), Status::OK);
    assert_eq!(rig.map(1, 0, 3), Status::OK);
    assert_eq!(rig.aux_detach(A, 1, 1), Status::OK);
    assert_eq!((rig.iommu.domain_count(), rig.iommu.mapping_count()), (1, 1));
    assert_eq!(rig.request(&unbind(1)), Status::OK);
    assert_eq!((rig.iommu.domain_count(), rig.iommu.mapping_count()), (0, 0));
}

#[test]
fn mappings_change_only_where_they_translate() {
    let mut rig = rig();
    for (id, output) in [(1, IDENTITY), (2, through(2)), (3, through(9))] {
        if id == 3 {
            assert_eq!(rig.attach(A, 9), Status::OK);
        }
        assert_eq!(rig.request(&bind(id, output)), Status::OK);
    }
    for id in [1, 3] {
        rig.refuses(&map(id, pages(0, 0), output(0)), Status::INVAL);
        rig.refuses(&super::unmap(id, pages(0, 0)), Status::INVAL);
    }
    assert_eq!((rig.map(2, 0, 3), rig.map(9, 0, 3)), (Status::OK, Status::OK));
    assert_eq!(rig.unmap(2, 0, 3), Status::OK);
}

#[test]
fn invalidate_reaches_the_host_with_its_range_and_needs_a_table() {
    let mut rig = rig();
    assert_eq!(rig.request(&bind(1, IDENTITY)), Status::OK);
    assert_eq!(rig.attach(A, 2), Status::OK);
    rig.calls();
    let invalidate = |id, range| Request::Invalidate(Invalidate { domain: domain(id), range });
    for range in [None, Some(pages(3, 4))] {
        assert_eq!(rig.request(&invalidate(1, range)), Status::OK);
        assert_eq!(rig.calls(), [Call::Invalidate(domain(1), range)]);
    }
    rig.refuses(&invalidate(2, None), Status::INVAL);
    rig.refuses(&invalidate(3, None), Status::NOENT);
}

#[test]
fn what_can_be_bound_and_to_whom_in_the_pages_order() {
    let mut rig = rig();
    assert_eq!(rig.attach_bypass(A, 8), Status::OK);
    assert_eq!(rig.attach(B, 7), Status::OK);
    assert_eq!(rig.map(7, 0, 3), Status::OK);
    assert_eq!(rig.request(&bind(1, IDENTITY)), Status::OK);
    assert_eq!(rig.request(&bind(2, through(7))), Status::OK);
    let with =
        |id, table, output| Request::BindTable(BindTable { domain: domain(id), table, output });
    let misplaced = vtd_table(0x7008);
    let five_levels = GuestTable::VtdFirst { root: PhysAddr::new(0x7008), five_levels: true };
    rig.refuses(&with(1, five_levels, through(6)), Status::NOENT);
    rig.refuses(&with(8, five_levels, IDENTITY), Status::UNSUPP);
    rig.refuses(&with(1, GuestTable::Unknown, IDENTITY), Status::UNSUPP);
    for (id, output, why) in [
        (8, IDENTITY, "a bypass domain"),
        (3, through(8), "a parent that is a bypass domain"),
        (1, IDENTITY, "bound already"),
        (3, through(1), "a parent that is bound"),
        (7, IDENTITY, "mappings that would mean nothing"),
        (7, through(7), "a parent of another"),
    ] {
        let request = with(id, misplaced, output);
        rig.refuses(&request, Status::INVAL);
        assert_eq!(rig.iommu.domain_count(), 4, "{why}");
    }
    for root in [0x7008, 1 << 47, !0xfff] {
        rig.refuses(&with(3, vtd_table(root), IDENTITY), Status::RANGE);
    }
    let below_64 = arm_table(0x7020);
    rig.refuses(&with(3, below_64, IDENTITY), Status::RANGE);
    rig.refuses(&with(3, arm_table(0x7040), IDENTITY), Status::RANGE);
    assert_eq!(rig.request(&with(3, vtd_table((1 << 47) - 0x1000), IDENTITY)), Status::OK);
}

#[test]
fn a_table_that_an_endpoint_does_not_have_is_not_attached_to_it() {
    let parentless = EndpointCapabilities { parent: false, ..like_vtd(4) };
    let endpoints = [(EndpointSpec::x86(A), parentless), (EndpointSpec::x86(B), like_smmu(4))];
    let mut rig = Rig::with_capabilities(settings(), endpoints);
    assert_eq!(rig.request(&Request::AuxEnable(A)), Status::OK);
    let arm = BindTable { domain: domain(1), table: arm_table(0x7000), output: IDENTITY };
    assert_eq!(rig.request(&Request::BindTable(arm)), Status::OK);
    rig.refuses(&at(A, 1, 1), Status::UNSUPP);
    rig.refuses(&attach(A, 1, false), Status::UNSUPP);
    assert_eq!(rig.attach(B, 1), Status::OK, "untagged traffic goes through tables too");
    rig.refuses(&bind(2, through(2)), Status::UNSUPP);
    assert_eq!(rig.request(&bind(2, IDENTITY)), Status::OK);
    assert_eq!(rig.request(&at(A, 2, 1)), Status::OK);
}

#[test]
fn all_traffic_of_an_endpoint_with_one_second_level_agrees_on_it() {
    let mut rig = rig();
    for request in [
        attach(B, 9, false),
        bind(1, through(9)),
        bind(2, through(9)),
        bind(3, IDENTITY),
        bind(4, through(4)),
        at(B, 1, 1),
        at(B, 2, 2),
    ] {
        assert_eq!(rig.request(&request), Status::OK, "{request:?}");
    }
    // the untagged traffic is in the second level itself, unbound
    for (request, why) in [
        (at(B, 3, 3), "no second level"),
        (at(B, 4, 3), "another second level"),
        (at(B, 5, 3), "mappings alone"),
        (at(B, 9, 3), "the second level itself, behind a PASID"),
        (attach(B, 5, false), "untagged, mappings alone"),
        (attach(B, 5, true), "untagged, bypass"),
        (attach(B, 3, false), "untagged, no second level"),
    ] {
        rig.refuses(&request, Status::UNSUPP);
        assert_eq!(rig.iommu.pasid_count(), 2, "{why}");
    }
    assert_eq!(rig.attach(B, 2), Status::OK, "untagged, the same second level");
    assert_eq!(rig.attach(B, 9), Status::OK);
    assert_eq!(rig.aux_detach(B, 1, 1), Status::OK);
    rig.refuses(&at(B, 3, 3), Status::UNSUPP);
    assert_eq!(rig.request(&at(B, 3, 2)), Status::OK, "the last that went through it is replaced");
    assert_eq!(rig.request(&at(A, 4, 1)), Status::OK, "A has one for each");
    assert_eq!(rig.request(&at(A, 3, 2)), Status::OK);
}

#[test]
fn a_bypass_domain_under_untagged_traffic_rules_out_second_levels() {
    let mut rig = rig();
    assert_eq!(rig.attach_bypass(B, 8), Status::OK);
    assert_eq!(rig.request(&bind(1, through(1))), Status::OK);
    rig.refuses(&at(B, 1, 1), Status::UNSUPP);
    assert_eq!(rig.request(&bind(2, IDENTITY)), Status::OK);
    assert_eq!(rig.request(&at(B, 2, 1)), Status::OK);
}

#[test]
fn a_table_is_bound_under_attachments_only_if_all_of_an_endpoints_traffic_agrees() {
    let mut rig = rig();
    assert_eq!(rig.request(&at(B, 1, 1)), Status::OK);
    assert_eq!(rig.request(&bind(1, through(1))), Status::OK, "it is alone");
    rig.refuses(&at(B, 2, 2), Status::UNSUPP);
    assert_eq!(rig.request(&unbind(1)), Status::OK);
    assert_eq!(rig.request(&at(B, 2, 2)), Status::OK);
    rig.refuses(&bind(1, through(1)), Status::UNSUPP);
    assert_eq!(rig.request(&bind(1, IDENTITY)), Status::OK, "neither has a second level");
    assert_eq!(rig.request(&at(A, 3, 1)), Status::OK);
    assert_eq!(rig.request(&at(A, 4, 2)), Status::OK);
    assert_eq!(rig.request(&bind(3, through(3))), Status::OK, "A has one for each");
}

#[test]
fn a_reset_takes_all_tables_away_children_before_parents() {
    let mut rig = rig();
    assert_eq!(rig.attach(A, 1), Status::OK);
    for request in [bind(2, through(1)), bind(3, IDENTITY), at(A, 2, 1), at(B, 2, 1)] {
        assert_eq!(rig.request(&request), Status::OK);
    }
    rig.calls();
    rig.iommu.reset(&mut rig.host);
    let calls = [
        Call::Attach(tagged(A, 1), Target::Blocked),
        attached_call(A, Target::Blocked),
        Call::Attach(tagged(B, 1), Target::Blocked),
        Call::DestroyDomain(domain(2)),
        Call::DestroyDomain(domain(1)),
        Call::DestroyDomain(domain(3)),
    ];
    assert_eq!(rig.calls(), calls);
    assert_eq!((rig.iommu.domain_count(), rig.iommu.pasid_count()), (0, 0));
}

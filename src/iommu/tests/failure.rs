//! What the host refuses changes nothing, whichever call it refuses.

use super::*;

/// Runs `step` on rigs that `prepare` makes, with the first, second, ... fallible call refused,
/// until one has no call left to refuse. Each refusal must leave everything as it was.
fn every_refusal_is_undone(prepare: impl Fn() -> Rig, step: impl Fn(&mut Rig) -> bool) -> u64 {
    for nth in 0.. {
        let mut rig = prepare();
        let before = rig.snapshot();
        rig.host.fail_after(nth);
        let done = step(&mut rig);
        if rig.host.failure_is_pending() {
            assert!(done, "nothing was refused");
            return nth;
        }
        assert!(!done, "call {nth} was refused, so the step is");
        assert_eq!(rig.snapshot(), before, "call {nth} refused");
        assert!(step(&mut rig), "the same step succeeds once the host accepts");
    }
    0
}

/// A is in domain 1 with two mappings, B in bypass domain 2.
fn both_attached() -> Rig {
    let mut rig = Rig::attached();
    assert_eq!(rig.attach_bypass(B, 2), Status::OK);
    rig.calls();
    rig
}

#[test]
fn a_refused_request_leaves_state_and_host_as_they_were() {
    let cases = [
        (attach(A, 3, false), 3),
        (attach(A, 3, true), 1),
        (attach(A, 2, true), 1),
        (attach(B, 1, false), 2),
        // to nowhere, since bypass is off: no host refuses that
        (Request::Detach(Detach { domain: domain(1), endpoint: A }), 0),
        (map(1, pages(50, 60), output(50)), 1),
        (unmap(1, pages(0, 29)), 0),
    ];
    for (request, calls) in cases {
        let fallible = every_refusal_is_undone(both_attached, |rig| rig.request(&request).is_ok());
        assert_eq!(fallible, calls, "{request:?}");
    }
}

/// A has domain 1 at PASID 1 with two mappings, and domain 2, bound through itself, at PASID 2;
/// domain 3 is bound and attached to nothing.
fn with_pasids() -> Rig {
    let endpoints = [(EndpointSpec::x86(A), like_vtd(4)), (EndpointSpec::x86(B), like_smmu(4))];
    let mut rig = Rig::with_capabilities(settings(), endpoints);
    let through = |id| Output::Through(domain(id));
    for request in [
        Request::AuxEnable(A),
        aux_attach(A, 1, PasidChoice::Any),
        map(1, pages(0, 9), output(0)),
        map(1, pages(20, 29), output(20)),
        aux_attach(A, 2, PasidChoice::Any),
        bind(2, vtd_table(0x7000), through(2)),
        bind(3, vtd_table(0x8000), Output::GuestPhysical),
    ] {
        assert_eq!(rig.request(&request), Status::OK, "{request:?}");
    }
    rig.calls();
    rig
}

fn bind(id: u32, table: GuestTable, output: Output) -> Request {
    Request::BindTable(BindTable { domain: domain(id), table, output })
}

#[test]
fn a_refused_request_of_the_extension_leaves_state_and_host_as_they_were() {
    let this = |raw| PasidChoice::This(pasid(raw));
    let detach = AuxDetach { domain: domain(1), endpoint: A, pasid: Some(pasid(1)) };
    let cases = [
        (Request::AuxEnable(B), 0),
        (aux_attach(A, 1, PasidChoice::Any), 2),
        (aux_attach(A, 4, PasidChoice::Any), 3),
        (aux_attach(A, 4, this(1)), 3),
        (aux_attach(A, 3, this(1)), 1),
        (attach(A, 3, false), 1),
        (Request::AuxDetach(detach), 0),
        (bind(1, vtd_table(0x9000), Output::Through(domain(1))), 2),
        (bind(5, vtd_table(0x9000), Output::Through(domain(1))), 3),
        (bind(5, vtd_table(0x9000), Output::Through(domain(5))), 3),
        (bind(5, vtd_table(0x9000), Output::GuestPhysical), 2),
        (Request::UnbindTable(domain(2)), 2),
        (Request::UnbindTable(domain(3)), 0),
        (Request::Invalidate(Invalidate { domain: domain(3), range: None }), 0),
    ];
    for (request, calls) in cases {
        let fallible = every_refusal_is_undone(with_pasids, |rig| rig.request(&request).is_ok());
        assert_eq!(fallible, calls, "{request:?}");
    }
}

#[test]
fn a_refused_detach_into_bypass_leaves_the_endpoint_in_its_domain() {
    let prepare = || {
        let mut rig = both_attached();
        rig.iommu.set_bypass(&mut rig.host, true).unwrap();
        rig
    };
    let detach = Request::Detach(Detach { domain: domain(1), endpoint: A });
    assert_eq!(every_refusal_is_undone(prepare, |rig| rig.request(&detach).is_ok()), 1);
}

#[test]
fn a_domain_that_was_made_for_a_refused_attach_is_ended_again() {
    let mut rig = both_attached();
    rig.host.fail_after(1);
    assert_eq!(rig.attach(A, 3), Status::IOERR);
    let calls = [Call::CreateDomain(domain(3)), Call::DestroyDomain(domain(3))];
    assert_eq!(rig.calls(), calls);
}

#[test]
fn a_refused_change_of_bypass_is_undone_in_reverse() {
    let calls =
        every_refusal_is_undone(Rig::new, |rig| rig.iommu.set_bypass(&mut rig.host, true).is_ok());
    assert_eq!(calls, 2);
    let mut rig = Rig::new();
    rig.host.fail_after(1);
    rig.iommu.set_bypass(&mut rig.host, true).unwrap_err();
    let calls = [attached_call(A, Target::Identity), attached_call(A, Target::Blocked)];
    assert_eq!(rig.calls(), calls);
}

#[test]
fn start_names_the_endpoint_that_the_host_refused_and_serves_nothing() {
    let mut host = Recording::new(HOST);
    let settings = Settings { boot_bypass: true, ..settings() };
    let mut iommu = Iommu::new(settings, vec![EndpointSpec::x86(A), EndpointSpec::x86(B)]).unwrap();
    host.fail_after(1);
    let error = iommu.start(&mut host).unwrap_err();
    assert_eq!(error.to_string(), "endpoint 0000:00:03.0: attach: told to fail");
    assert_eq!(iommu.request(&mut host, &attach(A, 1, false)), Status::DEVERR.into());
}

#[test]
fn an_endpoint_whose_reset_the_host_refuses_is_blocked_and_its_domain_ends() {
    let mut rig = Rig::attached();
    rig.iommu.set_bypass(&mut rig.host, true).unwrap();
    rig.calls();
    rig.host.fail_after(0);
    rig.iommu.reset(&mut rig.host);
    let calls = [attached_call(A, Target::Blocked), Call::DestroyDomain(domain(1))];
    assert_eq!(rig.calls(), calls);
    rig.iommu.reset(&mut rig.host);
    assert_eq!(rig.calls(), [attached_call(A, Target::Identity)], "the next one tries again");
}

#[test]
fn an_endpoint_that_the_host_does_not_restore_is_blocked_until_the_guest_attaches_it_again() {
    let mut rig = Rig::attached();
    rig.iommu.function_reset(&mut rig.host, A);
    rig.iommu.park(&mut rig.host);
    rig.calls();
    rig.host.fail_after(0);
    rig.iommu.resume(&mut rig.host);
    assert_eq!(rig.calls(), [attached_call(A, Target::Blocked)]);
    assert_eq!(rig.attach(A, 1), Status::OK);
    assert_eq!(rig.calls(), [attached_call(A, Target::Domain(domain(1)))]);
    assert_eq!(rig.iommu.mapping_count(), 2);
}

//! Bypass, stop and go, resets, functions.

use super::*;
use crate::iommu::StartError;
use crate::protocol::FaultReason;

const IN_DOMAIN_1: Target = Target::Domain(DomainId::new(1));

/// Like [`Rig::attached`], with `bypass` on: B is attached to nothing and bypasses.
fn attached_with_bypass() -> Rig {
    let mut rig = Rig::attached();
    rig.iommu.set_bypass(&mut rig.host, true).unwrap();
    rig.calls();
    rig
}

#[test]
fn start_sends_every_endpoint_where_boot_bypass_says() {
    for (boot_bypass, target) in [(true, Target::Identity), (false, Target::Blocked)] {
        let settings = Settings { boot_bypass, ..settings() };
        let endpoints = vec![EndpointSpec::x86(A), EndpointSpec::x86(B)];
        let mut iommu = Iommu::new(settings, endpoints).unwrap();
        let mut host = Recording::new(HOST);
        iommu.start(&mut host).unwrap();
        assert_eq!(host.take_calls(), [attached_call(A, target), attached_call(B, target)]);
    }
}

#[test]
fn a_change_of_bypass_moves_exactly_the_endpoints_that_are_attached_to_nothing() {
    let mut rig = Rig::attached();
    rig.iommu.set_bypass(&mut rig.host, true).unwrap();
    assert_eq!(rig.calls(), [attached_call(B, Target::Identity)]);
    assert!(rig.iommu.bypass() && rig.iommu.config().bypass);
    rig.iommu.set_bypass(&mut rig.host, true).unwrap();
    assert_eq!(rig.calls(), [], "the same value is no change");
    rig.iommu.set_bypass(&mut rig.host, false).unwrap();
    assert_eq!(rig.calls(), [attached_call(B, Target::Blocked)]);
}

#[test]
fn the_host_can_tell_what_the_guest_attached_to_a_bypass_domain_from_what_it_never_did() {
    let mut rig = attached_with_bypass();
    assert_eq!((rig.host.is_unattached(rid(A)), rig.host.is_unattached(rid(B))), (false, true));
    assert_eq!(rig.request(&attach(B, 2, true)), Status::OK);
    assert_eq!(rig.calls(), [attached_call(B, Target::Identity)]);
    assert!(!rig.host.is_unattached(rid(B)));
    rig.iommu.reset(&mut rig.host);
    assert!(rig.host.is_unattached(rid(A)));
}

#[test]
fn a_park_holds_what_is_attached_and_resume_lets_it_go_on() {
    let mut rig = attached_with_bypass();
    let before = rig.snapshot();
    rig.iommu.park(&mut rig.host);
    rig.iommu.park(&mut rig.host);
    assert_eq!(rig.calls(), [Call::Park(rid(A))]);
    rig.iommu.resume(&mut rig.host);
    rig.iommu.resume(&mut rig.host);
    assert_eq!(rig.calls(), [Call::Resume(rid(A))]);
    assert_eq!(rig.snapshot(), before);
}

#[test]
fn a_request_while_parked_is_deverr_and_changes_nothing() {
    let mut rig = Rig::attached();
    rig.iommu.park(&mut rig.host);
    for request in [attach(B, 1, false), unmap(1, pages(0, 9)), map(1, pages(50, 50), output(50))] {
        rig.refuses(&request, Status::DEVERR);
    }
    rig.iommu.resume(&mut rig.host);
    assert_eq!(rig.unmap(1, 0, 9), Status::OK);
}

#[test]
fn reset_leaves_nothing_attached_and_keeps_bypass() {
    for parked in [false, true] {
        let mut rig = attached_with_bypass();
        if parked {
            rig.iommu.park(&mut rig.host);
            rig.calls();
        }
        rig.iommu.reset(&mut rig.host);
        let calls = [attached_call(A, Target::Identity), Call::DestroyDomain(domain(1))];
        assert_eq!(rig.calls(), calls);
        assert_eq!(rig.host.state().parked, []);
        assert_eq!((rig.iommu.domain_count(), rig.iommu.bypass()), (0, true));
        assert_eq!(rig.attach(A, 1), Status::OK, "requests can come");
    }
}

#[test]
fn reset_of_what_is_reset_asks_the_host_nothing() {
    let mut rig = Rig::new();
    rig.iommu.reset(&mut rig.host);
    assert_eq!(rig.host.calls(), []);
}

#[test]
fn a_front_end_that_leaves_takes_its_bypass_with_it() {
    let mut rig = attached_with_bypass();
    rig.iommu.front_end_gone(&mut rig.host);
    let calls = [
        attached_call(A, Target::Blocked),
        Call::DestroyDomain(domain(1)),
        attached_call(B, Target::Blocked),
    ];
    assert_eq!(rig.calls(), calls);
    assert!(!rig.iommu.bypass());
}

#[test]
fn a_function_reset_while_the_rings_run_changes_nothing() {
    let mut rig = attached_with_bypass();
    rig.iommu.function_reset(&mut rig.host, A);
    assert_eq!(rig.host.calls(), []);
    let read = rig.host.state().translate(rid(A), Iova::new(0), Access::READ);
    assert_eq!(read, Some(output(0)), "still through its domain");
    rig.iommu.function_started(A);
    rig.iommu.park(&mut rig.host);
    assert_eq!(rig.calls(), [Call::Park(rid(A))], "and it is no candidate for firmware");
}

#[test]
fn firmware_can_use_a_function_that_was_reset_before_the_rings_stopped() {
    let mut rig = attached_with_bypass();
    rig.iommu.function_reset(&mut rig.host, A);
    rig.iommu.park(&mut rig.host);
    assert_eq!(rig.calls(), [attached_call(A, Target::Identity)]);
    rig.iommu.function_started(A);
    assert_eq!(rig.calls(), [], "it stays so while firmware uses it");
    rig.iommu.reset(&mut rig.host);
    assert_eq!(rig.calls(), [attached_call(A, Target::Identity), Call::DestroyDomain(domain(1))]);
}

#[test]
fn firmware_can_use_a_function_that_is_reset_after_the_rings_stopped() {
    let mut rig = attached_with_bypass();
    rig.iommu.park(&mut rig.host);
    rig.calls();
    rig.iommu.function_reset(&mut rig.host, A);
    rig.iommu.function_reset(&mut rig.host, A);
    assert_eq!(rig.calls(), [attached_call(A, Target::Identity)]);
    assert_eq!(rig.host.state().parked, [], "its accesses wait no more");
}

#[test]
fn without_bypass_a_function_that_was_reset_is_blocked_not_bypassed() {
    let mut rig = Rig::attached();
    rig.iommu.park(&mut rig.host);
    rig.calls();
    rig.iommu.function_reset(&mut rig.host, A);
    assert_eq!(rig.calls(), [attached_call(A, Target::Blocked)]);
    assert_eq!(rig.iommu.fault_reason(rid(A)), Some(FaultReason::Domain));
    rig.iommu.resume(&mut rig.host);
    assert_eq!(rig.iommu.fault_reason(rid(A)), Some(FaultReason::Mapping));
}

#[test]
fn resume_restores_what_was_lent_before_anything_that_waits_goes_on() {
    let mut rig = attached_with_bypass();
    assert_eq!(rig.attach(B, 1), Status::OK);
    rig.iommu.function_reset(&mut rig.host, B);
    rig.iommu.park(&mut rig.host);
    rig.iommu.function_started(B);
    rig.calls();
    rig.iommu.resume(&mut rig.host);
    assert_eq!(rig.calls(), [attached_call(B, IN_DOMAIN_1), Call::Resume(rid(A))]);
    assert_eq!(rig.iommu.mapping_count(), 2);
}

#[test]
fn what_is_lent_to_firmware_follows_a_change_of_bypass() {
    let mut rig = attached_with_bypass();
    rig.iommu.function_reset(&mut rig.host, A);
    rig.iommu.park(&mut rig.host);
    rig.calls();
    rig.iommu.set_bypass(&mut rig.host, false).unwrap();
    let calls = [attached_call(A, Target::Blocked), attached_call(B, Target::Blocked)];
    assert_eq!(rig.calls(), calls);
}

#[test]
fn a_function_that_does_not_exist_is_ignored() {
    let mut rig = Rig::attached();
    rig.iommu.function_reset(&mut rig.host, STRANGER);
    rig.iommu.function_started(STRANGER);
    assert_eq!(rig.host.calls(), []);
}

#[test]
fn a_host_that_learns_that_it_is_narrower_leaves_no_iova_that_it_cannot_map() {
    let mut rig = Rig::attached();
    let learnt = |capabilities| Recording::new(Capabilities { input_bits: 47, ..capabilities });
    rig.iommu.narrow(&learnt(HOST)).unwrap();
    let (last, past) = ((1 << 35) - 1, 1 << 35);
    assert_eq!(rig.iommu.config().input, pages(0, last));
    let map_at = |page| map(1, pages(page, page), output(0));
    assert_eq!(rig.request(&map_at(past)), Status::RANGE);
    assert_eq!(rig.request(&map_at(last)), Status::OK);
    rig.iommu.narrow(&Recording::new(HOST)).unwrap();
    assert_eq!(rig.iommu.config().input, pages(0, last), "what is narrow stays so");
    let coarse = learnt(Capabilities { page_size_mask: !0xffff, ..HOST });
    assert!(matches!(rig.iommu.narrow(&coarse), Err(StartError::Granule { host: 0x1_0000, .. })));
}

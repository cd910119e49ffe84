//! The rows of the conformance table that are about endpoints and domains, and their limits.

use super::*;
use crate::iommu::{SettingsError, StartError, X86_MSI_WINDOW};
use crate::protocol::{FaultReason, Properties, ResvKind, ResvMem};

const IN_DOMAIN_1: Target = Target::Domain(DomainId::new(1));

// ATTACH

#[test]
fn a3_attach_of_an_unknown_endpoint_is_noent() {
    Rig::attached().refuses(&attach(STRANGER, 1, false), Status::NOENT);
}

#[test]
fn a4_a_second_endpoint_shares_the_domain_and_its_mappings() {
    let mut rig = Rig::attached();
    assert_eq!(rig.attach(B, 1), Status::OK);
    assert_eq!(rig.calls(), [attached_call(B, IN_DOMAIN_1)]);
    assert_eq!(rig.iommu.mapping_count(), 2);
}

#[test]
fn a4_a_bypass_domain_takes_many_endpoints_and_the_host_makes_no_domain_for_it() {
    let mut rig = Rig::new();
    assert_eq!(rig.attach_bypass(A, 0), Status::OK);
    assert_eq!(rig.attach_bypass(B, 0), Status::OK);
    let calls = [attached_call(A, Target::Identity), attached_call(B, Target::Identity)];
    assert_eq!(rig.calls(), calls);
    assert_eq!(rig.iommu.domain_count(), 1);
}

#[test]
fn a5_a_flag_that_contradicts_the_domain_is_inval() {
    let mut rig = Rig::attached();
    rig.refuses(&attach(B, 1, true), Status::INVAL);
    rig.refuses(&attach(A, 1, true), Status::INVAL);
    assert_eq!(rig.attach_bypass(B, 2), Status::OK);
    rig.refuses(&attach(A, 2, false), Status::INVAL);
}

#[test]
fn a6_attach_elsewhere_leaves_the_old_domain_which_ends_with_its_mappings() {
    let mut rig = Rig::attached();
    assert_eq!(rig.attach(A, 2), Status::OK);
    let calls = [
        Call::CreateDomain(domain(2)),
        attached_call(A, Target::Domain(domain(2))),
        Call::DestroyDomain(domain(1)),
    ];
    assert_eq!(rig.calls(), calls);
    assert_eq!((rig.iommu.domain_count(), rig.iommu.mapping_count()), (1, 0));
    assert_eq!(rig.attach(A, 1), Status::OK, "the number can be used again");
    assert_eq!(rig.iommu.mapping_count(), 0, "and nothing of the old domain is left");
}

#[test]
fn a6_the_old_domain_stays_while_another_endpoint_is_in_it() {
    let mut rig = Rig::attached();
    assert_eq!(rig.attach(B, 1), Status::OK);
    assert_eq!(rig.attach(A, 2), Status::OK);
    assert_eq!((rig.iommu.domain_count(), rig.iommu.mapping_count()), (2, 2));
}

#[test]
fn a7_mappings_over_the_endpoints_reserved_memory_are_unsupp() {
    let special = ResvMem { kind: ResvKind::Reserved, range: pages(29, 40) };
    let endpoints =
        vec![EndpointSpec::x86(A), EndpointSpec { id: B, reserved: vec![X86_MSI_WINDOW, special] }];
    let mut rig = Rig::with_endpoints(settings(), endpoints);
    assert_eq!(rig.attach(A, 1), Status::OK);
    assert_eq!(rig.map(1, 20, 29), Status::OK);
    rig.refuses(&attach(B, 1, false), Status::UNSUPP);
    assert_eq!(rig.unmap(1, 20, 29), Status::OK);
    assert_eq!(rig.map(1, 20, 28), Status::OK);
    assert_eq!(rig.attach(B, 1), Status::OK, "a mapping beside the region is none of its business");
}

#[test]
fn a8_attach_makes_the_domain() {
    let mut rig = Rig::new();
    assert_eq!(rig.attach(A, 1), Status::OK);
    let calls = [Call::CreateDomain(domain(1)), attached_call(A, IN_DOMAIN_1)];
    assert_eq!(rig.calls(), calls);
}

#[test]
fn attach_again_to_the_same_domain_keeps_the_mappings_and_asks_the_host_nothing() {
    let mut rig = Rig::attached();
    let before = rig.snapshot();
    assert_eq!(rig.attach(A, 1), Status::OK);
    assert_eq!(rig.snapshot(), before);
    assert_eq!(rig.host.calls(), []);
}

#[test]
fn attach_to_a_number_outside_the_domain_range_is_range() {
    let mut rig = Rig::with(Settings { domains: 2..=5, ..settings() });
    for outside in [0, 1, 6, u32::MAX] {
        rig.refuses(&attach(A, outside, false), Status::RANGE);
        rig.refuses(&attach(A, outside, true), Status::RANGE);
    }
    for inside in [2, 5] {
        assert_eq!(rig.attach(A, inside), Status::OK);
    }
}

#[test]
fn the_domain_limit_is_nomem_one_past_it_and_moving_does_not_count_twice() {
    let mut rig = Rig::with(Settings { max_domains: 1, ..settings() });
    assert_eq!(rig.attach(A, 1), Status::OK);
    rig.refuses(&attach(B, 2, false), Status::NOMEM);
    rig.refuses(&attach(B, 2, true), Status::NOMEM);
    assert_eq!(rig.attach(A, 2), Status::OK, "domain 1 dies as domain 2 is made");
    assert_eq!(rig.attach(B, 2), Status::OK);
    rig.refuses(&attach(A, 1, false), Status::NOMEM);
}

// DETACH

#[test]
fn d2_detach_of_an_unknown_endpoint_is_noent() {
    let detach = Request::Detach(Detach { domain: domain(1), endpoint: STRANGER });
    Rig::attached().refuses(&detach, Status::NOENT);
}

#[test]
fn d3_detach_from_a_domain_that_is_unknown_or_not_the_endpoints_is_inval() {
    let mut rig = Rig::attached();
    assert_eq!(rig.attach(B, 2), Status::OK);
    for (endpoint, id) in [(A, 2), (A, 7), (B, 1), (A, 0)] {
        let detach = Request::Detach(Detach { domain: domain(id), endpoint });
        rig.refuses(&detach, Status::INVAL);
    }
    assert_eq!(rig.detach(B, 2), Status::OK);
    rig.refuses(&Request::Detach(Detach { domain: domain(2), endpoint: B }), Status::INVAL);
}

#[test]
fn d4_after_detach_the_endpoint_reaches_nothing_and_the_domain_is_gone() {
    let mut rig = Rig::attached();
    assert_eq!(rig.detach(A, 1), Status::OK);
    let calls = [attached_call(A, Target::Blocked), Call::DestroyDomain(domain(1))];
    assert_eq!(rig.calls(), calls);
    let read = rig.host.state().translate(rid(A), Iova::new(0), Access::READ);
    assert_eq!((read, rig.iommu.domain_count()), (None, 0));
    rig.refuses(&map(1, pages(50, 50), output(50)), Status::NOENT);
}

#[test]
fn d4_with_bypass_on_a_detached_endpoint_bypasses() {
    let mut rig = Rig::with(Settings { boot_bypass: true, ..settings() });
    assert_eq!(rig.attach(A, 1), Status::OK);
    assert_eq!(rig.detach(A, 1), Status::OK);
    let read = rig.host.state().translate(rid(A), Iova::new(0x123), Access::READ);
    assert_eq!(read, Some(PhysAddr::new(0x123)));
}

#[test]
fn linux_may_detach_an_identity_endpoint_from_domain_0_where_0_is_no_domain() {
    let mut rig = Rig::with(Settings { domains: 1..=9, ..settings() });
    assert_eq!(rig.attach_bypass(A, 1), Status::OK);
    assert_eq!(rig.attach(B, 2), Status::OK);
    rig.refuses(&Request::Detach(Detach { domain: domain(0), endpoint: B }), Status::INVAL);
    assert_eq!(rig.detach(A, 0), Status::OK);
    assert_eq!(rig.iommu.fault_reason(rid(A)), Some(FaultReason::Domain));
}

#[test]
fn domain_0_is_nothing_special() {
    let mut rig = Rig::new();
    assert_eq!(rig.attach(A, 0), Status::OK);
    assert_eq!(rig.map(0, 1, 1), Status::OK);
    assert_eq!(rig.attach_bypass(B, 5), Status::OK);
    rig.refuses(&Request::Detach(Detach { domain: domain(0), endpoint: B }), Status::INVAL);
    assert_eq!(rig.detach(A, 0), Status::OK);
}

// PROBE

#[test]
fn p2_probe_of_an_unknown_endpoint_is_noent() {
    assert_eq!(Rig::new().probe(STRANGER), Status::NOENT.into());
}

#[test]
fn probe_tells_the_endpoints_reserved_regions() {
    let properties = Properties { regions: &[X86_MSI_WINDOW], ..Properties::default() };
    assert_eq!(Rig::new().probe(A), Reply::properties(properties));
}

#[test]
fn r1_endpoints_with_overlapping_or_two_msi_regions_make_no_device() {
    let region = |kind, first, last| ResvMem { kind, range: pages(first, last) };
    let made = |reserved| {
        Iommu::new(settings(), vec![EndpointSpec { id: A, reserved }]).map(|_| ()).unwrap_err()
    };
    let two = vec![region(ResvKind::Msi, 0, 0), region(ResvKind::Msi, 5, 5)];
    assert_eq!(made(two), SettingsError::TwoMsiRegions(A));
    let overlap = vec![region(ResvKind::Reserved, 5, 9), region(ResvKind::Msi, 0, 5)];
    let (first, second) = (pages(0, 5), pages(5, 9));
    assert_eq!(made(overlap), SettingsError::ReservedOverlap { endpoint: A, first, second });
}

#[test]
fn endpoints_whose_regions_fill_the_properties_are_taken_and_one_more_is_not() {
    let regions = |count| {
        (0..count).map(|i| ResvMem { kind: ResvKind::Reserved, range: pages(2 * i, 2 * i) })
    };
    let spec = |count| vec![EndpointSpec { id: A, reserved: regions(count).collect() }];
    assert!(Iommu::new(settings(), spec(21)).is_ok());
    let refused = Iommu::new(settings(), spec(22)).map(|_| ()).unwrap_err();
    assert_eq!(refused, SettingsError::ReservedTooMany { endpoint: A, room: 21 });
}

// Settings and start

#[test]
fn settings_that_make_no_device_are_refused_with_what_is_wrong() {
    let made = |settings| Iommu::new(settings, Vec::new()).map(|_| ()).unwrap_err();
    assert_eq!(made(Settings { page_size_mask: 0, ..settings() }), SettingsError::NoPageSize);
    let input = IovaRange::new(Iova::new(0), Iova::new(0xffe)).unwrap();
    assert_eq!(
        made(Settings { input, ..settings() }),
        SettingsError::InputUnaligned { input, granule: 0x1000 }
    );
    let twice = Iommu::new(settings(), vec![EndpointSpec::x86(A), EndpointSpec::x86(A)]);
    assert_eq!(twice.map(|_| ()).unwrap_err(), SettingsError::EndpointTwice(A));
}

#[test]
fn a_host_that_is_too_coarse_or_too_narrow_is_refused_at_start() {
    let start = |host: Capabilities| {
        let mut iommu = Iommu::new(Settings::default(), vec![EndpointSpec::x86(A)]).unwrap();
        iommu.start(&mut Recording::new(host))
    };
    let coarse = start(Capabilities { page_size_mask: 1 << 16, ..HOST });
    assert!(matches!(coarse, Err(StartError::Granule { granule: 0x1000, host: 0x1_0000 })));
    let narrow = start(Capabilities { input_bits: 47, ..HOST });
    assert!(matches!(narrow, Err(StartError::Input { host_bits: 47, .. })));
    assert!(start(Capabilities { input_bits: 48, ..HOST }).is_ok());
}

#[test]
fn a_request_before_start_is_deverr() {
    let mut iommu = Iommu::new(settings(), vec![EndpointSpec::x86(A)]).unwrap();
    let mut host = Recording::new(HOST);
    let reply = iommu.request(&mut host, &attach(A, 1, false));
    assert_eq!(reply, Status::DEVERR.into());
    assert_eq!(host.calls(), []);
}

#[test]
fn the_configuration_space_says_what_was_set() {
    let rig = Rig::with(Settings { domains: 3..=7, ..settings() });
    let config = rig.iommu.config();
    assert_eq!(
        (config.page_size_mask, config.input, config.domains, config.probe_size, config.bypass),
        (Settings::DEFAULT_PAGE_SIZES, settings().input, 3..=7, 512, false)
    );
}

#[test]
fn the_reason_of_a_fault_is_whether_the_endpoint_is_attached() {
    let rig = Rig::attached();
    assert_eq!(rig.iommu.fault_reason(rid(A)), Some(FaultReason::Mapping));
    assert_eq!(rig.iommu.fault_reason(rid(B)), Some(FaultReason::Domain));
    assert_eq!(rig.iommu.fault_reason(rid(STRANGER)), None);
}

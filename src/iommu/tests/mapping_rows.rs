//! The rows of the conformance table that are about mappings, and their limit.

use super::*;
use crate::iommu::X86_MSI_WINDOW;
use crate::protocol::{ResvKind, ResvMem};

// MAP

#[test]
fn m1_a_map_that_is_not_on_the_granule_is_range() {
    let mut rig = Rig::attached();
    let range = |start, last| IovaRange::new(Iova::new(start), Iova::new(last)).unwrap();
    let oa = PhysAddr::new(0x10_0000);
    rig.refuses(&map(1, range(0x5_0001, 0x5_0fff), oa), Status::RANGE);
    rig.refuses(&map(1, range(0x5_0000, 0x5_0ffe), oa), Status::RANGE);
    rig.refuses(&map(1, range(0x5_0000, 0x5_0fff), PhysAddr::new(0x10_0800)), Status::RANGE);
    rig.refuses(&map(1, range(0x5_0000, 0x5_0000), oa), Status::RANGE);
}

#[test]
fn m2_a_map_that_overlaps_a_mapping_is_inval() {
    let mut rig = Rig::attached();
    let over_20_to_29 = [(20, 29), (20, 20), (29, 29), (25, 26), (15, 20), (29, 35), (10, 40)];
    for (first, last) in over_20_to_29 {
        rig.refuses(&map(1, pages(first, last), output(first)), Status::INVAL);
    }
    assert_eq!(rig.map(1, 10, 19), Status::OK);
    assert_eq!(rig.map(1, 30, 30), Status::OK);
}

#[test]
fn m4_m5_a_map_to_an_unknown_domain_is_noent_and_to_a_bypass_domain_inval() {
    let mut rig = Rig::attached();
    rig.refuses(&map(7, pages(50, 50), output(50)), Status::NOENT);
    assert_eq!(rig.attach_bypass(B, 2), Status::OK);
    rig.refuses(&map(2, pages(50, 50), output(50)), Status::INVAL);
}

#[test]
fn m6_the_host_is_told_what_a_mapping_allows() {
    let mut rig = Rig::attached();
    for (page, access) in [(40, Access::READ), (41, Access::WRITE), (42, Access::RW)] {
        let (iova, oa) = (pages(page, page), output(page));
        let request = Request::Map(Map { domain: domain(1), iova, oa, access, mmio: page == 42 });
        assert_eq!(rig.request(&request), Status::OK);
        let mapping = Mapping::new(iova, oa, access).unwrap();
        assert_eq!(rig.calls(), [Call::Map(domain(1), mapping)]);
    }
}

#[test]
fn a_map_that_allows_nothing_holds_its_range_and_the_host_is_not_asked() {
    let mut rig = Rig::attached();
    let access = Access::empty();
    let (iova, oa) = (pages(40, 40), output(40));
    let request = Request::Map(Map { domain: domain(1), iova, oa, access, mmio: false });
    assert_eq!(rig.request(&request), Status::OK);
    rig.refuses(&map(1, iova, oa), Status::INVAL);
    assert_eq!(rig.unmap(1, 40, 40), Status::OK);
    assert_eq!((rig.host.calls(), rig.iommu.mapping_count()), (&[][..], 2));
}

#[test]
fn o6_a_map_outside_the_input_range_is_range() {
    let mut rig = Rig::with(Settings { input: pages(16, 31), ..settings() });
    assert_eq!(rig.attach(A, 1), Status::OK);
    for (first, last) in [(15, 15), (15, 16), (31, 32), (32, 32), (0, u64::MAX >> 12)] {
        rig.refuses(&map(1, pages(first, last), PhysAddr::new(0)), Status::RANGE);
    }
    assert_eq!(rig.map(1, 16, 31), Status::OK);
}

#[test]
fn a_map_whose_output_the_host_cannot_reach_is_range() {
    let mut rig = Rig::attached();
    let top = PhysAddr::new((1 << 47) - 0x1000);
    rig.refuses(&map(1, pages(40, 41), top), Status::RANGE);
    rig.refuses(&map(1, pages(40, 41), PhysAddr::new(u64::MAX - 0xfff)), Status::RANGE);
    assert_eq!(rig.request(&map(1, pages(40, 40), top)), Status::OK);
}

#[test]
fn a_map_of_the_whole_space_is_one_mapping() {
    let all = IovaRange::new(Iova::new(0), Iova::new(u64::MAX)).unwrap();
    let endpoint = EndpointSpec { id: A, reserved: Vec::new() };
    let mut host = Recording::new(Capabilities { output_last: u64::MAX, ..HOST });
    let mut iommu = Iommu::new(settings(), vec![endpoint]).unwrap();
    iommu.start(&mut host).unwrap();
    for request in [attach(A, 1, false), map(1, all, PhysAddr::new(0))] {
        assert_eq!(iommu.request(&mut host, &request).status(), Status::OK);
    }
    assert_eq!(iommu.mapping_count(), 1);
    let again = iommu.request(&mut host, &map(1, pages(5, 5), output(5))).status();
    assert_eq!(again, Status::INVAL);
    let part = iommu.request(&mut host, &unmap(1, pages(0, 5))).status();
    assert_eq!(part, Status::RANGE);
    assert_eq!(iommu.request(&mut host, &unmap(1, all)).status(), Status::OK);
    assert_eq!((iommu.mapping_count(), host.state().domains[&domain(1)].len()), (0, 0));
}

#[test]
fn the_mapping_limit_is_nomem_one_past_it() {
    let mut rig = Rig::with(Settings { max_mappings: 3, ..settings() });
    assert_eq!(rig.attach(A, 1), Status::OK);
    for page in 0..3 {
        assert_eq!(rig.map(1, page, page), Status::OK);
    }
    rig.refuses(&map(1, pages(3, 3), output(3)), Status::NOMEM);
    assert_eq!(rig.unmap(1, 1, 1), Status::OK);
    assert_eq!(rig.map(1, 3, 3), Status::OK);
    assert_eq!(rig.attach(B, 2), Status::OK);
    assert_eq!(rig.map(2, 0, 0), Status::OK, "the limit is each domain's own");
}

// UNMAP

/// The examples of the specification (virtio 1.4, 5.13.6.6), with pages for its bytes.
#[test]
fn u4_u5_the_specifications_examples_of_unmap_hold() {
    type Case = (&'static [(u64, u64)], (u64, u64), Status, &'static [(u64, u64)]);
    let cases: [Case; 7] = [
        (&[], (0, 4), Status::OK, &[]),
        (&[(0, 9)], (0, 9), Status::OK, &[]),
        (&[(0, 4), (5, 9)], (0, 9), Status::OK, &[]),
        (&[(0, 9)], (0, 4), Status::RANGE, &[(0, 9)]),
        (&[(0, 4), (5, 9)], (0, 4), Status::OK, &[(5, 9)]),
        (&[(0, 4)], (0, 9), Status::OK, &[]),
        (&[(0, 4), (10, 14)], (0, 14), Status::OK, &[]),
    ];
    for (mapped, (first, last), status, left) in cases {
        let mut rig = Rig::new();
        assert_eq!(rig.attach(A, 1), Status::OK);
        for (first, last) in mapped {
            assert_eq!(rig.map(1, *first, *last), Status::OK);
        }
        assert_eq!(rig.unmap(1, first, last), status, "{mapped:?}, unmap {first}-{last}");
        let host = &rig.host.state().domains[&domain(1)];
        let expected: Vec<_> = left.iter().map(|(first, last)| rw(*first, *last)).collect();
        assert_eq!(host.values().copied().collect::<Vec<_>>(), expected);
        assert_eq!(rig.iommu.mapping_count(), left.len());
    }
}

#[test]
fn u2_u3_unmap_of_an_unknown_domain_is_noent_and_of_a_bypass_domain_inval() {
    let mut rig = Rig::attached();
    rig.refuses(&unmap(7, pages(0, 9)), Status::NOENT);
    assert_eq!(rig.attach_bypass(B, 2), Status::OK);
    rig.refuses(&unmap(2, pages(0, 9)), Status::INVAL);
}

#[test]
fn u4_unmap_that_would_split_removes_nothing() {
    let mut rig = Rig::attached();
    for (first, last) in [(0, 8), (1, 9), (3, 4), (5, 25), (0, 25), (5, 29), (9, 19), (10, 20)] {
        rig.refuses(&unmap(1, pages(first, last)), Status::RANGE);
    }
}

#[test]
fn u5_unmap_withdraws_each_mapping_in_its_range_whole_and_in_order() {
    let mut rig = Rig::attached();
    assert_eq!(rig.unmap(1, 0, u64::MAX >> 12), Status::OK);
    let calls = [Call::Unmap(domain(1), rw(0, 9)), Call::Unmap(domain(1), rw(20, 29))];
    assert_eq!(rig.calls(), calls);
    assert_eq!(rig.iommu.mapping_count(), 0);
}

// Reserved memory

#[test]
fn r1_a_map_over_reserved_memory_of_any_endpoint_in_the_domain_is_inval() {
    let special = ResvMem { kind: ResvKind::Reserved, range: pages(60, 69) };
    let endpoints =
        vec![EndpointSpec::x86(A), EndpointSpec { id: B, reserved: vec![X86_MSI_WINDOW, special] }];
    let mut rig = Rig::with_endpoints(settings(), endpoints);
    assert_eq!(rig.attach(A, 1), Status::OK);
    for (first, last) in [(0xfee00, 0xfeeff), (0xfedff, 0xfee00), (0xfeeff, 0xfef00)] {
        rig.refuses(&map(1, pages(first, last), output(first)), Status::INVAL);
    }
    assert_eq!(rig.attach(B, 1), Status::OK);
    rig.refuses(&map(1, pages(60, 60), output(60)), Status::INVAL);
    rig.refuses(&map(1, pages(0xfee00, 0xfee00), output(0)), Status::INVAL);
    assert_eq!(rig.detach(B, 1), Status::OK);
    assert_eq!(rig.map(1, 60, 60), Status::OK, "B took its region with it");
    rig.refuses(&map(1, pages(0xfee00, 0xfee00), output(0)), Status::INVAL);
}

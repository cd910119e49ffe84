use std::fs::File;
use std::os::fd::AsFd;

use viommu_pasid::vtd::{FirstControls, FirstLevel};
use viommu_pasid::{EndpointId, FirstTable, Requester};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

use super::Mixed;
use crate::recording::{Call, Recording};
use crate::state::State;
use crate::{Capabilities, DomainId, HostError, HostIommu, MemoryRegion, Output, Role, Target};

/// A process's endpoint, and a device of the host's.
const SOFT: Requester = Requester::rid(EndpointId::new(0x10));
const HARD: Requester = Requester::rid(EndpointId::new(0x20));
const DOMAIN: DomainId = DomainId::new(7);

fn recording(capabilities: Capabilities) -> Recording {
    Recording::new(capabilities)
}

fn wide() -> Capabilities {
    Capabilities {
        page_size_mask: 1 << 12 | 1 << 21 | 1 << 30,
        input_bits: 48,
        output_last: u64::MAX,
    }
}

fn mixed() -> Mixed<Recording, Recording> {
    Mixed::with(recording(wide()), recording(wide()), [HARD.endpoint])
}

fn page(at: u64, oa: u64) -> Mapping {
    let iova = IovaRange::with_len(Iova::new(at), 0x1000).unwrap();
    Mapping::new(iova, PhysAddr::new(oa), Access::READ | Access::WRITE).unwrap()
}

fn enter(host: &mut Mixed<Recording, Recording>, who: Requester, holds: &[Mapping]) {
    host.prepare(DOMAIN, Role::Alone(who), &mut holds.iter().copied()).unwrap();
    host.attach(who, Target::Domain(DOMAIN)).unwrap();
}

fn states(host: &mut Mixed<Recording, Recording>) -> (State, State) {
    let first = host.first().state().clone();
    (first, host.second_mut().unwrap().state().clone())
}

#[test]
fn a_domain_is_in_a_backend_only_once_an_endpoint_of_it_enters() {
    let mut host = mixed();
    host.create_domain(DOMAIN).unwrap();
    assert_eq!(states(&mut host), (State::default(), State::default()));
    enter(&mut host, HARD, &[]);
    host.map(DOMAIN, &page(0x1000, 0x5000)).unwrap();
    let (soft, hard) = states(&mut host);
    assert_eq!(soft, State::default());
    assert_eq!(hard.translate(HARD, Iova::new(0x1004), Access::READ), Some(PhysAddr::new(0x5004)));
}

#[test]
fn a_domain_of_both_can_be_the_parent_of_what_is_bound_in_the_first() {
    let mut host = mixed();
    let child = DomainId::new(8);
    host.create_domain(DOMAIN).unwrap();
    host.create_domain(child).unwrap();
    enter(&mut host, HARD, &[]);
    let held = [page(0x1000, 0x5000)];
    host.map(DOMAIN, &held[0]).unwrap();
    let controls = FirstControls::empty();
    let root = PhysAddr::new(0x1000);
    let table = FirstTable::Vtd(FirstLevel { root, five_levels: false, controls });
    let through = Output::Through(DOMAIN);
    assert!(matches!(host.bind(child, &table, through), Err(HostError::Unsupported(_))));
    host.prepare(DOMAIN, Role::SecondLevel, &mut held.iter().copied()).unwrap();
    host.bind(child, &table, through).unwrap();
    host.attach(SOFT, Target::Domain(child)).unwrap();
    host.map(DOMAIN, &page(0x8000, 0x9000)).unwrap();
    let (soft, hard) = states(&mut host);
    assert_eq!(soft.domains[&DOMAIN], hard.domains[&DOMAIN]);
    assert_eq!(soft.bound, [(child, (table, through))].into());
    assert_eq!(hard.bound, [].into());
    assert!(matches!(host.attach(HARD, Target::Domain(child)), Err(HostError::Unsupported(_))));
}

#[test]
fn who_comes_late_finds_what_was_mapped_before() {
    let mut host = mixed();
    host.create_domain(DOMAIN).unwrap();
    enter(&mut host, SOFT, &[]);
    let held = [page(0x1000, 0x5000), page(0x8000, 0x9000)];
    for mapping in &held {
        host.map(DOMAIN, mapping).unwrap();
    }
    enter(&mut host, HARD, &held);
    let (soft, hard) = states(&mut host);
    assert_eq!(soft.domains, hard.domains);
    host.unmap(DOMAIN, &held[0]);
    let (soft, hard) = states(&mut host);
    assert_eq!(soft.domains, hard.domains);
    assert_eq!(hard.domains[&DOMAIN].len(), 1);
}

#[test]
fn who_comes_late_and_cannot_hold_it_all_is_not_let_in_and_leaves_nothing() {
    let held = [page(0x1000, 0x5000), page(0x8000, 0x9000)];
    // creating the domain, its first mapping, its second
    for successes in 0..3 {
        let mut host = mixed();
        host.create_domain(DOMAIN).unwrap();
        enter(&mut host, SOFT, &[]);
        for mapping in &held {
            host.map(DOMAIN, mapping).unwrap();
        }
        host.second_mut().unwrap().fail_after(successes);
        let before = states(&mut host);
        let refused =
            host.prepare(DOMAIN, Role::Alone(HARD), &mut held.iter().copied()).unwrap_err();
        assert!(matches!(refused, HostError::Refused { .. }), "{refused}");
        assert_eq!(states(&mut host), before, "after {successes} successes");
    }
}

#[test]
fn a_mapping_that_one_refuses_is_in_neither() {
    let refuse: [fn(&mut Mixed<Recording, Recording>); 2] =
        [|host| host.first_mut().fail_after(0), |host| host.second_mut().unwrap().fail_after(0)];
    for refuse in refuse {
        let mut host = mixed();
        host.create_domain(DOMAIN).unwrap();
        enter(&mut host, SOFT, &[]);
        enter(&mut host, HARD, &[]);
        let before = states(&mut host);
        refuse(&mut host);
        host.map(DOMAIN, &page(0x1000, 0x5000)).unwrap_err();
        assert_eq!(states(&mut host), before);
        host.map(DOMAIN, &page(0x1000, 0x5000)).unwrap();
    }
}

fn set_memory(host: &mut Mixed<Recording, Recording>, regions: &[(u64, u64)]) -> bool {
    let file = File::open("/dev/null").unwrap();
    let region = |&(gpa, bytes): &(u64, u64)| MemoryRegion {
        gpa: PhysAddr::new(gpa),
        bytes,
        file: file.as_fd(),
        offset: gpa,
    };
    host.set_memory(&regions.iter().map(region).collect::<Vec<_>>()).is_ok()
}

/// What both have, which has to be the same.
fn memory(host: &Mixed<Recording, Recording>) -> Vec<(u64, u64)> {
    let both = [host.first(), host.second().unwrap()].map(Recording::memory);
    assert_eq!(both[0], both[1]);
    both[0].iter().map(|(start, bytes)| (start.raw(), *bytes)).collect()
}

#[test]
fn memory_that_one_refuses_is_in_neither() {
    let refuse: [fn(&mut Mixed<Recording, Recording>); 2] =
        [|host| host.first_mut().fail_after(0), |host| host.second_mut().unwrap().fail_after(0)];
    let (before, other) = ([(0, 0x8000), (0x10_0000, 0x1000)], [(0x8000, 0x2000)]);
    for refuse in refuse {
        let mut host = mixed();
        refuse(&mut host);
        assert!(!set_memory(&mut host, &before));
        assert_eq!(memory(&host), []);
        assert!(set_memory(&mut host, &before));
        refuse(&mut host);
        assert!(!set_memory(&mut host, &other));
        assert_eq!(memory(&host), before);
        assert!(set_memory(&mut host, &other));
        assert_eq!(memory(&host), other);
    }
}

#[test]
fn a_domain_that_ends_ends_wherever_it_was() {
    let mut host = mixed();
    host.create_domain(DOMAIN).unwrap();
    enter(&mut host, SOFT, &[]);
    enter(&mut host, HARD, &[]);
    host.attach(SOFT, Target::Blocked).unwrap();
    host.attach(HARD, Target::Blocked).unwrap();
    host.destroy_domain(DOMAIN);
    assert_eq!(states(&mut host), (State::default(), State::default()));
}

#[test]
fn an_endpoint_is_spoken_of_to_its_own_backend_only() {
    let mut host = mixed();
    host.attach(HARD, Target::Identity).unwrap();
    host.park(HARD);
    host.resume(HARD);
    assert_eq!(host.first().calls(), &[]);
    let calls = host.second_mut().unwrap().take_calls();
    assert_eq!(calls, [Call::Attach(HARD, Target::Identity), Call::Park(HARD), Call::Resume(HARD)]);
}

#[test]
fn an_endpoint_that_enters_unprepared_is_refused_where_mappings_would_be_missing() {
    let mut host = mixed();
    host.create_domain(DOMAIN).unwrap();
    enter(&mut host, SOFT, &[]);
    host.map(DOMAIN, &page(0x1000, 0x5000)).unwrap();
    let refused = host.attach(HARD, Target::Domain(DOMAIN)).unwrap_err();
    assert!(matches!(refused, HostError::Unsupported(_)), "{refused}");
}

#[test]
fn what_both_can_do_is_what_is_offered() {
    let narrow = Capabilities {
        page_size_mask: 1 << 14 | 1 << 21,
        input_bits: 39,
        output_last: (1 << 46) - 1,
    };
    let host = Mixed::with(recording(wide()), recording(narrow), [HARD.endpoint]);
    let both = Capabilities {
        page_size_mask: 1 << 14 | 1 << 21,
        input_bits: 39,
        output_last: (1 << 46) - 1,
    };
    assert_eq!(host.capabilities(), both);
}

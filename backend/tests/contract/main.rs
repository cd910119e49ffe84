//! The contract of `HostIommu`, run against every backend: the same calls, the same translations.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod binding;
mod guest;
mod hostile;
mod random;
mod subject;

use proptest::prelude::*;
use viommu_backend::{HostError, HostIommu, SoftwareIommu, Target};
use viommu_iotlb::Arch;
use viommu_pgtable::{Access, Iova, Mapping, PhysAddr};

use subject::{
    ENDPOINTS, ONE, PAGE, Subject, TWO, all, mapping, pasid, recording, rid, smmuv3, software,
    try_software,
};

#[test]
fn a_fresh_endpoint_is_blocked_and_identity_leads_to_the_address_itself() {
    for mut host in all() {
        let at = Iova::new(0x1234_5678);
        assert_eq!(host.leads_to(rid(0), at, Access::READ), None);
        host.attach(rid(0), Target::Identity).unwrap();
        assert_eq!(host.leads_to(rid(0), at, Access::RW), Some(PhysAddr::new(0x1234_5678)));
        host.attach(rid(0), Target::Blocked).unwrap();
        assert_eq!(host.leads_to(rid(0), at, Access::READ), None);
    }
}

#[test]
fn all_endpoints_of_a_domain_see_its_mappings_and_nobody_else_does() {
    for mut host in all() {
        host.create_domain(ONE).unwrap();
        host.create_domain(TWO).unwrap();
        host.attach(rid(0), Target::Domain(ONE)).unwrap();
        host.attach(rid(1), Target::Domain(TWO)).unwrap();
        host.attach(rid(2), Target::Domain(ONE)).unwrap();
        host.map(ONE, &mapping(5, 2, 100, Access::RW)).unwrap();
        let at = Iova::new(6 * PAGE + 8);
        let there = Some(PhysAddr::new(101 * PAGE + 8));
        assert_eq!(host.leads_to(rid(0), at, Access::WRITE), there);
        assert_eq!(host.leads_to(rid(1), at, Access::READ), None);
        assert_eq!(host.leads_to(rid(2), at, Access::WRITE), there);
    }
}

#[test]
fn each_pasid_sees_its_own_domain_and_untagged_traffic_another() {
    for mut host in all() {
        for domain in [ONE, TWO] {
            host.create_domain(domain).unwrap();
        }
        host.map(ONE, &mapping(5, 1, 100, Access::RW)).unwrap();
        host.map(TWO, &mapping(5, 1, 200, Access::RW)).unwrap();
        host.attach(pasid(0, 1), Target::Domain(ONE)).unwrap();
        host.attach(pasid(0, 2), Target::Domain(TWO)).unwrap();
        host.attach(pasid(0, 1023), Target::Domain(ONE)).unwrap();
        host.attach(pasid(1, 2), Target::Domain(ONE)).unwrap();
        host.attach(rid(1), Target::Identity).unwrap();
        let at = |requester| host.leads_to(requester, Iova::new(5 * PAGE), Access::RW);
        let page = |number| Some(PhysAddr::new(number * PAGE));
        assert_eq!((at(pasid(0, 1)), at(pasid(0, 2))), (page(100), page(200)));
        assert_eq!((at(pasid(0, 1023)), at(pasid(1, 2))), (page(100), page(100)));
        assert_eq!((at(rid(0)), at(rid(1))), (None, page(5)));
        assert_eq!((at(pasid(0, 3)), at(pasid(1, 1))), (None, None));
        host.attach(pasid(0, 1), Target::Domain(TWO)).unwrap();
        host.attach(pasid(0, 2), Target::Blocked).unwrap();
        host.unmap(ONE, &mapping(5, 1, 100, Access::RW));
        host.sync();
        let at = |requester| host.leads_to(requester, Iova::new(5 * PAGE), Access::RW);
        assert_eq!((at(pasid(0, 1)), at(pasid(0, 2))), (page(200), None));
        assert_eq!((at(pasid(0, 1023)), at(pasid(1, 2))), (None, None));
    }
}

#[test]
fn read_only_and_write_only_mappings_allow_nothing_else() {
    for mut host in all() {
        host.create_domain(ONE).unwrap();
        host.attach(rid(0), Target::Domain(ONE)).unwrap();
        host.map(ONE, &mapping(1, 1, 10, Access::READ)).unwrap();
        host.map(ONE, &mapping(2, 1, 20, Access::WRITE)).unwrap();
        let leads = |page: u64, access| host.leads_to(rid(0), Iova::new(page * PAGE), access);
        assert_eq!(leads(1, Access::READ), Some(PhysAddr::new(10 * PAGE)));
        assert_eq!(leads(1, Access::WRITE), None);
        assert_eq!(leads(2, Access::WRITE), Some(PhysAddr::new(20 * PAGE)));
        let reads = if host.forbids_reads() { None } else { Some(PhysAddr::new(20 * PAGE)) };
        assert_eq!(leads(2, Access::READ), reads);
    }
}

#[test]
fn an_unmapped_range_leads_nowhere_and_its_neighbours_stay() {
    for mut host in all() {
        host.create_domain(ONE).unwrap();
        host.attach(rid(0), Target::Domain(ONE)).unwrap();
        let middle = mapping(512, 512, 1024, Access::RW); // one 2 MiB leaf
        for mapping in [mapping(511, 1, 7, Access::RW), middle, mapping(1024, 1, 9, Access::RW)] {
            host.map(ONE, &mapping).unwrap();
        }
        host.unmap(ONE, &middle);
        host.sync();
        let leads = |page: u64| host.leads_to(rid(0), Iova::new(page * PAGE), Access::READ);
        assert_eq!((leads(511), leads(512)), (Some(PhysAddr::new(7 * PAGE)), None));
        assert_eq!((leads(1023), leads(1024)), (None, Some(PhysAddr::new(9 * PAGE))));
    }
}

#[test]
fn a_domain_made_again_is_empty() {
    for mut host in all() {
        host.create_domain(ONE).unwrap();
        host.attach(rid(0), Target::Domain(ONE)).unwrap();
        host.map(ONE, &mapping(1, 1, 10, Access::RW)).unwrap();
        host.attach(rid(0), Target::Blocked).unwrap();
        host.destroy_domain(ONE);
        host.sync();
        host.create_domain(ONE).unwrap();
        host.attach(rid(0), Target::Domain(ONE)).unwrap();
        assert_eq!(host.leads_to(rid(0), Iova::new(PAGE), Access::READ), None);
    }
}

#[test]
fn a_map_that_needs_more_tables_than_are_left_writes_nothing() {
    for mut host in [software(2 << 20), smmuv3(2 << 20)] {
        host.create_domain(ONE).unwrap();
        host.attach(rid(0), Target::Domain(ONE)).unwrap();
        // 4 GiB of 4 KiB pages, since the output is misaligned for more: 2048 tables
        let error = host.map(ONE, &mapping(0, 1 << 20, (1 << 20) + 1, Access::RW)).unwrap_err();
        assert!(matches!(error, HostError::OutOfTables(_)), "{error}");
        for page in [0, 1, 511, 512, (1 << 20) - 1] {
            assert_eq!(host.leads_to(rid(0), Iova::new(page * PAGE), Access::READ), None);
        }
        host.map(ONE, &mapping(0, 1, 1, Access::RW)).unwrap();
        assert_eq!(host.leads_to(rid(0), Iova::new(0), Access::READ), Some(PhysAddr::new(PAGE)));
    }
}

#[test]
fn a_guest_that_used_up_the_tables_can_still_attach_elsewhere_and_gets_them_back() {
    for mut host in [software(2 << 20), smmuv3(2 << 20)] {
        host.create_domain(ONE).unwrap();
        host.attach(rid(0), Target::Domain(ONE)).unwrap();
        host.sync(); // what attaching replaced is free again
        let fill = |host: &mut SoftwareIommu| {
            (0u64..)
                .take_while(|n| host.map(ONE, &mapping(n << 18, 1, 1, Access::RW)).is_ok())
                .count()
        };
        let first = fill(&mut host);
        assert!(first > 50, "{first}");
        for _ in 0..200 {
            host.attach(rid(0), Target::Identity).unwrap();
            host.attach(rid(0), Target::Domain(ONE)).unwrap();
        }
        host.attach(rid(0), Target::Blocked).unwrap();
        host.destroy_domain(ONE);
        host.sync();
        host.create_domain(ONE).unwrap();
        host.attach(rid(0), Target::Domain(ONE)).unwrap();
        assert_eq!(fill(&mut host), first);
    }
}

/// One fallible call.
type Call = fn(&mut dyn Subject) -> Result<(), HostError>;

/// Calls of which each needs memory, alone or for what others have left.
const CALLS: [Call; 9] = [
    |host| host.create_domain(ONE),
    |host| host.attach(rid(0), Target::Domain(ONE)),
    |host| host.map(ONE, &mapping(1, 1, 11, Access::RW)),
    |host| host.create_domain(TWO),
    |host| host.map(ONE, &mapping(512, 1024, 513, Access::RW)),
    |host| host.attach(rid(1), Target::Identity),
    |host| host.map(TWO, &mapping(1 << 18, 513, 77, Access::RW)),
    |host| host.attach(rid(0), Target::Domain(TWO)),
    |host| host.map(TWO, &mapping(5 << 27, 1, 99, Access::RW)),
];

/// Pages on both sides of every edge of [`CALLS`]' mappings.
const PROBES: [u64; 12] = [
    0,
    1,
    2,
    511,
    512,
    1535,
    1536,
    (1 << 18) - 1,
    1 << 18,
    (1 << 18) + 512,
    (1 << 18) + 513,
    5 << 27,
];

#[test]
fn whichever_call_finds_no_memory_changes_nothing() {
    for arch in [Arch::Vtd, Arch::SmmuV3] {
        let mut refused = [0; CALLS.len()];
        // from too little for the endpoints to enough for all, page by page
        for pages in 2..120 {
            let Ok(mut host) = try_software(arch, pages * PAGE) else { continue };
            let mut model = recording();
            for (call, refused) in CALLS.iter().zip(&mut refused) {
                match call(&mut host) {
                    Ok(()) => call(&mut model).unwrap(),
                    Err(_) => *refused += 1,
                }
                host.sync();
                for (page, endpoint) in PROBES.iter().flat_map(|p| [(p, 0), (p, 1)]) {
                    let leads = |subject: &dyn Subject| {
                        subject.leads_to(rid(endpoint), Iova::new(page * PAGE), Access::RW)
                    };
                    assert_eq!(leads(&host), leads(&model), "{arch:?}, {pages} pages, page {page}");
                }
            }
        }
        // an empty domain takes no memory
        let [none, first, .., last] = refused;
        let as_expected = none == 0 && 0 < first && first < last && last < 118;
        assert!(as_expected, "{arch:?}: {refused:?}");
    }
}

#[test]
fn no_mapping_may_reach_the_tables() {
    assert_eq!(software(2 << 20).capabilities().output_last, (1 << 51) - 1);
    assert_eq!(smmuv3(2 << 20).capabilities().output_last, (1 << 47) - 1);
}

/// A step of a random run; numbers are taken modulo what there is.
#[derive(Debug, Clone, Copy)]
enum Step {
    Attach(usize, u8),
    Map(u8, u64, u64, u64, u8),
    Unmap(u8, usize),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..3usize, 0..4u8).prop_map(|(endpoint, target)| Step::Attach(endpoint, target)),
        (0..2u8, 0..3000u64, 1..1200u64, 0..5000u64, 1..4u8)
            .prop_map(|(domain, at, len, to, access)| Step::Map(domain, at, len, to, access)),
        (0..2u8, 0..8usize).prop_map(|(domain, nth)| Step::Unmap(domain, nth)),
        Just(Step::Sync),
    ]
}

fn apply(host: &mut dyn Subject, step: Step, live: &mut [Vec<Mapping>; 2]) {
    let domain = |n: u8| [ONE, TWO][usize::from(n)];
    match step {
        Step::Attach(endpoint, target) => {
            let target = match target {
                0 => Target::Blocked,
                1 => Target::Identity,
                n => Target::Domain(domain(n - 2)),
            };
            host.attach(rid(endpoint), target).unwrap();
        }
        Step::Map(n, at, len, to, access) => {
            let new = mapping(at, len, to, Access::from_bits_truncate(access));
            let live = &mut live[usize::from(n)];
            if live.iter().all(|old| !old.iova().overlaps(&new.iova())) {
                host.map(domain(n), &new).unwrap();
                live.push(new);
            }
        }
        Step::Unmap(n, nth) => {
            let live = &mut live[usize::from(n)];
            if !live.is_empty() {
                host.unmap(domain(n), &live.swap_remove(nth % live.len()));
            }
        }
        Step::Sync => host.sync(),
    }
}

fn run(mut host: Box<dyn Subject>, steps: &[Step]) -> Box<dyn Subject> {
    host.create_domain(ONE).unwrap();
    host.create_domain(TWO).unwrap();
    let mut live = [Vec::new(), Vec::new()];
    for step in steps {
        apply(host.as_mut(), *step, &mut live);
    }
    host
}

/// The steps as a backend that cannot forbid reads performs them: what may be written may be read.
fn readable(steps: &[Step]) -> Vec<Step> {
    let readable = |step: &Step| match *step {
        Step::Map(domain, at, len, to, access) => Step::Map(domain, at, len, to, access | 1),
        other => other,
    };
    steps.iter().map(readable).collect()
}

proptest! {
    #[test]
    fn every_backend_translates_as_the_model_does(
        steps in prop::collection::vec(step(), 1..40),
        probes in prop::collection::vec(0..4200 * PAGE, 50),
    ) {
        for subject in [software(1 << 26), smmuv3(1 << 26)] {
            let expressible =
                if subject.forbids_reads() { steps.clone() } else { readable(&steps) };
            let model = run(Box::new(recording()), &expressible);
            let subject = run(Box::new(subject), &steps);
            for endpoint in 0..ENDPOINTS.len() {
                for (probe, access) in probes.iter().flat_map(|at| {
                    [Access::READ, Access::WRITE, Access::RW].map(|access| (Iova::new(*at), access))
                }) {
                    prop_assert_eq!(
                        subject.leads_to(rid(endpoint), probe, access),
                        model.leads_to(rid(endpoint), probe, access)
                    );
                }
            }
        }
    }
}

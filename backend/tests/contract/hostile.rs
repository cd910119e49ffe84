//! Tables made of anything, bound in every way: they lead where they would if there were no region.

use std::cell::Cell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use viommu_backend::{DomainId, HostIommu, Output, Role, Target};
use viommu_iotlb::Arch;
use viommu_pgtable::{Access, Iova};

use crate::guest::{Driver, Guest};
use crate::subject::{ONE, PAGE, TWO, mapping, pasid, recording, software_of};

/// Where the guest's tables are, and so many pages of them.
const TABLES: u64 = 0x100;
const PAGES: u64 = 6;
const THREE: DomainId = DomainId::new(3);

/// An entry: a pointer to somewhere of interest, with any flags.
fn word(base: u64) -> impl Strategy<Value = u64> {
    let page = prop_oneof![
        6 => (TABLES..TABLES + PAGES).prop_map(|page| page * PAGE),
        1 => (0..64_u64).prop_map(move |page| base + page * PAGE),
        1 => (0..64_u64).prop_map(move |page| base - page * PAGE),
        1 => any::<u64>().prop_map(|any| any & !0xfff),
    ];
    let flags = prop_oneof![
        4 => Just(0x467_u64), // present in both formats, with all rights and flags
        1 => Just(0x4e3),
        1 => 0..0x1000_u64,
    ];
    (page, flags).prop_map(|(page, flags)| page | flags)
}

fn words() -> impl Strategy<Value = (Arch, Vec<(u64, u64)>)> {
    [(Arch::Vtd, 51), (Arch::SmmuV3, 47)]
        .map(|(arch, lg2)| {
            let place = (0..PAGES * 8).prop_map(|at| TABLES * PAGE + at / 8 * PAGE + at % 8 * 8);
            let words = prop::collection::vec((place, word(1 << lg2)), 20..60);
            words.prop_map(move |words| (arch, words)).boxed()
        })
        .into_iter()
        .fold(None, |all: Option<BoxedStrategy<_>>, one| {
            Some(all.map_or(one.clone(), |all| prop_oneof![all, one.clone()].boxed()))
        })
        .unwrap()
}

fn guest_of(arch: Arch, words: &[(u64, u64)]) -> (Guest, viommu_pasid::FirstTable) {
    let guest = Guest::default();
    // its root is the first page of them
    let table = Driver::new(&guest, 0, TABLES * PAGE).table(arch, &[]);
    words.iter().for_each(|(at, word)| guest.write(*at, *word));
    (guest, table)
}

/// Plays one set of tables; how often they lead to memory.
fn play(arch: Arch, words: &[(u64, u64)]) -> Result<usize, TestCaseError> {
    let mut host = software_of(arch, 1 << 24);
    let mut model = recording();
    let (theirs, table) = guest_of(arch, words);
    let (models, _) = guest_of(arch, words);
    let below = mapping(TABLES, PAGES, TABLES, Access::RW);
    for subject in [&mut host as &mut dyn HostIommu, &mut model] {
        for domain in [ONE, TWO, THREE] {
            subject.create_domain(domain).unwrap();
        }
        subject.map(TWO, &below).unwrap();
        subject.prepare(TWO, Role::SecondLevel, &mut std::iter::once(below)).unwrap();
        subject.bind(ONE, &table, Output::Through(TWO)).unwrap();
        subject.bind(THREE, &table, Output::GuestPhysical).unwrap();
        subject.attach(pasid(0, 1), Target::Domain(ONE)).unwrap();
        subject.attach(pasid(1, 1), Target::Domain(THREE)).unwrap();
    }
    let last = host.capabilities().output_last;
    let mut reached = 0;
    for requester in [pasid(0, 1), pasid(1, 1)] {
        for index in 0..64_u64 {
            let [top, upper] = [index % 8, index / 8];
            let iova = Iova::new(top << 39 | upper << 30 | top << 21 | upper << 12 | 0x18);
            let seen = host.translate_with(&theirs, requester, iova, Access::READ);
            let model = model.state().translate_with(&models, requester, iova, Access::READ);
            prop_assert_eq!(seen, model.filter(|oa| oa.raw() <= last), "{:?} {}", arch, iova);
            reached += usize::from(seen.is_some());
        }
    }
    Ok(reached)
}

#[test]
fn hostile_tables_lead_where_they_would_if_there_were_no_region() {
    let reached = Cell::new(0);
    let mut runner = TestRunner::default();
    let played = runner.run(&words(), |(arch, words)| {
        reached.set(reached.get() + play(arch, &words)?);
        Ok(())
    });
    played.unwrap_or_else(|error| panic!("{error}"));
    // a thousand is usual
    assert!(reached.get() > 100, "{} reached memory", reached.get());
}

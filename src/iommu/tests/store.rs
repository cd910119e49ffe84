//! The store of mappings against a linear list.

use proptest::prelude::*;

use super::*;
use crate::iommu::store::Mappings;

/// What is asked of a store.
#[derive(Debug, Clone, Copy)]
enum Step {
    Insert(u64, u64),
    Remove(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    // Short ranges so that many mappings live side by side, and now and then a long one.
    let length = prop_oneof![8 => 0..3_u64, 1 => 0..200_u64];
    let range = (0..200_u64, length).prop_map(|(first, more)| (first, first + more));
    (any::<bool>(), range).prop_map(|(insert, (first, last))| {
        if insert { Step::Insert(first, last) } else { Step::Remove(first, last) }
    })
}

/// The mappings of `list` that share an address with `range`.
fn touched(list: &[Mapping], range: IovaRange) -> Vec<Mapping> {
    list.iter().copied().filter(|mapping| mapping.iova().overlaps(&range)).collect()
}

/// Fills a store with mappings of one page at each of `starts`.
fn filled(starts: impl IntoIterator<Item = u64>) -> Mappings<8> {
    let mut store = Mappings::default();
    for page in starts {
        let gap = store.gap(&pages(page, page)).unwrap();
        store.insert(gap, &rw(page, page));
    }
    store
}

fn remove(store: &mut Mappings<8>, first: u64, last: u64) {
    let inside = store.inside(&pages(first, last)).unwrap();
    store.remove(&pages(first, last), inside, |_| ());
}

#[test]
fn mappings_that_come_in_order_fill_their_chunks() {
    assert_eq!(filled(0..800).chunk_count(), 100, "upwards");
    assert_eq!(filled((0..800).rev()).chunk_count(), 100, "downwards");
}

#[test]
fn chunks_go_with_their_mappings() {
    let mut store = filled(0..800);
    for page in (0..800).filter(|page| page % 8 != 0) {
        remove(&mut store, page, page);
    }
    assert_eq!(store.len(), 100);
    assert!(store.chunk_count() <= 25, "{} chunks for 100 mappings", store.chunk_count());
    remove(&mut store, 0, 799);
    assert_eq!((store.len(), store.chunk_count()), (0, 0));
}

/// More chunks than a node of the index leads to, so that nodes are split and put together.
#[test]
fn ten_thousand_mappings_are_found_while_nine_of_ten_go() {
    let mut pages: Vec<_> = (0..10_007).map(|n| n * 7_919 % 10_007).collect();
    let mut store = filled(pages.iter().copied());
    let gone = pages.split_off(1000);
    for page in gone {
        assert!(store.overlaps(&pages_of(page)));
        remove(&mut store, page, page);
        assert!(!store.overlaps(&pages_of(page)));
    }
    pages.sort_unstable();
    let left: Vec<_> = store.iter().collect();
    assert_eq!(left, pages.iter().map(|page| rw(*page, *page)).collect::<Vec<_>>());
    assert!(store.chunk_count() <= 2 * 1000 / 4, "{} chunks", store.chunk_count());
}

/// Where nothing is, where nothing can be, and where everything is.
#[test]
fn looking_ahead_is_worth_it_for_many_mappings_and_changes_nothing() {
    let few = filled(0..800);
    assert!(!few.look_ahead(Iova::new(0)) && !Mappings::<8>::default().look_ahead(Iova::new(0)));
    let many = filled(1..40_000);
    for start in [0, 1 << 12, 39_999 << 12, u64::MAX] {
        assert!(many.look_ahead(Iova::new(start)));
    }
    assert!(many.iter().eq((1..40_000).map(|n| rw(n, n))));
}

fn pages_of(page: u64) -> IovaRange {
    pages(page, page)
}

/// The mapping that would be split lies in a lower chunk than the end of the range.
#[test]
fn a_mapping_that_reaches_over_the_bounds_of_chunks_is_seen() {
    let mut store = filled((0..16).chain(100..116));
    remove(&mut store, 9, 15);
    remove(&mut store, 100, 103);
    let long = store.gap(&pages(20, 103)).unwrap();
    store.insert(long, &rw(20, 103));
    assert!(store.overlaps(&pages(102, 102)));
    assert!(store.inside(&pages(16, 102)).is_err());
    assert!(store.inside(&pages(103, 115)).is_err());
    assert!(store.inside(&pages(16, 103)).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_store_agrees_with_a_list(steps in prop::collection::vec(step(), 1..300)) {
        let mut store = Mappings::<8>::default();
        let mut list: Vec<Mapping> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(first, last) => {
                    let overlaps = !touched(&list, pages(first, last)).is_empty();
                    let gap = store.gap(&pages(first, last));
                    prop_assert_eq!(gap.is_none(), overlaps);
                    prop_assert_eq!(store.overlaps(&pages(first, last)), overlaps);
                    if let Some(gap) = gap {
                        store.insert(gap, &rw(first, last));
                        list.push(rw(first, last));
                        list.sort_by_key(|mapping| mapping.iova().start());
                    }
                }
                Step::Remove(first, last) => {
                    let range = pages(first, last);
                    let touched = touched(&list, range);
                    let whole = touched.iter().all(|mapping| range.covers(&mapping.iova()));
                    let inside = store.inside(&range);
                    prop_assert_eq!(inside.is_ok(), whole);
                    if let Ok(inside) = inside {
                        let mut removed = Vec::new();
                        store.remove(&range, inside, |mapping| removed.push(*mapping));
                        prop_assert_eq!(&removed, &touched);
                        list.retain(|mapping| !touched.contains(mapping));
                    }
                }
            }
            prop_assert_eq!(store.len(), list.len());
        }
        let mut all = Vec::new();
        let everything = pages(0, u64::MAX >> 12);
        let inside = store.inside(&everything).unwrap();
        store.remove(&everything, inside, |mapping| all.push(*mapping));
        prop_assert_eq!(all, list);
    }
}

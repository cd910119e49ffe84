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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn the_store_agrees_with_a_list(steps in prop::collection::vec(step(), 1..300)) {
        let mut store = Mappings::default();
        let mut list: Vec<Mapping> = Vec::new();
        for step in steps {
            match step {
                Step::Insert(first, last) => {
                    let overlaps = !touched(&list, pages(first, last)).is_empty();
                    prop_assert_eq!(store.overlaps(&pages(first, last)), overlaps);
                    if !overlaps {
                        store.insert(&rw(first, last));
                        list.push(rw(first, last));
                        list.sort_by_key(|mapping| mapping.iova().start());
                    }
                }
                Step::Remove(first, last) => {
                    let range = pages(first, last);
                    let touched = touched(&list, range);
                    let whole = touched.iter().all(|mapping| range.covers(&mapping.iova()));
                    prop_assert_eq!(store.check_whole(&range).is_ok(), whole);
                    if whole {
                        let mut removed = Vec::new();
                        store.remove(&range, |mapping| removed.push(*mapping));
                        prop_assert_eq!(&removed, &touched);
                        list.retain(|mapping| !touched.contains(mapping));
                    }
                }
            }
            prop_assert_eq!(store.len(), list.len());
        }
        let mut all = Vec::new();
        store.remove(&pages(0, u64::MAX >> 12), |mapping| all.push(*mapping));
        prop_assert_eq!(all, list);
    }
}

//! The allocator against a plain set.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn pasid(raw: u32) -> Pasid {
    Pasid::new(raw).unwrap()
}

/// What an allocator should do, slowly.
struct Model {
    bits: u8,
    taken: BTreeSet<u32>,
}

impl Model {
    fn allocate(&mut self) -> Option<Pasid> {
        // the first number that is not where it would be if none were missing
        let gap = (1..).zip(&self.taken).find(|(raw, taken)| raw != *taken).map(|(raw, _)| raw);
        let free = gap.unwrap_or(u32::try_from(self.taken.len()).unwrap() + 1);
        (free >> self.bits == 0 && self.taken.insert(free)).then(|| pasid(free))
    }

    fn reserve(&mut self, pasid: Pasid) -> Result<(), ReserveError> {
        if pasid.raw() >> self.bits != 0 {
            Err(ReserveError::TooWide { pasid })
        } else if self.taken.insert(pasid.raw()) {
            Ok(())
        } else {
            Err(ReserveError::Taken { pasid })
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Allocate,
    Reserve(u32),
    /// That many in a row: fills words and chunks.
    ReserveRun(u32, u32),
    Release(u32),
    /// One of those that are taken.
    ReleaseTaken(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // edges of words and chunks, and anything
    let number =
        prop_oneof![1..300_u32, 4090..4100_u32, 1_048_500..1_048_576_u32, 1..1_048_576_u32];
    prop::collection::vec(
        prop_oneof![
            4 => Just(Step::Allocate),
            3 => number.clone().prop_map(Step::Reserve),
            1 => (number.clone(), 1..9000_u32).prop_map(|(at, len)| Step::ReserveRun(at, len)),
            1 => number.prop_map(Step::Release),
            4 => any::<prop::sample::Index>().prop_map(Step::ReleaseTaken),
        ],
        1..60,
    )
}

fn check(bits: u8, steps: &[Step]) {
    let mut allocator = Allocator::new(bits);
    let mut model = Model { bits, taken: BTreeSet::new() };
    for step in steps {
        match step {
            Step::Allocate => {
                let lowest = allocator.lowest_free();
                assert_eq!(allocator.allocate(), lowest);
                assert_eq!(lowest, model.allocate());
            }
            Step::Reserve(raw) => {
                assert_eq!(allocator.reserve(pasid(*raw)), model.reserve(pasid(*raw)));
            }
            Step::ReserveRun(first, len) => {
                for raw in *first..(first + len).min(1 << 20) {
                    assert_eq!(allocator.reserve(pasid(raw)), model.reserve(pasid(raw)));
                }
            }
            Step::Release(raw) => {
                assert_eq!(allocator.release(pasid(*raw)), model.taken.remove(raw));
            }
            Step::ReleaseTaken(index) if !model.taken.is_empty() => {
                let raw = *model.taken.iter().nth(index.index(model.taken.len())).unwrap();
                assert_eq!(allocator.release(pasid(raw)), model.taken.remove(&raw));
            }
            Step::ReleaseTaken(_) => {}
        }
        assert_eq!(allocator.taken() as usize, model.taken.len());
    }
    for raw in &model.taken {
        assert!(allocator.is_taken(pasid(*raw)));
        assert!(allocator.release(pasid(*raw)));
    }
    assert_eq!(allocator, Allocator::new(bits), "something is left of what was released");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_does_what_a_set_does(bits in 0..=20_u8, steps in steps()) {
        check(bits, &steps);
    }
}

#[test]
fn all_pasids_are_given_out_once_lowest_first_and_then_none() {
    let mut allocator = Allocator::new(20);
    for raw in 1..1 << 20 {
        assert_eq!(allocator.allocate(), Some(pasid(raw)));
    }
    assert_eq!(allocator.allocate(), None);
    assert_eq!(allocator.taken(), allocator.capacity());
    assert_eq!(allocator.reserve(pasid(77)), Err(ReserveError::Taken { pasid: pasid(77) }));
    assert!(allocator.release(Pasid::MAX));
    assert!(allocator.release(pasid(4096)));
    assert_eq!(allocator.allocate(), Some(pasid(4096)));
    assert_eq!(allocator.allocate(), Some(Pasid::MAX));
    assert_eq!(allocator.allocate(), None);
}

#[test]
fn an_endpoint_without_pasids_has_none() {
    let mut allocator = Allocator::new(0);
    assert_eq!(allocator.capacity(), 0);
    assert_eq!(allocator.allocate(), None);
    assert_eq!(allocator.reserve(pasid(1)), Err(ReserveError::TooWide { pasid: pasid(1) }));
}

#[test]
fn a_chunk_of_4096_takes_528_bytes() {
    assert_eq!(size_of::<Chunk>(), 528);
}

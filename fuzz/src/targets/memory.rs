//! Memory in which anything may stand, and that remembers what was done with it.

use std::cell::RefCell;

use viommu_pgtable::{PhysAddr, TableMemory};

/// What a compare-and-exchange comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Swap {
    /// It succeeds; the word stays as it was, as if the flags were cleared again at once.
    Succeeds,
    /// This memory cannot be written.
    IsRefused,
    /// Somebody else changes the word each time.
    MeetsAnother,
}

/// All of them.
pub(crate) const SWAPS: [Swap; 3] = [Swap::Succeeds, Swap::IsRefused, Swap::MeetsAnother];

/// Memory below `end` that repeats some words.
#[derive(Debug)]
pub(crate) struct Hostile {
    words: Vec<u64>,
    swap: Swap,
    end: u64,
    loaded: RefCell<Vec<PhysAddr>>,
    swapped: RefCell<Vec<PhysAddr>>,
}

impl Hostile {
    pub(crate) fn new(words: Vec<u64>, swap: Swap, end: u64) -> Self {
        Self { words, swap, end, loaded: RefCell::default(), swapped: RefCell::default() }
    }

    /// Addresses that were loaded from, in order.
    pub(crate) fn loaded(&self) -> Vec<PhysAddr> {
        self.loaded.borrow().clone()
    }

    /// Addresses whose entries were to be changed, in order.
    pub(crate) fn swapped(&self) -> Vec<PhysAddr> {
        self.swapped.borrow().clone()
    }

    fn word(&self, at: PhysAddr) -> Option<u64> {
        assert!(at.is_aligned(3), "{at} is no entry's address");
        if at.raw() >= self.end || self.words.is_empty() {
            return None;
        }
        let place = at.raw() / 8 % self.words.len() as u64;
        self.words.get(usize::try_from(place).unwrap()).copied()
    }
}

impl TableMemory for Hostile {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.loaded.borrow_mut().push(at);
        self.word(at)
    }

    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
        self.swapped.borrow_mut().push(at);
        let there = self.word(at)?;
        assert_eq!(new & old, old, "a flag is cleared");
        match self.swap {
            Swap::Succeeds => Some(Ok(())),
            Swap::IsRefused => None,
            Swap::MeetsAnother => Some(Err(there)),
        }
    }
}

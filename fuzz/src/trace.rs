//! What a target came to, told to the runner.

use std::collections::HashSet;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash};

/// The things that one run of a target came to.
#[derive(Debug, Default)]
pub struct Trace {
    seen: HashSet<u64>,
}

impl Trace {
    /// This was reached: a kind of outcome, a state. An input that reaches something for the first time is
    /// kept, so there should be hundreds of different ones, not millions.
    pub fn reached(&mut self, what: impl Hash) {
        // the same in every process
        self.seen.insert(BuildHasherDefault::<DefaultHasher>::new().hash_one(what));
    }

    /// Adds what `other` reached; true if any of it is new here.
    pub(crate) fn absorb(&mut self, other: Self) -> bool {
        let known = self.seen.len();
        self.seen.extend(other.seen);
        self.seen.len() > known
    }

    /// How many different things were reached.
    #[must_use]
    pub fn len(&self) -> usize {
        self.seen.len()
    }

    /// True if nothing was reached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.seen.is_empty()
    }
}

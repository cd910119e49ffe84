//! A few mappings that lie together in memory.

use std::ops::Range;

use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

/// Above every start that is in use; fills the places that are not.
const NO_START: Iova = Iova::new(u64::MAX);

/// Up to `N` mappings, ordered by their starts.
///
/// Each part of a mapping has an array of its own. A search reads the starts alone, and all of
/// them: loads that do not wait for each other, where halving would wait for memory at each step.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Chunk<const N: usize> {
    starts: [Iova; N],
    lasts: [Iova; N],
    outputs: [PhysAddr; N],
    access: [Access; N],
    len: usize,
}

impl<const N: usize> Default for Chunk<N> {
    fn default() -> Self {
        Self {
            starts: [NO_START; N],
            lasts: [NO_START; N],
            outputs: [PhysAddr::new(0); N],
            access: [Access::empty(); N],
            len: 0,
        }
    }
}

impl<const N: usize> Chunk<N> {
    /// How many mappings are in it.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// How many start before `start`: the place of the first that does not.
    pub(super) fn before(&self, start: Iova) -> usize {
        self.starts.iter().filter(|known| **known < start).count()
    }

    /// How many start at `start` or before.
    pub(super) fn up_to(&self, start: Iova) -> usize {
        self.starts.iter().filter(|known| **known <= start).count().min(self.len)
    }

    /// The place after the last that starts at `last` or before, from place `at` on. Most requests
    /// touch one mapping, so this looks at one after the other.
    pub(super) fn end(&self, at: usize, last: Iova) -> usize {
        let rest = self.starts.get(at..self.len).unwrap_or_default();
        at + rest.iter().take_while(|start| **start <= last).count()
    }

    /// Where the mapping at `at` starts; `None` past the last.
    pub(super) fn start(&self, at: usize) -> Option<Iova> {
        self.starts.get(at).filter(|_| at < self.len).copied()
    }

    /// Where the mapping at `at` ends, inclusive; `None` past the last.
    pub(super) fn last(&self, at: usize) -> Option<Iova> {
        self.lasts.get(at).filter(|_| at < self.len).copied()
    }

    /// The mapping at `at`; `None` past the last.
    fn get(&self, at: usize) -> Option<Mapping> {
        let range = IovaRange::new(self.start(at)?, self.last(at)?)?;
        Mapping::new(range, *self.outputs.get(at)?, *self.access.get(at)?).ok()
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Mapping> + '_ {
        (0..self.len).filter_map(|at| self.get(at))
    }

    /// Puts `mapping` at `at`, before what is there. A chunk of `N` takes no more.
    pub(super) fn insert(&mut self, at: usize, mapping: &Mapping) {
        if self.len >= N || at > self.len {
            return;
        }
        let from = at..self.len;
        self.len += 1;
        open(&mut self.starts, from.clone(), mapping.iova().start());
        open(&mut self.lasts, from.clone(), mapping.iova().last());
        open(&mut self.outputs, from.clone(), mapping.oa());
        open(&mut self.access, from, mapping.access());
    }

    /// Removes the mappings at `places`, which are there, and hands each out.
    pub(super) fn remove(&mut self, places: Range<usize>, mut removed: impl FnMut(&Mapping)) {
        places.clone().filter_map(|at| self.get(at)).for_each(|mapping| removed(&mapping));
        let above = places.end..self.len;
        self.starts.copy_within(above.clone(), places.start);
        self.lasts.copy_within(above.clone(), places.start);
        self.outputs.copy_within(above.clone(), places.start);
        self.access.copy_within(above, places.start);
        self.cut(self.len - places.len());
    }

    /// Takes the mappings from place `at` on into a chunk of their own.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        let mut upper = Self::default();
        self.copy_to(&mut upper, at..self.len);
        self.cut(at);
        upper
    }

    /// Appends the mappings of `upper`, which start above all of these; both fit into one chunk.
    pub(super) fn append(&mut self, upper: &Self) {
        upper.copy_to(self, 0..upper.len);
    }

    /// Appends the mappings at `places` to `to`.
    fn copy_to(&self, to: &mut Self, places: Range<usize>) {
        let new = to.len..to.len + places.len();
        copy(&self.starts, &mut to.starts, places.clone(), new.clone());
        copy(&self.lasts, &mut to.lasts, places.clone(), new.clone());
        copy(&self.outputs, &mut to.outputs, places.clone(), new.clone());
        copy(&self.access, &mut to.access, places, new.clone());
        to.len = new.end;
    }

    /// Leaves the first `len` mappings.
    fn cut(&mut self, len: usize) {
        if let Some(unused) = self.starts.get_mut(len..self.len) {
            unused.fill(NO_START);
        }
        self.len = len;
    }
}

/// Moves what is at `from` up by one and puts `value` at its start.
fn open<T: Copy>(values: &mut [T], from: Range<usize>, value: T) {
    let at = from.start;
    values.copy_within(from, at + 1);
    if let Some(place) = values.get_mut(at) {
        *place = value;
    }
}

/// Copies what is at `places` of `from` to the places `new` of `to`, which are as many.
fn copy<T: Copy>(from: &[T], to: &mut [T], places: Range<usize>, new: Range<usize>) {
    if let (Some(from), Some(to)) = (from.get(places), to.get_mut(new)) {
        to.copy_from_slice(from);
    }
}

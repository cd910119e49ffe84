//! The mappings of one domain, in order.
//!
//! Mappings lie side by side in chunks, and a tree leads to the chunks by the lowest address that
//! each may hold. A guest's million mappings need a tree of some twenty thousand entries then,
//! which stays in the processor's caches, and one chunk of memory: a tree of single mappings costs
//! a wait for memory at each of its levels.

mod chunk;

use std::collections::BTreeMap;
use std::ops::Bound;

use viommu_pgtable::{Iova, IovaRange, Mapping};

use self::chunk::Chunk;

/// Mappings in a chunk at most: 25 bytes each.
const DEFAULT_CHUNK: usize = 64;

/// An UNMAP's range covers a part of a mapping (U4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WouldSplit;

/// Where a mapping that overlaps none would go; holds until the store changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gap {
    chunk: usize,
    at: usize,
}

/// The mappings of one chunk that start inside a range; holds until the store changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inside {
    /// The lowest start that the chunk may hold.
    lowest: Iova,
    place: usize,
    at: usize,
    /// The place after the last of them.
    end: usize,
}

/// Mappings that do not overlap, ordered by their starts.
#[derive(Debug)]
pub(super) struct Mappings<const N: usize = DEFAULT_CHUNK> {
    /// The place of each chunk, by the lowest start that it may hold; the first chunk's is 0, and
    /// it alone may be empty.
    order: BTreeMap<Iova, usize>,
    /// `None` at the places in `unused`.
    chunks: Vec<Option<Box<Chunk<N>>>>,
    unused: Vec<usize>,
    len: usize,
}

impl<const N: usize> Default for Mappings<N> {
    fn default() -> Self {
        let order = BTreeMap::from([(Iova::new(0), 0)]);
        Self { order, chunks: vec![Some(Box::default())], unused: Vec::new(), len: 0 }
    }
}

impl<const N: usize> Mappings<N> {
    /// A chunk that a removal leaves with fewer is put together with a neighbour if both fit into
    /// one. So of two neighbours one has as many or more, and memory follows the number of
    /// mappings: some 40 bytes each, 200 at worst.
    const FEW: usize = N / 4;

    /// How many there are.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// All of them, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = Mapping> + '_ {
        self.order.values().filter_map(|place| self.chunk(*place)).flat_map(Chunk::iter)
    }

    /// True if a mapping shares an address with `range`.
    pub(super) fn overlaps(&self, range: &IovaRange) -> bool {
        self.gap(range).is_none()
    }

    /// Where a mapping of `range` would go; `None` if a mapping shares an address with it.
    pub(super) fn gap(&self, range: &IovaRange) -> Option<Gap> {
        let (lowest, place) = self.chunk_of(range.start());
        let chunk = self.chunk(place)?;
        let at = chunk.before(range.start());
        let below = self.last_below(lowest, chunk, at);
        let above = chunk.start(at).or_else(|| self.first_above(lowest));
        let free = below.is_none_or(|last| last < range.start())
            && above.is_none_or(|start| start > range.last());
        free.then_some(Gap { chunk: place, at })
    }

    /// Adds the mapping for whose range [`gap`](Self::gap) has just found this.
    pub(super) fn insert(&mut self, gap: Gap, mapping: &Mapping) {
        let Some(chunk) = self.chunk_mut(gap.chunk) else { return };
        let len = chunk.len();
        if len < N {
            chunk.insert(gap.at, mapping);
            self.len += 1;
            return;
        }
        // Mappings that come in order leave full chunks behind; others halve them.
        let cut = match gap.at {
            0 => 0,
            at if at == len => len,
            _ => len / 2,
        };
        let mut upper = Box::new(chunk.split_off(cut));
        match gap.at.checked_sub(cut) {
            Some(at) if cut != 0 => upper.insert(at, mapping),
            _ => chunk.insert(gap.at, mapping),
        }
        self.len += 1;
        self.add_chunk(upper);
    }

    /// The mappings that share an address with `range`, each of which lies inside it. Since
    /// mappings do not overlap, only those at its two ends can fail to.
    pub(super) fn inside(&self, range: &IovaRange) -> Result<Inside, WouldSplit> {
        let inside = self.find(range.start(), range);
        let Some(chunk) = self.chunk(inside.place) else { return Ok(inside) };
        let below = self.last_below(inside.lowest, chunk, inside.at);
        if below.is_some_and(|last| last >= range.start()) {
            return Err(WouldSplit);
        }
        let last = if inside.end < chunk.len() {
            self.last_below(inside.lowest, chunk, inside.end)
        } else {
            self.last_up_to(range.last())
        };
        if last.is_some_and(|last| last > range.last()) { Err(WouldSplit) } else { Ok(inside) }
    }

    /// Removes the mappings that [`inside`](Self::inside) has just found for `range`, and hands
    /// each out, in order.
    pub(super) fn remove(
        &mut self,
        range: &IovaRange,
        inside: Inside,
        mut removed: impl FnMut(&Mapping),
    ) {
        let mut next = Some(inside);
        while let Some(Inside { lowest, place, at, end }) = next {
            let Some(chunk) = self.chunk_mut(place) else { return };
            let reaches_end = end == chunk.len();
            if at < end {
                chunk.remove(at..end, &mut removed);
            }
            let few = chunk.len() < Self::FEW;
            self.len -= end - at;
            let above = if reaches_end { self.above(lowest) } else { None };
            if few && at < end {
                self.join(lowest, place);
            }
            next = above
                .filter(|(lowest, _)| *lowest <= range.last())
                .map(|(lowest, _)| self.find(lowest, range));
        }
    }

    /// How many chunks there are.
    #[cfg(test)]
    pub(super) fn chunk_count(&self) -> usize {
        self.order.len()
    }

    /// The chunk that may hold a mapping with this start, and the lowest start that it may hold.
    fn chunk_of(&self, start: Iova) -> (Iova, usize) {
        let found = self.order.range(..=start).next_back();
        found.map_or((Iova::new(0), 0), |(lowest, place)| (*lowest, *place))
    }

    /// The mappings that start inside `range`, of the chunk that may hold one that starts at
    /// `from`.
    fn find(&self, from: Iova, range: &IovaRange) -> Inside {
        let (lowest, place) = self.chunk_of(from);
        let (mut at, mut end) = (0, 0);
        if let Some(chunk) = self.chunk(place) {
            at = chunk.before(range.start());
            end = chunk.end(at, range.last());
        }
        Inside { lowest, place, at, end }
    }

    fn chunk(&self, place: usize) -> Option<&Chunk<N>> {
        self.chunks.get(place)?.as_deref()
    }

    fn chunk_mut(&mut self, place: usize) -> Option<&mut Chunk<N>> {
        self.chunks.get_mut(place)?.as_deref_mut()
    }

    /// Where the mapping before place `at` of `chunk`, whose lowest start is `lowest`, ends.
    fn last_below(&self, lowest: Iova, chunk: &Chunk<N>, at: usize) -> Option<Iova> {
        if let Some(below) = at.checked_sub(1) {
            return chunk.last(below);
        }
        let (_, place) = self.below(lowest)?;
        let chunk = self.chunk(place)?;
        chunk.last(chunk.len().checked_sub(1)?)
    }

    /// Where the mapping with the highest start up to `start` ends.
    fn last_up_to(&self, start: Iova) -> Option<Iova> {
        let (lowest, place) = self.chunk_of(start);
        let chunk = self.chunk(place)?;
        self.last_below(lowest, chunk, chunk.up_to(start))
    }

    /// The first start in the chunk above the one whose lowest start is `lowest`.
    fn first_above(&self, lowest: Iova) -> Option<Iova> {
        let (_, place) = self.above(lowest)?;
        self.chunk(place)?.start(0)
    }

    fn above(&self, lowest: Iova) -> Option<(Iova, usize)> {
        let mut above = self.order.range((Bound::Excluded(lowest), Bound::Unbounded));
        above.next().map(|(lowest, place)| (*lowest, *place))
    }

    fn below(&self, lowest: Iova) -> Option<(Iova, usize)> {
        self.order.range(..lowest).next_back().map(|(lowest, place)| (*lowest, *place))
    }

    /// Adds a chunk that is not empty.
    fn add_chunk(&mut self, chunk: Box<Chunk<N>>) {
        let Some(lowest) = chunk.start(0) else { return };
        let place = self.unused.pop().unwrap_or(self.chunks.len());
        match self.chunks.get_mut(place) {
            Some(unused) => *unused = Some(chunk),
            None => self.chunks.push(Some(chunk)),
        }
        self.order.insert(lowest, place);
    }

    /// Puts a chunk with few mappings together with the one above or below, if both fit into one.
    fn join(&mut self, lowest: Iova, place: usize) {
        let len = |place| self.chunk(place).map_or(0, Chunk::len);
        let fits = |(_, other): &(Iova, usize)| len(place) + len(*other) <= N;
        if let Some((upper, other)) = self.above(lowest).filter(fits) {
            self.move_down(upper, other, place);
        } else if let Some((_, other)) = self.below(lowest).filter(fits) {
            self.move_down(lowest, place, other);
        }
    }

    /// Appends the chunk at `upper`, whose lowest start is `lowest`, to its neighbour at `lower`.
    fn move_down(&mut self, lowest: Iova, upper: usize, lower: usize) {
        let moved = self.chunks.get_mut(upper).and_then(Option::take);
        if let (Some(moved), Some(chunk)) = (moved, self.chunk_mut(lower)) {
            chunk.append(&moved);
        }
        self.order.remove(&lowest);
        self.unused.push(upper);
    }
}

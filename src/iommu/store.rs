//! The mappings of one domain, in order.
//!
//! Mappings lie side by side in chunks, and an index of two levels leads to the chunks by the lowest
//! address that each may hold. The index of a guest's million mappings is a megabyte, of which a search
//! finds all but its last line or two in the processor's caches; behind it one chunk of memory is waited
//! for. A tree of single mappings costs a wait for memory at each of its levels.

mod chunk;
mod index;

use viommu_iotlb::prefetch;
use viommu_pgtable::{Iova, IovaRange, Mapping};

use self::chunk::Chunk;
use self::index::{Index, Place};

/// Mappings in a chunk at most: 25 bytes each. With more, an insertion moves more memory; with fewer, the
/// index outgrows the caches.
const DEFAULT_CHUNK: usize = 32;

/// Looking ahead costs more than it saves if everything is in the processor's caches anyway: with fewer
/// mappings than this, some 1.4 MiB, it is.
const LOOK_AHEAD_FROM: usize = 32 << 10;

/// An UNMAP's range covers a part of a mapping (U4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WouldSplit;

/// Where a mapping that overlaps none would go; holds until the store changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gap {
    /// `None` in a store without chunks.
    chunk: Option<Place>,
    at: usize,
}

/// The mappings of one chunk that start inside a range; holds until the store changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Inside {
    /// `None` in a store without chunks.
    chunk: Option<Place>,
    at: usize,
    /// The place after the last of them.
    end: usize,
}

/// Mappings that do not overlap, ordered by their starts. Without mappings it takes no memory.
#[derive(Debug)]
pub(super) struct Mappings<const N: usize = DEFAULT_CHUNK> {
    /// A chunk is empty only if it is the only one.
    index: Index<N>,
    len: usize,
}

impl<const N: usize> Default for Mappings<N> {
    fn default() -> Self {
        Self { index: Index::default(), len: 0 }
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
        self.index.chunks().flat_map(Chunk::iter)
    }

    /// Has the memory fetched that a request about a mapping at `start` will need, if that is worth it:
    /// says whether. Changes nothing.
    pub(super) fn look_ahead(&self, start: Iova) -> bool {
        let worth_it = self.len >= LOOK_AHEAD_FROM;
        if worth_it && let Some((_, chunk)) = self.chunk_of(start) {
            prefetch(chunk);
        }
        worth_it
    }

    /// True if a mapping shares an address with `range`.
    pub(super) fn overlaps(&self, range: &IovaRange) -> bool {
        self.gap(range).is_none()
    }

    /// Where a mapping of `range` would go; `None` if a mapping shares an address with it.
    pub(super) fn gap(&self, range: &IovaRange) -> Option<Gap> {
        let Some((place, chunk)) = self.chunk_of(range.start()) else {
            return Some(Gap { chunk: None, at: 0 });
        };
        let at = chunk.before(range.start());
        let below = self.last_below(place, chunk, at);
        let above = chunk.start(at).or_else(|| self.first_above(place));
        let free = below.is_none_or(|last| last < range.start())
            && above.is_none_or(|start| start > range.last());
        free.then_some(Gap { chunk: Some(place), at })
    }

    /// Adds the mapping for whose range [`gap`](Self::gap) has just found this.
    pub(super) fn insert(&mut self, gap: Gap, mapping: &Mapping) {
        let place = gap.chunk.unwrap_or_else(|| self.index.first_or_new());
        let Some(chunk) = self.index.get_mut(place) else { return };
        self.len += 1;
        let len = chunk.len();
        if len < N {
            chunk.insert(gap.at, mapping);
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
        if let Some(lowest) = upper.start(0) {
            self.index.insert_above(place, lowest, upper);
        }
    }

    /// The mappings that share an address with `range`, each of which lies inside it. Since
    /// mappings do not overlap, only those at its two ends can fail to.
    pub(super) fn inside(&self, range: &IovaRange) -> Result<Inside, WouldSplit> {
        let inside = self.find(range.start(), range);
        let Some(place) = inside.chunk else { return Ok(inside) };
        let Some(chunk) = self.index.get(place) else { return Ok(inside) };
        let below = self.last_below(place, chunk, inside.at);
        if below.is_some_and(|last| last >= range.start()) {
            return Err(WouldSplit);
        }
        let last = if inside.end < chunk.len() {
            self.last_below(place, chunk, inside.end)
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
        while let Some(Inside { chunk: Some(place), at, end }) = next {
            let Some(chunk) = self.index.get_mut(place) else { return };
            let reaches_end = end == chunk.len();
            if at < end {
                chunk.remove(at..end, &mut removed);
            }
            let few = chunk.len() < Self::FEW;
            self.len -= end - at;
            let above = if reaches_end { self.index.above(place) } else { None };
            let above = above.and_then(|above| self.index.lowest(above));
            if few && at < end {
                self.join(place);
            }
            next = above
                .filter(|lowest| *lowest <= range.last())
                .map(|lowest| self.find(lowest, range));
        }
    }

    /// How many chunks there are.
    #[cfg(test)]
    pub(super) fn chunk_count(&self) -> usize {
        self.index.chunks().count()
    }

    /// The chunk that may hold a mapping with this start.
    fn chunk_of(&self, start: Iova) -> Option<(Place, &Chunk<N>)> {
        let place = self.index.find(start)?;
        Some((place, self.index.get(place)?))
    }

    /// The mappings that start inside `range`, of the chunk that may hold one that starts at
    /// `from`.
    fn find(&self, from: Iova, range: &IovaRange) -> Inside {
        let Some((place, chunk)) = self.chunk_of(from) else {
            return Inside { chunk: None, at: 0, end: 0 };
        };
        let at = chunk.before(range.start());
        Inside { chunk: Some(place), at, end: chunk.end(at, range.last()) }
    }

    /// Where the mapping before the one at `at` of `chunk`, which is at `place`, ends.
    fn last_below(&self, place: Place, chunk: &Chunk<N>, at: usize) -> Option<Iova> {
        if let Some(below) = at.checked_sub(1) {
            return chunk.last(below);
        }
        let chunk = self.index.get(self.index.below(place)?)?;
        chunk.last(chunk.len().checked_sub(1)?)
    }

    /// Where the mapping with the highest start up to `start` ends.
    fn last_up_to(&self, start: Iova) -> Option<Iova> {
        let (place, chunk) = self.chunk_of(start)?;
        self.last_below(place, chunk, chunk.up_to(start))
    }

    /// The first start in the chunk above the one at `place`.
    fn first_above(&self, place: Place) -> Option<Iova> {
        self.index.get(self.index.above(place)?)?.start(0)
    }

    /// Puts a chunk with few mappings together with the one above or below, if both fit into one. The only
    /// chunk goes when it is empty.
    fn join(&mut self, place: Place) {
        let len = |place| self.index.get(place).map_or(0, Chunk::len);
        let fits = |other: &Place| len(place) + len(*other) <= N;
        let (above, below) = (self.index.above(place), self.index.below(place));
        if let Some(upper) = above.filter(fits) {
            self.move_down(upper, place);
        } else if let Some(lower) = below.filter(fits) {
            self.move_down(place, lower);
        } else if len(place) == 0 {
            self.index.remove(place);
        }
    }

    /// Appends the chunk at `upper` to its neighbour at `lower`.
    fn move_down(&mut self, upper: Place, lower: Place) {
        let Some(moved) = self.index.get_mut(upper).map(std::mem::take) else { return };
        if let Some(chunk) = self.index.get_mut(lower) {
            chunk.append(&moved);
            self.index.remove(upper);
        }
    }
}

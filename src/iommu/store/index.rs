//! The way to a chunk.

use viommu_pgtable::Iova;

use super::chunk::Chunk;

/// Chunks that one node leads to at most: it takes 2 KiB then, and a million mappings have some
/// four hundred nodes.
const NODE: usize = 128;

/// A node that a removal leaves with fewer is put together with a neighbour if both fit into one.
const FEW: usize = NODE / 4;

/// Where a chunk is; holds until chunks are added or removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    node: usize,
    chunk: usize,
}

/// A chunk, and the lowest start that it may hold. One cache line holds both: whoever has searched is at
/// the chunk's door, and waits for memory once less.
#[derive(Debug)]
struct Entry<const N: usize> {
    lowest: Iova,
    chunk: Box<Chunk<N>>,
}

/// Some chunks that follow each other, at least one.
type Node<const N: usize> = Vec<Entry<N>>;

/// The chunks of a store in order, found by the lowest address that each may hold.
///
/// Two levels, both searched by halving: a tree of a few entries for each node would take more steps,
/// each of which waits for the one before.
#[derive(Debug)]
pub(super) struct Index<const N: usize> {
    /// The lowest start of each node's first chunk. The very first is not looked at: what lies below all
    /// others belongs there.
    lowest: Vec<Iova>,
    nodes: Vec<Node<N>>,
}

impl<const N: usize> Default for Index<N> {
    fn default() -> Self {
        Self { lowest: Vec::new(), nodes: Vec::new() }
    }
}

impl<const N: usize> Index<N> {
    /// The chunk that may hold a mapping with this start; `None` if there are no chunks.
    #[inline]
    pub(super) fn find(&self, start: Iova) -> Option<Place> {
        let node = last_up_to(&self.lowest, |lowest| *lowest, start);
        let chunk = last_up_to(self.nodes.get(node)?, |entry| entry.lowest, start);
        Some(Place { node, chunk })
    }

    /// The chunk at a place.
    #[inline]
    pub(super) fn get(&self, at: Place) -> Option<&Chunk<N>> {
        self.nodes.get(at.node)?.get(at.chunk).map(|entry| &*entry.chunk)
    }

    /// The same, to change it.
    #[inline]
    pub(super) fn get_mut(&mut self, at: Place) -> Option<&mut Chunk<N>> {
        self.nodes.get_mut(at.node)?.get_mut(at.chunk).map(|entry| &mut *entry.chunk)
    }

    /// The lowest start that the chunk at a place may hold.
    pub(super) fn lowest(&self, at: Place) -> Option<Iova> {
        self.nodes.get(at.node)?.get(at.chunk).map(|entry| entry.lowest)
    }

    /// The next chunk.
    pub(super) fn above(&self, at: Place) -> Option<Place> {
        let next = Place { chunk: at.chunk + 1, ..at };
        let first = Place { node: at.node + 1, chunk: 0 };
        [next, first].into_iter().find(|place| self.get(*place).is_some())
    }

    /// The chunk before.
    pub(super) fn below(&self, at: Place) -> Option<Place> {
        if let Some(chunk) = at.chunk.checked_sub(1) {
            return Some(Place { chunk, ..at });
        }
        let node = at.node.checked_sub(1)?;
        Some(Place { node, chunk: self.nodes.get(node)?.len().checked_sub(1)? })
    }

    /// The first chunk, made if there is none.
    pub(super) fn first_or_new(&mut self) -> Place {
        if self.nodes.is_empty() {
            let lowest = Iova::new(0);
            self.lowest.push(lowest);
            self.nodes.push(vec![Entry { lowest, chunk: Box::default() }]);
        }
        Place { node: 0, chunk: 0 }
    }

    /// Adds a chunk, whose lowest start is `lowest`, above the one at `at`.
    pub(super) fn insert_above(&mut self, at: Place, lowest: Iova, chunk: Box<Chunk<N>>) {
        let Some(node) = self.nodes.get_mut(at.node) else { return };
        node.insert(at.chunk + 1, Entry { lowest, chunk });
        let len = node.len();
        if len > NODE {
            // chunks that come in order leave full nodes behind, others halve them
            let upper = node.split_off(if at.chunk + 2 == len { NODE } else { len / 2 });
            self.lowest.insert(at.node + 1, upper.first().map_or(lowest, |first| first.lowest));
            self.nodes.insert(at.node + 1, upper);
        }
    }

    /// Takes the chunk at a place out. What it might have held belongs to the one below, or, if it was the
    /// first, to the one above.
    pub(super) fn remove(&mut self, at: Place) {
        let Some(node) = self.nodes.get_mut(at.node) else { return };
        if at.chunk >= node.len() {
            return;
        }
        node.remove(at.chunk);
        let left = node.len();
        match (node.first(), self.lowest.get_mut(at.node)) {
            (Some(first), Some(lowest)) => *lowest = first.lowest,
            _ => self.drop_node(at.node),
        }
        if (1..FEW).contains(&left) {
            self.join(at.node);
        }
    }

    /// All chunks, in order.
    pub(super) fn chunks(&self) -> impl Iterator<Item = &Chunk<N>> {
        self.nodes.iter().flatten().map(|entry| &*entry.chunk)
    }

    /// Puts a node with few chunks together with the one above or below, if both fit into one.
    fn join(&mut self, node: usize) {
        let len = |node: usize| self.nodes.get(node).map_or(NODE, Vec::len);
        let pairs = [Some(node), node.checked_sub(1)];
        let fitting = pairs.into_iter().flatten().find(|low| len(*low) + len(low + 1) <= NODE);
        let Some(lower) = fitting else { return };
        let upper = self.nodes.remove(lower + 1);
        self.lowest.remove(lower + 1);
        if let Some(node) = self.nodes.get_mut(lower) {
            node.extend(upper);
        }
    }

    fn drop_node(&mut self, node: usize) {
        self.nodes.remove(node);
        self.lowest.remove(node);
    }
}

/// The place of the last that is not above `start`, or of the first.
#[inline]
fn last_up_to<T>(entries: &[T], lowest: impl Fn(&T) -> Iova, start: Iova) -> usize {
    entries.partition_point(|entry| lowest(entry) <= start).saturating_sub(1)
}

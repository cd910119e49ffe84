//! What a table should do, without tables: an ordered map of leaves, each picked naively.

use std::collections::{BTreeMap, BTreeSet};

use viommu_pgtable::{Access, Format, Geometry, Iova, IovaRange, Mapping, PhysAddr};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) size_lg2: u8,
    pub(crate) oa: u64,
    pub(crate) access: Access,
}

/// Leaves by their first address. All below `end`, where what indexes is the address itself.
#[derive(Debug, Clone)]
pub(crate) struct Model {
    pub(crate) geometry: Geometry,
    pub(crate) end: u64,
    pub(crate) leaves: BTreeMap<u64, Leaf>,
}

impl Model {
    pub(crate) fn new<F: Format>(format: &F) -> Self {
        Self { geometry: format.geometry(), end: end(format), leaves: BTreeMap::new() }
    }

    /// The leaves of a mapping.
    pub(crate) fn leaves_of(&self, mapping: &Mapping) -> Vec<(u64, Leaf)> {
        pick_leaves(self.geometry, *mapping).collect()
    }

    /// Tables below the root that `leaves` need, by level and number.
    fn tables_of<'a>(
        &self,
        leaves: impl Iterator<Item = (&'a u64, &'a Leaf)>,
    ) -> BTreeSet<(u8, u64)> {
        let mut tables = BTreeSet::new();
        for (&at, leaf) in leaves {
            for level in 0..self.geometry.root_level() {
                if self.geometry.entry_lg2(level) >= leaf.size_lg2 {
                    tables.insert((level, at >> self.geometry.table_lg2(level)));
                }
            }
        }
        tables
    }

    /// Store pages of one table below the root.
    pub(crate) fn table_pages(&self) -> u64 {
        (1u64 << self.geometry.granule_lg2) / 4096
    }

    /// Store pages that the whole table takes up, the root's included.
    pub(crate) fn pages(&self) -> u64 {
        let root = (1u64 << self.geometry.root_bytes_lg2()).div_ceil(4096);
        root + self.tables_of(self.leaves.iter()).len() as u64 * self.table_pages()
    }

    /// Store pages that mapping `added` takes.
    pub(crate) fn pages_needed(&self, added: &[(u64, Leaf)]) -> u64 {
        let there = self.tables_of(self.leaves.iter());
        let needed = self.tables_of(added.iter().map(|(at, leaf)| (at, leaf)));
        needed.difference(&there).count() as u64 * self.table_pages()
    }

    /// The leaves that share an address with `range`.
    pub(crate) fn touched(&self, range: &IovaRange) -> Vec<(u64, Leaf)> {
        let overlaps = |(at, leaf): &(&u64, &Leaf)| {
            **at <= range.last().raw() && **at + ((1 << leaf.size_lg2) - 1) >= range.start().raw()
        };
        self.leaves.iter().filter(overlaps).map(|(at, leaf)| (*at, *leaf)).collect()
    }

    /// Where `iova` leads.
    pub(crate) fn translate(&self, iova: Iova) -> Option<(PhysAddr, Leaf)> {
        let (at, leaf) = self.leaves.range(..=iova.raw()).next_back()?;
        let offset = iova.raw() - at;
        (offset < 1 << leaf.size_lg2).then(|| (PhysAddr::new(leaf.oa + offset), *leaf))
    }
}

/// The first address that is not translated: half of the input's width if addresses are canonical.
pub(crate) fn end<F: Format>(format: &F) -> u64 {
    let half = 1 << (format.geometry().input_bits - 1);
    if format.input(Iova::new(half)).is_some() { 2 * half } else { half }
}

/// The leaves of a mapping: at each address the largest that is aligned and fits.
pub(crate) fn pick_leaves(
    geometry: Geometry,
    mapping: Mapping,
) -> impl Iterator<Item = (u64, Leaf)> {
    let (mut next, last) = (Some(mapping.iova().start().raw()), mapping.iova().last().raw());
    let (start, sizes) = (mapping.iova().start().raw(), geometry.page_size_mask());
    core::iter::from_fn(move || {
        let at = next.filter(|at| *at <= last)?;
        let oa = mapping.oa().raw() + (at - start);
        let fits = |lg2: &u8| {
            let bytes = 1u64 << lg2;
            let aligned = at.is_multiple_of(bytes) && oa.is_multiple_of(bytes);
            sizes & bytes != 0 && aligned && last - at >= bytes - 1
        };
        let size_lg2 = (0..63).rev().find(fits).expect("granule-aligned");
        next = at.checked_add(1 << size_lg2);
        Some((at, Leaf { size_lg2, oa, access: mapping.access() }))
    })
}

/// The accesses that a format's leaves can allow.
pub(crate) fn accesses<F: Format>(format: &F) -> Vec<Access> {
    (0..16).map(Access::from_bits_truncate).filter(|access| format.expresses(*access)).collect()
}

/// What to ask for to use an access right `access` of a leaf in full.
pub(crate) fn mapping<F: Format>(format: &F, start: u64, bytes: u64, oa: u64) -> Mapping {
    let access = *accesses(format).last().expect("a format can allow something");
    let iova = IovaRange::with_len(Iova::new(start), bytes).expect("not empty");
    Mapping::new(iova, PhysAddr::new(oa), access).expect("in range")
}

//! Formats: what the bits of an entry mean. Pure total functions on a raw word.

pub mod arm;
pub mod arm_stage1;
pub mod arm_stage2;
pub mod vtd_first;
pub mod vtd_second;

use crate::{Access, Iova, PhysAddr, Stage};

/// The most levels that any format has.
pub const MAX_LEVELS: u8 = 5;

/// Base-2 logarithm of the size of an entry, bytes: all formats have 64-bit entries.
pub const ENTRY_LG2: u8 = 3;

/// A decoded entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Entry {
    /// Leads nowhere; the mapper may use it.
    Empty,
    /// Leads to a table one level down.
    Table {
        /// Where that table is.
        next: PhysAddr,
        /// What the entry allows.
        access: Access,
    },
    /// Ends the walk.
    Leaf {
        /// First address of the page.
        oa: PhysAddr,
        /// What the entry allows.
        access: Access,
    },
    /// Present, and against the manual: a reserved bit is set.
    Malformed,
}

/// The accessed and dirty flags that an entry needs before an access through it is granted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Mark {
    /// None.
    Done,
    /// The entry must become this by compare-and-exchange.
    Set(u64),
    /// Software must set it: the access faults.
    Fault,
}

/// The shape of a table.
///
/// Tables below the root fill one granule. The root holds what is left of the input's bits: less than
/// a granule, or, where a format concatenates root tables, more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Geometry {
    /// Smallest page and size of a table below the root.
    pub granule_lg2: u8,
    /// Levels, 1 to [`MAX_LEVELS`].
    pub levels: u8,
    /// Width of the part of an input address that indexes tables and pages, bits; below 64.
    pub input_bits: u8,
    /// Width of an output address, bits; below 64.
    pub output_bits: u8,
    /// Bit n is set if level n may hold leaves; bit 0 is always set.
    pub leaf_levels: u8,
}

impl Geometry {
    /// Level of the root table.
    #[must_use]
    pub const fn root_level(&self) -> u8 {
        self.levels - 1
    }

    /// Bits of an input address that index a table below the root.
    #[must_use]
    pub const fn index_bits(&self) -> u8 {
        self.granule_lg2 - ENTRY_LG2
    }

    /// Bytes that one entry of `level` covers.
    #[must_use]
    pub const fn entry_lg2(&self, level: u8) -> u8 {
        self.granule_lg2 + level * self.index_bits()
    }

    /// Bytes that a whole table of `level` covers.
    #[must_use]
    pub const fn table_lg2(&self, level: u8) -> u8 {
        if level == self.root_level() { self.input_bits } else { self.entry_lg2(level + 1) }
    }

    /// Entries of a table of `level`.
    #[must_use]
    pub const fn entries(&self, level: u8) -> u64 {
        1 << (self.table_lg2(level) - self.entry_lg2(level))
    }

    /// Bytes that the root table takes up.
    #[must_use]
    pub const fn root_bytes_lg2(&self) -> u8 {
        self.input_bits - self.entry_lg2(self.root_level()) + ENTRY_LG2
    }

    /// Index into the table of `level` for `input`, which is below `1 << input_bits`.
    #[must_use]
    pub const fn index(&self, level: u8, input: u64) -> u64 {
        let index = input >> self.entry_lg2(level);
        if level == self.root_level() { index } else { index & ((1 << self.index_bits()) - 1) }
    }

    /// Where the entry for `input` is in the table of `level` at `table`.
    ///
    /// `table` is a multiple of the table's size, so nothing carries.
    #[must_use]
    pub const fn entry_at(&self, level: u8, table: PhysAddr, input: u64) -> PhysAddr {
        PhysAddr::new(table.raw() | (self.index(level, input) << ENTRY_LG2))
    }

    /// True if `level` may hold leaves.
    #[must_use]
    pub const fn has_leaves(&self, level: u8) -> bool {
        self.leaf_levels & (1 << level) != 0
    }

    /// Sizes that a leaf can have: bit n stands for `1 << n` bytes.
    #[must_use]
    pub const fn page_size_mask(&self) -> u64 {
        let (mut mask, mut level) = (0, 0);
        while level < self.levels {
            if self.has_leaves(level) {
                mask |= 1 << self.entry_lg2(level);
            }
            level += 1;
        }
        mask
    }
}

/// A page-table format: constants and pure total functions, no I/O, no loop over entries.
///
/// Level 0 holds leaves of one granule; vendors' numbers of levels are mapped in each format's file.
pub trait Format: Copy {
    /// Which of two stacked tables this is; faults carry it.
    const STAGE: Stage;

    /// True if a table entry that does not allow an access ends its walk; false if the rights of the whole
    /// path are judged at the leaf.
    const TABLES_DENY: bool;

    /// The shape.
    fn geometry(&self) -> Geometry;

    /// What the raw entry means at `level`.
    fn decode(&self, level: u8, raw: u64) -> Entry;

    /// An entry that leads to the table at `next` and restricts nothing.
    ///
    /// `next` is a multiple of the granule and within the output's width.
    fn table(&self, next: PhysAddr) -> u64;

    /// An entry of `level` that leads to the page at `oa`.
    ///
    /// `level` may hold leaves, `oa` is a multiple of its size and within the output's width, the format
    /// [`expresses`](Self::expresses) `access`. Accessed and dirty flags are set.
    fn leaf(&self, level: u8, oa: PhysAddr, access: Access) -> u64;

    /// True if a leaf can allow `access` and nothing more.
    fn expresses(&self, access: Access) -> bool;

    /// The part of `iova` that indexes; `None` if the format does not translate this address.
    ///
    /// What it yields is below `1 << input_bits`, and neighbours stay neighbours.
    fn input(&self, iova: Iova) -> Option<u64> {
        (iova.raw() >> self.geometry().input_bits == 0).then_some(iova.raw())
    }

    /// What a path whose entries have the rights `path` in common grants to accesses that fetch and are
    /// privileged as `wanted` is. What a format does not tell apart is granted as wanted.
    ///
    /// The default is for formats that know only reads and writes: a fetch needs the right to read.
    fn granted(&self, path: Access, wanted: Access) -> Access {
        let granted = path.intersection(Access::RW).union(wanted.intersection(Access::PRIVILEGED));
        if path.contains(Access::READ) {
            granted.union(wanted.intersection(Access::EXEC))
        } else {
            granted
        }
    }

    /// The flags to set in `raw`, a table entry or (`leaf`) a leaf, before `access` is granted.
    fn mark(&self, raw: u64, leaf: bool, access: Access) -> Mark {
        let _ = (raw, leaf, access);
        Mark::Done
    }

    /// True if an address found in an entry is within the output's width; for formats in which
    /// [`decode`](Self::decode) does not already call a wide one malformed.
    fn output_fits(&self, address: PhysAddr) -> bool {
        let _ = address;
        true
    }
}

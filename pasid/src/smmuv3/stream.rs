//! The stream table (IHI 0070, 5.1, 5.2 and 6.3.23): its root, and the writer's side.

use viommu_pgtable::{OutOfTables, PhysAddr, TableStore};

use super::field;
use super::geometry::align_down;
use super::ste::{self, StreamEntry};
use crate::leaf::{ENTRY_LG2, LEAF_BYTES, LEAF_ENTRIES_LG2, Leaves};
use crate::{SetError, Staged};

/// `STRTAB_BASE_CFG` (6.3.24).
const LOG2SIZE: (u32, u32) = (0, 6);
const SPLIT: (u32, u32) = (6, 5);
const FORMAT: (u32, u32) = (16, 2);
const FORMAT_LINEAR: u64 = 0;
const FORMAT_TWO_LEVELS: u64 = 1;

/// Level 1 descriptor, bits 4:0: the leaf has `1 << (span - 1)` entries; 0: there is no leaf.
const SPAN: (u32, u32) = (0, 5);
/// The widest leaf that a descriptor can tell of has `1 << 10` entries.
const MAX_SPAN: u8 = 11;
/// Level 1 descriptor, bits 51:6: the leaf.
const L2_PTR: u64 = ((1 << 52) - 1) & !0x3f;

/// A leaf of 4 KiB has 64 entries.
const LINK: u64 = LEAF_ENTRIES_LG2 as u64 + 1;
const LEAVES: Leaves = Leaves { link: LINK, valid: ste::VALID };

/// Requester ids have 16 bits.
const STREAM_BITS: u8 = 16;

/// How entries lie in memory: `STRTAB_BASE_CFG.FMT` and `SPLIT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum StreamLayout {
    /// One after the other.
    Linear,
    /// Pointers to leaves.
    TwoLevels {
        /// Bits of a StreamID that index a leaf: 6, 8 or 10.
        split: u8,
    },
}

/// Where a stream table is: what the registers `STRTAB_BASE` and `STRTAB_BASE_CFG` say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamRoot {
    base: PhysAddr,
    stream_bits: u8,
    layout: StreamLayout,
}

/// Where the next step of a lookup in a stream table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// An entry.
    Entry(PhysAddr),
    /// A pointer to a leaf.
    Pointer(PhysAddr),
}

impl StreamRoot {
    /// The table of StreamIDs of `stream_bits` bits at `base`, whose bits below the table's size
    /// (IHI 0070, 6.3.23) do not count. `None` for more than 32 bits or another split than the
    /// manual's.
    #[must_use]
    pub const fn new(base: PhysAddr, stream_bits: u8, layout: StreamLayout) -> Option<Self> {
        let size_lg2 = match layout {
            StreamLayout::Linear => stream_bits.saturating_add(ENTRY_LG2),
            StreamLayout::TwoLevels { split: split @ (6 | 8 | 10) } => {
                let lg2 = stream_bits.saturating_sub(split) + 3;
                if lg2 < ENTRY_LG2 { ENTRY_LG2 } else { lg2 }
            }
            StreamLayout::TwoLevels { .. } => return None,
        };
        if stream_bits > 32 {
            return None;
        }
        Some(Self { base: align_down(base.raw(), size_lg2), stream_bits, layout })
    }

    /// The first entry or pointer.
    #[must_use]
    pub const fn base(&self) -> PhysAddr {
        self.base
    }

    /// The table that the registers `STRTAB_BASE` (its address field) and `STRTAB_BASE_CFG` say;
    /// `None` for a format or a split that is reserved, or more than 32 bits.
    #[must_use]
    pub fn from_registers(base: PhysAddr, base_config: u32) -> Option<Self> {
        let config = u64::from(base_config);
        let bits = |first, bits| u8::try_from(field(config, first, bits)).ok();
        let layout = match field(config, FORMAT.0, FORMAT.1) {
            FORMAT_LINEAR => StreamLayout::Linear,
            FORMAT_TWO_LEVELS => StreamLayout::TwoLevels { split: bits(SPLIT.0, SPLIT.1)? },
            _ => return None,
        };
        Self::new(base, bits(LOG2SIZE.0, LOG2SIZE.1)?, layout)
    }

    /// What `STRTAB_BASE_CFG` holds: LOG2SIZE 5:0, SPLIT 10:6, FMT 17:16.
    #[must_use]
    pub const fn base_config(&self) -> u32 {
        let format = match self.layout {
            StreamLayout::Linear => 0,
            StreamLayout::TwoLevels { split } => 1 << 16 | (split as u32) << 6,
        };
        format | self.stream_bits as u32
    }

    /// Where a lookup of `stream` starts; `None` if the table has no such StreamID.
    pub(super) fn start(&self, stream: u32) -> Option<Step> {
        if u64::from(stream) >> self.stream_bits != 0 {
            return None;
        }
        let at = |index: u32, lg2: u8| self.base.checked_add(u64::from(index) << lg2);
        match self.layout {
            StreamLayout::Linear => at(stream, ENTRY_LG2).map(Step::Entry),
            StreamLayout::TwoLevels { split } => at(stream >> split, 3).map(Step::Pointer),
        }
    }

    /// Where the entry of `stream` is, below the pointer `descriptor`; `None` if the leaf has none
    /// (IHI 0070, 5.1.1).
    pub(super) fn follow(&self, descriptor: u64, stream: u32) -> Option<PhysAddr> {
        let StreamLayout::TwoLevels { split } = self.layout else { return None };
        let span = u8::try_from(field(descriptor, SPAN.0, SPAN.1)).ok()?;
        let leaf_lg2 = span.checked_sub(1).filter(|leaf_lg2| *leaf_lg2 <= split)?;
        let index = u64::from(stream) & ((1 << split) - 1);
        if span > MAX_SPAN || index >> leaf_lg2 != 0 {
            return None;
        }
        align_down(descriptor & L2_PTR, leaf_lg2 + ENTRY_LG2).checked_add(index << ENTRY_LG2)
    }
}

/// The stream table of one PCI segment: pointers, and leaves of 4 KiB where there are entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamTable {
    pointers: PhysAddr,
}

impl StreamTable {
    /// An empty table for all requester ids: requests of every function are aborted.
    ///
    /// # Errors
    /// If there are not enough table pages for the pointers.
    pub fn new<S: TableStore>(store: &mut S) -> Result<Self, OutOfTables> {
        let pages = (8_u64 << (STREAM_BITS - LEAF_ENTRIES_LG2)).div_ceil(LEAF_BYTES);
        Ok(Self { pointers: store.alloc_pages(pages)? })
    }

    /// Where it is, which readers start from.
    #[must_use]
    pub const fn root(&self) -> StreamRoot {
        let layout = StreamLayout::TwoLevels { split: LEAF_ENTRIES_LG2 };
        StreamRoot { base: self.pointers, stream_bits: STREAM_BITS, layout }
    }

    /// Sets the entry of the function `bdf` by copying its leaf; requests see the old entry or the
    /// new one. The old leaf is freed: it is withdrawn, and readers may still be in it.
    ///
    /// # Errors
    /// If no table page is left for the copy; nothing changes.
    pub fn set<S: TableStore>(
        &self,
        store: &mut S,
        bdf: u16,
        entry: &StreamEntry,
    ) -> Result<(), SetError> {
        let index = u32::from(bdf);
        let slot = self.slot(index).ok_or(SetError::TooWide { index })?;
        LEAVES.set(store, slot, index, &entry.pack()).map_err(SetError::OutOfTables)
    }

    /// Makes `entry` for the function `bdf` part of `staged`.
    ///
    /// # Errors
    /// If no table page is left; `staged` is as before.
    pub fn stage<S: TableStore>(
        &self,
        store: &mut S,
        bdf: u16,
        entry: &StreamEntry,
        staged: &mut Staged,
    ) -> Result<(), SetError> {
        let index = u32::from(bdf);
        let slot = self.slot(index).ok_or(SetError::TooWide { index })?;
        LEAVES.stage(store, slot, (index, &entry.pack()), staged).map_err(SetError::OutOfTables)
    }

    /// Clears the entry of `bdf`: from now on its requests fault. A leaf without entries is freed.
    /// Needs no memory.
    pub fn clear<S: TableStore>(&self, store: &mut S, bdf: u16) {
        let index = u32::from(bdf);
        if let Some(slot) = self.slot(index) {
            LEAVES.clear(store, slot, index);
        }
    }

    fn slot(&self, index: u32) -> Option<PhysAddr> {
        self.pointers.checked_add(u64::from(index >> LEAF_ENTRIES_LG2) * 8)
    }
}

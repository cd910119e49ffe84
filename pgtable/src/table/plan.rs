//! What a mapping means for a table, before anything is read or written.

use super::{MapError, Table};
use crate::format::{Format, Geometry};
use crate::{Access, IovaRange, Mapping};

/// A range of indexing input, inclusive: what [`Format::input`] makes of a range of IOVAs.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) last: u64,
}

impl Span {
    /// The part of `range` that indexes; `None` if some of it is not translated.
    pub(super) fn of<F: Format>(format: &F, range: &IovaRange) -> Option<Self> {
        let (first, last) = (format.input(range.start())?, format.input(range.last())?);
        // a range across a canonical hole has both ends outside of it
        let whole = last.checked_sub(first) == Some(range.len_minus_one());
        whole.then_some(Self { first, last })
    }
}

/// A mapping that the format can hold.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    pub(super) geometry: Geometry,
    pub(super) span: Span,
    pub(super) access: Access,
    /// What to add to an input to get its output, wrapping.
    offset: u64,
    /// Levels of leaves that suit both the input and the output.
    leaf_levels: u8,
}

impl Plan {
    /// Level of the leaf that starts at `input`, the highest that alignment and length allow.
    #[inline]
    pub(super) fn leaf_level(&self, input: u64) -> u8 {
        let left = self.span.last - input;
        let mut level = highest(self.leaf_levels);
        while level > 0 {
            let mask = (1 << self.geometry.entry_lg2(level)) - 1;
            if self.leaf_levels & (1 << level) != 0 && input & mask == 0 && left >= mask {
                return level;
            }
            level -= 1;
        }
        0
    }

    /// How many leaves of `level` follow each other from `input` on, in one table and in the range.
    #[inline]
    pub(super) fn run(&self, level: u8, input: u64) -> u64 {
        let table_last = input | ((1 << self.geometry.table_lg2(level)) - 1);
        (table_last.min(self.span.last) - input + 1) >> self.geometry.entry_lg2(level)
    }

    /// Where `input` leads.
    #[inline]
    pub(super) const fn output(&self, input: u64) -> u64 {
        input.wrapping_add(self.offset)
    }

    /// The lowest level above `level` whose leaves this mapping uses where they fit.
    pub(super) fn next_leaf_level(&self, level: u8) -> Option<u8> {
        let above = self.leaf_levels >> level >> 1;
        let next = level + 1 + u8::try_from(above.trailing_zeros()).unwrap_or(0);
        (above != 0).then_some(next)
    }
}

/// The highest of `levels`, which has bit 0.
const fn highest(levels: u8) -> u8 {
    let mut level = 0;
    while levels >> level > 1 {
        level += 1;
    }
    level
}

impl<F: Format> Table<F> {
    /// Judges `mapping` by the format alone.
    pub(super) fn plan(&self, mapping: &Mapping) -> Result<Plan, MapError> {
        let geometry = self.format.geometry();
        let (iova, oa) = (mapping.iova(), mapping.oa());
        if !iova.is_aligned(geometry.granule_lg2) || !oa.is_aligned(geometry.granule_lg2) {
            return Err(MapError::Misaligned { iova, oa, granule_lg2: geometry.granule_lg2 });
        }
        let Some(span) = Span::of(&self.format, &iova) else {
            return Err(MapError::InputTooWide { iova, input_bits: geometry.input_bits });
        };
        let last = mapping.oa_last();
        if last.raw() >> geometry.output_bits != 0 {
            return Err(MapError::OutputTooWide { last, output_bits: geometry.output_bits });
        }
        let access = mapping.access();
        if !self.format.expresses(access) {
            return Err(MapError::Inexpressible { access });
        }
        let offset = oa.raw().wrapping_sub(span.first);
        // input and output fit the same page if they differ by a multiple of its size
        let leaf_levels = (0..geometry.levels)
            .filter(|&level| geometry.has_leaves(level))
            .filter(|&level| offset & ((1 << geometry.entry_lg2(level)) - 1) == 0)
            .fold(1, |levels, level| levels | 1 << level);
        Ok(Plan { geometry, span, access, offset, leaf_levels })
    }
}

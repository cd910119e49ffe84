//! Unmapping: whole leaves, and the tables that they leave empty.

use core::fmt;

use super::path::Path;
use super::plan::Span;
use super::{Table, table_pages};
use crate::format::{Entry, Format};
use crate::{Iova, IovaRange, TableStore};

/// What [`Table::unmap`] withdrew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Unmapped {
    /// Leaves cleared.
    pub leaves: u64,
    /// Store pages given back.
    pub table_pages: u64,
}

/// Why nothing was unmapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnmapError {
    /// A leaf reaches out of the range.
    Split {
        /// An address of that leaf, in the range.
        at: Iova,
        /// Its size, bytes.
        size_lg2: u8,
    },
    /// The table does not translate some of the range.
    InputTooWide {
        /// The range asked for.
        iova: IovaRange,
        /// Width of the table's input.
        input_bits: u8,
    },
}

impl fmt::Display for UnmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Split { at, size_lg2 } => {
                write!(f, "the page of {:#x} bytes at {at} would be split", 1u64 << size_lg2)
            }
            Self::InputTooWide { iova, input_bits } => {
                write!(f, "{iova} is outside of the {input_bits} bits that are translated")
            }
        }
    }
}

impl core::error::Error for UnmapError {}

impl<F: Format> Table<F> {
    /// Withdraws exactly the leaves in `iova`; there need not be any. Tables left empty are unlinked,
    /// then given back; the root stays.
    ///
    /// O(entries in the range of the tables that the range touches, and levels).
    ///
    /// # Errors
    /// [`UnmapError`] if a leaf is partly outside, or the range is not translated; nothing changed.
    pub fn unmap<S: TableStore>(
        &mut self,
        store: &mut S,
        iova: IovaRange,
    ) -> Result<Unmapped, UnmapError> {
        let input_bits = self.format.geometry().input_bits;
        let Some(span) = Span::of(&self.format, &iova) else {
            return Err(UnmapError::InputTooWide { iova, input_bits });
        };
        let way = self.path_to(store, span.first);
        self.refuse_split(store, &way, &span, (iova.start(), span.first))?;
        let entry_lg2 = self.format.geometry().entry_lg2(way.level());
        if (span.first ^ span.last) >> entry_lg2 != 0 {
            let way = self.path_to(store, span.last);
            self.refuse_split(store, &way, &span, (iova.last(), span.last))?;
        }
        Ok(self.remove(store, way, span))
    }

    /// Fails if the leaf at the edge `(at, input)` of `span`, to which `way` leads, is not wholly inside.
    #[inline]
    fn refuse_split<S: TableStore>(
        &self,
        store: &S,
        way: &Path,
        span: &Span,
        (at, input): (Iova, u64),
    ) -> Result<(), UnmapError> {
        let (geometry, level) = (self.format.geometry(), way.level());
        let size_lg2 = geometry.entry_lg2(level);
        let below = (1 << size_lg2) - 1;
        let inside = input & !below >= span.first && input | below <= span.last;
        let entry_at = geometry.entry_at(level, way.table(), input);
        if inside || self.entry(store, level, entry_at) == Entry::Empty {
            return Ok(());
        }
        Err(UnmapError::Split { at, size_lg2 })
    }

    /// Clears all entries in `span` that lead nowhere further down; no leaf reaches out of it. `path` is
    /// some way to its first address.
    pub(super) fn remove<S: TableStore>(
        &self,
        store: &mut S,
        mut path: Path,
        span: Span,
    ) -> Unmapped {
        let geometry = self.format.geometry();
        let mut unmapped = Unmapped::default();
        let mut input = span.first;
        loop {
            self.follow(store, &mut path, input);
            let (removed, next) = self.clear_run(store, &path, Span { first: input, ..span });
            unmapped.leaves += removed;
            self.sub_live(store, path.level(), path.table(), removed);
            unmapped.table_pages += self.release(store, &mut path, input);
            if next > span.last {
                return unmapped;
            }
            while (input ^ next) >> geometry.table_lg2(path.level()) != 0 {
                path.up();
            }
            input = next;
        }
    }

    /// The way to the lowest table for `input`.
    #[inline]
    pub(super) fn path_to<S: TableStore>(&self, store: &S, input: u64) -> Path {
        let mut path = Path::new(self.format.geometry().root_level(), self.root);
        self.follow(store, &mut path, input);
        path
    }

    /// Extends the path to the lowest table for `input`.
    #[inline]
    fn follow<S: TableStore>(&self, store: &S, path: &mut Path, input: u64) {
        let geometry = self.format.geometry();
        while path.level() > 0 {
            let at = geometry.entry_at(path.level(), path.table(), input);
            let Entry::Table { next, .. } = self.entry(store, path.level(), at) else {
                return;
            };
            path.down(next);
        }
    }

    /// Clears the entries of `span` in the lowest table of the path, up to its end or to an entry that
    /// leads to a table: how many, and the first input not looked at.
    #[inline]
    fn clear_run<S: TableStore>(&self, store: &mut S, path: &Path, span: Span) -> (u64, u64) {
        let (geometry, level) = (self.format.geometry(), path.level());
        let entry_lg2 = geometry.entry_lg2(level);
        let last = span.last.min(span.first | ((1 << geometry.table_lg2(level)) - 1));
        let (mut removed, mut input) = (0, span.first);
        while input <= last {
            let at = geometry.entry_at(level, path.table(), input);
            match self.entry(store, level, at) {
                Entry::Empty => {}
                Entry::Table { .. } => break,
                Entry::Leaf { .. } | Entry::Malformed => {
                    store.store(at, 0);
                    removed += 1;
                }
            }
            input = ((input >> entry_lg2) + 1) << entry_lg2;
        }
        (removed, input)
    }

    /// Unlinks and gives back the lowest tables of the path while they have no entry in use; the store
    /// pages given back.
    #[inline]
    pub(super) fn release<S: TableStore>(&self, store: &mut S, path: &mut Path, input: u64) -> u64 {
        let geometry = self.format.geometry();
        let mut released = 0;
        while path.level() < geometry.root_level() && store.live(path.table()) == 0 {
            let table = path.table();
            path.up();
            store.store(geometry.entry_at(path.level(), path.table(), input), 0);
            // the last entry in use was cleared, as those before
            store.free_clean_pages(table, table_pages::<S>(&geometry));
            self.sub_live(store, path.level(), path.table(), 1);
            released += table_pages::<S>(&geometry);
        }
        released
    }
}

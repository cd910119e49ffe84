//! Mapping: look first, then write from below.

use core::fmt;

use super::path::Path;
use super::plan::{Plan, Span};
use super::{Reached, Table, table_pages};
use crate::format::{ENTRY_LG2, Entry, Format};
use crate::{Access, Iova, IovaRange, Mapping, OutOfTables, PhysAddr, TableStore};

/// Why a mapping was refused; the table is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MapError {
    /// Start, length or output is not a multiple of the granule.
    Misaligned {
        /// The range asked for.
        iova: IovaRange,
        /// Its output address.
        oa: PhysAddr,
        /// The granule.
        granule_lg2: u8,
    },
    /// The table does not translate some of the range.
    InputTooWide {
        /// The range asked for.
        iova: IovaRange,
        /// Width of the table's input.
        input_bits: u8,
    },
    /// The output is wider than an entry can say.
    OutputTooWide {
        /// The last output address asked for.
        last: PhysAddr,
        /// Width of the table's output.
        output_bits: u8,
    },
    /// No entry of this format allows this and nothing more.
    Inexpressible {
        /// The access asked for.
        access: Access,
    },
    /// Something is mapped in the range already.
    Overlap {
        /// The start of the page, asked for, in whose place something is.
        at: Iova,
    },
    /// Not enough free table pages.
    OutOfTables(OutOfTables),
}

impl fmt::Display for MapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Misaligned { iova, oa, granule_lg2 } => {
                write!(f, "{iova} to {oa} is not in pages of {:#x} bytes", 1u64 << granule_lg2)
            }
            Self::InputTooWide { iova, input_bits } => {
                write!(f, "{iova} is outside of the {input_bits} bits that are translated")
            }
            Self::OutputTooWide { last, output_bits } => {
                write!(f, "output up to {last} is wider than {output_bits} bits")
            }
            Self::Inexpressible { access } => {
                f.write_str("the format has no entries for access ")?;
                bitflags::parser::to_writer(access, f)
            }
            Self::Overlap { at } => write!(f, "something is mapped at {at}"),
            Self::OutOfTables(error) => fmt::Display::fmt(error, f),
        }
    }
}

impl core::error::Error for MapError {}

impl From<OutOfTables> for MapError {
    fn from(error: OutOfTables) -> Self {
        Self::OutOfTables(error)
    }
}

/// A new table, complete but for what is still being written, and the entry that will lead to it.
struct Unlinked {
    at: PhysAddr,
    level: u8,
    entry: u64,
}

/// The state of one [`Table::map`].
struct Writer<'a, F, S> {
    table: &'a Table<F>,
    store: &'a mut S,
    plan: &'a Plan,
    /// The way to the current input.
    path: Path,
    unlinked: Option<Unlinked>,
}

impl<F: Format> Table<F> {
    /// Maps `mapping` with the largest leaves that the alignment of its input and its output allows.
    ///
    /// The pages that it needs are counted first, in O(levels); then the range is looked at; then it is
    /// written, O(pages and tables touched). A table is never replaced by a leaf. New tables are filled
    /// before a live one leads to them: who walks meanwhile finds nothing or whole entries.
    ///
    /// # Errors
    /// [`MapError`]; nothing was written, or, where a table takes several contiguous store pages and
    /// those ran out, what was written is withdrawn again.
    pub fn map<S: TableStore>(&mut self, store: &mut S, mapping: &Mapping) -> Result<(), MapError> {
        let plan = self.plan(mapping)?;
        let reached = self.reach(store, plan.span.first, 0);
        if self.map_in_place(store, &plan, &reached) {
            return Ok(());
        }
        let needed_pages = self.pages_for(store, &plan);
        let free_pages = store.pages_left();
        if needed_pages > free_pages {
            return Err(OutOfTables { needed_pages, free_pages }.into());
        }
        // most often all of it lies under one entry that leads nowhere
        let entry_lg2 = plan.geometry.entry_lg2(reached.level);
        let apart = (plan.span.first ^ plan.span.last) >> entry_lg2 != 0;
        if (apart || reached.entry != Entry::Empty)
            && let Some(input) = self.first_in_use(store, &plan)
        {
            let at = Iova::new(mapping.iova().start().raw() + (input - plan.span.first));
            return Err(MapError::Overlap { at });
        }
        let mut writer = Writer {
            table: self,
            store,
            plan: &plan,
            path: Path::new(plan.geometry.root_level(), self.root),
            unlinked: None,
        };
        writer.write().map_err(MapError::OutOfTables)
    }

    /// Maps all of the plan into the table at `reached`, which is there, if it fits and nothing is in its
    /// place: the short way for a few pages beside others. True if done; else nothing was written.
    #[inline]
    fn map_in_place<S: TableStore>(&self, store: &mut S, plan: &Plan, reached: &Reached) -> bool {
        let Span { first, last } = plan.span;
        let level = plan.leaf_level(first);
        let run = plan.run(level, first);
        let end = first + (run << plan.geometry.entry_lg2(level));
        let free = level == reached.level
            && end > last
            && self.used_in_run(store, level, reached.table, (first, run)).is_none();
        if free {
            self.fill(store, plan, (level, reached.table), (first, run));
        }
        free
    }

    /// The start of the first page of the plan where something is already.
    fn first_in_use<S: TableStore>(&self, store: &S, plan: &Plan) -> Option<u64> {
        let mut input = plan.span.first;
        loop {
            let level = plan.leaf_level(input);
            let reached = self.reach(store, input, level);
            let entries = match reached.entry {
                Entry::Empty if reached.level == level => {
                    let run = plan.run(level, input);
                    if let Some(index) = self.used_in_run(store, level, reached.table, (input, run))
                    {
                        return Some(input + (index << plan.geometry.entry_lg2(level)));
                    }
                    run
                }
                // no table yet for what this entry covers
                Entry::Empty => 1,
                _ => return Some(input),
            };
            let entry_lg2 = plan.geometry.entry_lg2(reached.level);
            input = ((input >> entry_lg2) + entries) << entry_lg2;
            if input > plan.span.last {
                return None;
            }
        }
    }

    /// Index, from 0, of the first entry in use among those of the run `(input, entries)`.
    #[inline]
    fn used_in_run<S: TableStore>(
        &self,
        store: &S,
        level: u8,
        table: PhysAddr,
        (input, entries): (u64, u64),
    ) -> Option<u64> {
        let geometry = self.format.geometry();
        let first = geometry.entry_at(level, table, input).raw();
        (0..entries).find(|index| {
            let at = PhysAddr::new(first + (index << ENTRY_LG2));
            self.entry(store, level, at) != Entry::Empty
        })
    }

    /// Writes the leaves of the run `(input, entries)` into the table of `level` at `table`.
    #[inline]
    fn fill<S: TableStore>(
        &self,
        store: &mut S,
        plan: &Plan,
        (level, table): (u8, PhysAddr),
        (input, entries): (u64, u64),
    ) {
        let first = plan.geometry.entry_at(level, table, input).raw();
        let (output, size_lg2) = (plan.output(input), plan.geometry.entry_lg2(level));
        for index in 0..entries {
            let oa = PhysAddr::new(output + (index << size_lg2));
            let leaf = self.format.leaf(level, oa, plan.access);
            store.store(PhysAddr::new(first + (index << ENTRY_LG2)), leaf);
        }
        self.add_live(store, level, table, entries);
    }
}

impl<F: Format, S: TableStore> Writer<'_, F, S> {
    fn write(&mut self) -> Result<(), OutOfTables> {
        let mut input = self.plan.span.first;
        loop {
            let level = self.plan.leaf_level(input);
            if let Err(error) = self.descend(input, level) {
                self.undo(input);
                return Err(error);
            }
            let run = self.plan.run(level, input);
            let table = (level, self.path.table());
            self.table.fill(self.store, self.plan, table, (input, run));
            let next = input + (run << self.plan.geometry.entry_lg2(level));
            if next > self.plan.span.last {
                self.publish();
                return Ok(());
            }
            self.climb(input, next);
            input = next;
        }
    }

    /// Extends the path to the table of `level` for `input`, with new tables where there are none.
    #[inline]
    fn descend(&mut self, input: u64, level: u8) -> Result<(), OutOfTables> {
        let geometry = &self.plan.geometry;
        while self.path.level() > level {
            let at = geometry.entry_at(self.path.level(), self.path.table(), input);
            let next = match self.table.entry(self.store, self.path.level(), at) {
                Entry::Table { next, .. } => next,
                _ => self.grow(at)?,
            };
            self.path.down(next);
        }
        Ok(())
    }

    /// Makes a table for the entry at `at` of the lowest table.
    fn grow(&mut self, at: PhysAddr) -> Result<PhysAddr, OutOfTables> {
        let next = self.store.alloc_pages(table_pages::<S>(&self.plan.geometry))?;
        let (level, entry) = (self.path.level(), self.table.format.table(next));
        if self.unlinked.is_some() {
            // nobody sees the table that this entry is in
            self.store.store(at, entry);
        } else {
            self.unlinked = Some(Unlinked { at, level, entry });
        }
        self.table.add_live(self.store, level, self.path.table(), 1);
        Ok(next)
    }

    /// Shortens the path to the tables that cover `next` too.
    fn climb(&mut self, input: u64, next: u64) {
        while (input ^ next) >> self.plan.geometry.table_lg2(self.path.level()) != 0 {
            self.path.up();
        }
        if self.unlinked.as_ref().is_some_and(|unlinked| self.path.level() >= unlinked.level) {
            self.publish();
        }
    }

    /// Links the new tables: now they can be seen.
    fn publish(&mut self) {
        if let Some(Unlinked { at, entry, .. }) = self.unlinked.take() {
            self.store.store(at, entry);
        }
    }

    /// Withdraws what was written before `end`, and new tables on the way to it that stayed empty.
    #[cold]
    fn undo(&mut self, end: u64) {
        self.publish();
        self.table.release(self.store, &mut self.path, end);
        let first = self.plan.span.first;
        if let Some(last) = end.checked_sub(1).filter(|last| *last >= first) {
            let way = self.table.path_to(self.store, first);
            self.table.remove(self.store, way, Span { first, last });
        }
    }
}

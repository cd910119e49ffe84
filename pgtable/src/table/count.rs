//! How many table pages a mapping needs: arithmetic, and a look at its two edges.

use super::plan::Plan;
use super::{Table, table_pages};
use crate::format::{Entry, Format};
use crate::{Mapping, TableStore};

impl<F: Format> Table<F> {
    /// Store pages that [`map`](Self::map) would take for `mapping`, without looking at what lies
    /// between its edges: O(levels).
    ///
    /// Exact for a mapping that `map` accepts; 0 for one that the format cannot hold.
    #[must_use]
    pub fn pages_needed<S: TableStore>(&self, store: &S, mapping: &Mapping) -> u64 {
        self.plan(mapping).map_or(0, |plan| self.pages_for(store, &plan))
    }

    pub(super) fn pages_for<S: TableStore>(&self, store: &S, plan: &Plan) -> u64 {
        let top = plan.geometry.root_level();
        let needed: u64 = (0..top).map(|level| tables_at(plan, level)).sum();
        let there = self.tables_at_edges(store, plan);
        // more there than needed only if the mapping overlaps one: `map` finds out
        needed.saturating_sub(there).saturating_mul(table_pages::<S>(&plan.geometry))
    }

    /// Tables below the root that already lead to the first or the last address.
    fn tables_at_edges<S: TableStore>(&self, store: &S, plan: &Plan) -> u64 {
        let (first, last) = (plan.span.first, plan.span.last);
        let left = self.lowest_table(store, first);
        let apart = first ^ last;
        let top = plan.geometry.root_level();
        let mut there = u64::from(top - left);
        if apart >> plan.geometry.table_lg2(0) != 0 {
            let right = self.lowest_table(store, last);
            // a table that covers both edges was counted with the left one
            there += (right..top)
                .filter(|&level| apart >> plan.geometry.table_lg2(level) != 0)
                .fold(0, |tables, _| tables + 1);
        }
        there
    }

    /// Level of the lowest table on the way to `input`.
    fn lowest_table<S: TableStore>(&self, store: &S, input: u64) -> u8 {
        let reached = self.reach(store, input, 0);
        debug_assert!(!matches!(reached.entry, Entry::Table { .. }), "level 0 holds no tables");
        reached.level
    }
}

/// Tables of `level`, below the root, that the mapping runs through, new or not: one for each entry
/// of the level above that is in the range and not inside a leaf.
fn tables_at(plan: &Plan, level: u8) -> u64 {
    let (first, last) = (plan.span.first, plan.span.last);
    let entry_lg2 = plan.geometry.entry_lg2(level + 1);
    let entries = (last >> entry_lg2) - (first >> entry_lg2) + 1;
    let Some(leaf_level) = plan.next_leaf_level(level) else {
        return entries;
    };
    let leaf_lg2 = plan.geometry.entry_lg2(leaf_level);
    let leaves_from = (first + ((1 << leaf_lg2) - 1)) >> leaf_lg2;
    let leaves_end = (last + 1) >> leaf_lg2;
    entries - (leaves_end.saturating_sub(leaves_from) << (leaf_lg2 - entry_lg2))
}

//! The writer's tables, looked up by the reader.

use std::collections::BTreeMap;

use viommu_pgtable::{OutOfTables, PhysAddr, TableMemory, TableStore};

use super::*;
use crate::{Pasid, Staged};

/// Table pages in a map, with a budget; freed pages stay readable, as before a drain.
struct Store {
    words: BTreeMap<u64, u64>,
    live: BTreeMap<u64, u16>,
    next: u64,
    left: u64,
    freed: Vec<u64>,
}

impl Store {
    fn with_pages(left: u64) -> Self {
        let (words, live) = (BTreeMap::new(), BTreeMap::new());
        Self { words, live, next: 0x8_0000_0000_0000, left, freed: Vec::new() }
    }
}

impl TableMemory for Store {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        let known = (0x8_0000_0000_0000..self.next).contains(&at.raw());
        known.then(|| self.words.get(&at.raw()).copied().unwrap_or(0))
    }
}

impl TableStore for Store {
    fn store(&mut self, at: PhysAddr, entry: u64) {
        self.words.insert(at.raw(), entry);
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        if pages > self.left {
            return Err(OutOfTables { needed_pages: pages, free_pages: self.left });
        }
        self.left -= pages;
        let start = self.next.next_multiple_of(pages.next_power_of_two() * 4096);
        self.next = start + pages * 4096;
        Ok(PhysAddr::new(start))
    }

    fn free_pages(&mut self, start: PhysAddr, pages: u64) {
        self.freed.extend((0..pages).map(|page| start.raw() + page * 4096));
    }

    fn pages_left(&self) -> u64 {
        self.left
    }

    fn live(&self, page: PhysAddr) -> u16 {
        self.live.get(&page.raw()).copied().unwrap_or(0)
    }

    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        self.live.insert(page.raw(), entries);
    }
}

const BDF: u16 = 0x0020;

fn entry(domain_tag: u16) -> PasidEntry {
    PasidEntry { domain_tag, translation: Translation::PassThrough }
}

/// A store with one function, its PASID table, and the root of its segment.
fn function(pasid_bits: u8) -> (Store, RootTable, PasidTable) {
    let mut store = Store::with_pages(1000);
    let root = RootTable::new(&mut store).unwrap();
    let table = PasidTable::new(&mut store, pasid_bits).unwrap();
    root.set_context(&mut store, BDF, &table.context()).unwrap();
    (store, root, table)
}

fn kind(
    store: &Store,
    root: RootTable,
    bdf: u16,
    pasid: Option<u32>,
) -> Result<u16, LookupFaultKind> {
    lookup(store, root.root(), bdf, pasid.map(|raw| Pasid::new(raw).unwrap()))
        .map(|entry| entry.domain_tag)
        .map_err(|fault| fault.kind)
}

#[test]
fn untagged_traffic_finds_entry_0_and_each_pasid_its_own() {
    let (mut store, root, table) = function(20);
    for (index, tag) in [(0, 10), (1, 11), (64, 12), ((1 << 20) - 1, 13)] {
        table.set(&mut store, index, &entry(tag)).unwrap();
    }
    assert_eq!(kind(&store, root, BDF, None), Ok(10));
    assert_eq!(kind(&store, root, BDF, Some(1)), Ok(11));
    assert_eq!(kind(&store, root, BDF, Some(64)), Ok(12));
    assert_eq!(kind(&store, root, BDF, Some((1 << 20) - 1)), Ok(13));
    assert_eq!(kind(&store, root, BDF, Some(2)), Err(LookupFaultKind::EntryNotPresent));
    assert_eq!(kind(&store, root, BDF, Some(128)), Err(LookupFaultKind::DirectoryNotPresent));
}

#[test]
fn unknown_functions_and_forbidden_pasids_are_told_apart() {
    let (mut store, root, table) = function(0);
    table.set(&mut store, 0, &entry(1)).unwrap();
    assert_eq!(kind(&store, root, BDF + 1, None), Err(LookupFaultKind::ContextNotPresent));
    assert_eq!(kind(&store, root, BDF | 0x80, None), Err(LookupFaultKind::RootNotPresent));
    assert_eq!(kind(&store, root, BDF, Some(1)), Err(LookupFaultKind::PasidNotEnabled));
    let (store, root, _) = function(8);
    assert_eq!(kind(&store, root, BDF, Some(8192)), Err(LookupFaultKind::PasidTooWide));
}

#[test]
fn setting_an_entry_leaves_the_leaf_that_readers_are_in_as_it_was() {
    let (mut store, _, table) = function(20);
    table.set(&mut store, 5, &entry(1)).unwrap();
    let before = store.words.clone();
    table.set(&mut store, 5, &entry(2)).unwrap();
    let old_leaf = store.freed[0];
    let in_leaf = |words: &BTreeMap<u64, u64>| -> Vec<(u64, u64)> {
        words.range(old_leaf..old_leaf + 4096).map(|(at, word)| (*at, *word)).collect()
    };
    assert!(!in_leaf(&before).is_empty());
    assert_eq!(in_leaf(&store.words), in_leaf(&before));
}

#[test]
fn clearing_changes_the_first_word_only_and_frees_the_last_leaf() {
    let (mut store, root, table) = function(20);
    table.set(&mut store, 5, &entry(1)).unwrap();
    table.set(&mut store, 6, &entry(2)).unwrap();
    store.freed.clear();
    table.clear(&mut store, 5);
    assert_eq!(kind(&store, root, BDF, Some(5)), Err(LookupFaultKind::EntryNotPresent));
    assert_eq!(kind(&store, root, BDF, Some(6)), Ok(2));
    assert_eq!(store.freed, []);
    table.clear(&mut store, 6);
    table.clear(&mut store, 6);
    assert_eq!(kind(&store, root, BDF, Some(6)), Err(LookupFaultKind::DirectoryNotPresent));
    assert_eq!(store.freed.len(), 1);
}

#[test]
fn without_memory_a_set_changes_nothing_and_a_clear_still_works() {
    let (mut store, root, table) = function(20);
    table.set(&mut store, 5, &entry(1)).unwrap();
    store.left = 0;
    let error = SetError::OutOfTables(OutOfTables { needed_pages: 1, free_pages: 0 });
    assert_eq!(table.set(&mut store, 5, &entry(2)), Err(error));
    assert_eq!(kind(&store, root, BDF, Some(5)), Ok(1));
    table.clear(&mut store, 5);
    assert_eq!(kind(&store, root, BDF, Some(5)), Err(LookupFaultKind::DirectoryNotPresent));
}

#[test]
fn staged_entries_come_into_force_together_with_one_copy_of_each_leaf() {
    let (mut store, root, table) = function(20);
    table.set(&mut store, 5, &entry(1)).unwrap();
    store.freed.clear();
    let left = store.left;
    let mut staged = Staged::default();
    table.stage(&mut store, [4, 5, 6, 64, 70], &entry(2), &mut staged).unwrap();
    assert_eq!(store.left, left - 2, "two leaves");
    let kinds = |store: &Store| [4, 5, 6, 64, 70].map(|it| kind(store, root, BDF, Some(it)).ok());
    assert_eq!(kinds(&store), [None, Some(1), None, None, None]);
    staged.commit(&mut store);
    assert_eq!(kinds(&store), [Some(2); 5]);
    assert_eq!(store.freed.len(), 1);
    for index in [4, 5, 6] {
        assert_eq!(store.freed.len(), 1);
        table.clear(&mut store, index);
    }
    assert_eq!(store.freed.len(), 2, "the entries of a copy are counted");
}

#[test]
fn staged_entries_that_are_discarded_or_find_no_memory_change_nothing() {
    let (mut store, root, table) = function(20);
    table.set(&mut store, 5, &entry(1)).unwrap();
    store.freed.clear();
    store.left = 1;
    let mut staged = Staged::default();
    let error = table.stage(&mut store, [5, 64], &entry(2), &mut staged);
    let none = OutOfTables { needed_pages: 1, free_pages: 0 };
    assert_eq!(error, Err(SetError::OutOfTables(none)));
    staged.discard(&mut store);
    assert_eq!(store.freed.len(), 1);
    assert_eq!(kind(&store, root, BDF, Some(5)), Ok(1));
    assert_eq!(kind(&store, root, BDF, Some(64)), Err(LookupFaultKind::DirectoryNotPresent));
    let error = table.stage(&mut store, [1 << 20], &entry(2), &mut Staged::default());
    assert_eq!(error, Err(SetError::TooWide { index: 1 << 20 }));
}

#[test]
fn a_reserved_bit_in_any_structure_ends_the_lookup_there() {
    let (mut store, root, table) = function(0);
    table.set(&mut store, 0, &entry(1)).unwrap();
    let pointer = |store: &Store, at: u64| store.words[&at] & !0xfff;
    let root_at = root.root().raw();
    let context_at = pointer(&store, root_at) + 0x20 * 32;
    let directory_at = pointer(&store, context_at);
    let entry_at = pointer(&store, directory_at);
    for (at, bit, kind) in [
        (root_at, 1, LookupFaultKind::RootMalformed),
        (root_at, 11, LookupFaultKind::RootMalformed),
        (context_at, 5, LookupFaultKind::ContextMalformed),
        (context_at + 8, 21, LookupFaultKind::ContextMalformed),
        (context_at + 16, 0, LookupFaultKind::ContextMalformed),
        (context_at + 24, 63, LookupFaultKind::ContextMalformed),
        (directory_at, 2, LookupFaultKind::DirectoryMalformed),
        (entry_at, 11, LookupFaultKind::EntryMalformed),
    ] {
        let word = store.words.get(&at).copied().unwrap_or(0);
        store.words.insert(at, word | 1 << bit);
        let fault = lookup(&store, root.root(), BDF, None).unwrap_err();
        assert_eq!((fault.kind, fault.entry_at.raw() >> 5), (kind, at >> 5), "bit {bit}");
        store.words.insert(at, word);
    }
    assert_eq!(kind(&store, root, BDF, None), Ok(1));
}

#[test]
fn an_index_beyond_the_table_is_refused() {
    let (mut store, _, table) = function(0);
    assert_eq!(table.set(&mut store, 8192, &entry(1)), Err(SetError::TooWide { index: 8192 }));
}

#[test]
fn garbage_in_memory_ends_in_a_fault_after_bounded_loads() {
    struct Garbage(std::cell::Cell<u64>, u64);
    impl TableMemory for Garbage {
        fn load(&self, at: PhysAddr) -> Option<u64> {
            self.0.set(self.0.get() + 1);
            Some((at.raw() ^ self.1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
        }
    }
    for seed in 0..2000 {
        let memory = Garbage(std::cell::Cell::new(0), seed);
        let _ = lookup(&memory, PhysAddr::new(0x1000), BDF, Pasid::new(77));
        assert!(memory.0.get() <= 14, "{} loads", memory.0.get());
    }
}

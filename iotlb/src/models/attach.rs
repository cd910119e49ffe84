//! ATTACH, ATTACH elsewhere and DETACH: an entry for an endpoint comes, changes and goes while a reader
//! looks it up; then its leaf, the tables behind it and the guest's pages serve others.
//!
//! Tables, lookup, walk and all that a reader remembers are the product's; so is the section protocol.

use loom::sync::Arc;
use loom::sync::atomic::AtomicU64;
use loom::thread;
use viommu_pasid::vtd::{AddressWidth, PasidEntry, PasidTable, RootTable, Translation};
use viommu_pasid::{EndpointId, Memories, Structures};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr, Table, TableMemory, VtdSecond};

use super::memory::{BASE, Seen, Store};
use super::{GOOD, PROMISE, REUSED, is_caught, search};
use crate::abi::State;
use crate::cache::{Cache, Origin, Wanted};
use crate::fault::FaultReason;
use crate::guest_tables::NoGuestMemory;
use crate::path::Leaf;
use crate::section::{self, FIRST_EPOCH, UNSEEN};
use crate::sync::Ordering;

/// A function on bus 1: its root and context entries lie where no case changes anything.
const ENDPOINT: EndpointId = EndpointId::new(0x118);

/// A guest's pages are 1 GiB, so that one entry of a second level leads there; this many.
const GUEST_PAGES: usize = 4;
const PAGE_LG2: u32 = 30;

/// A page that belongs to somebody else from the start.
const FOREIGN: u64 = 3;

/// What a broken twin does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wrong {
    Nothing,
    /// The writer waits for nobody.
    NoDrain,
    /// The writer withdraws after the drain.
    DrainsFirst,
    /// What is stored does not release what was stored before.
    ReleasesNothing,
    /// The reader follows pointers without a fence.
    AcquiresNothing,
    /// The reader keeps its translations over an epoch.
    KeepsTranslations,
    /// The reader keeps its routes over an epoch.
    KeepsRoutes,
    /// The reader remembers that nothing is attached.
    KeepsRefusals,
}

/// What both sides share, beside the tables.
struct Shared {
    epoch: AtomicU64,
    slot: AtomicU64,
    /// What is in each of the guest's pages.
    pages: [AtomicU64; GUEST_PAGES],
    /// 1 once the device may rely on what was attached.
    told: AtomicU64,
}

impl Shared {
    fn new() -> Arc<Self> {
        let pages = [REUSED, GOOD, GOOD, REUSED].map(AtomicU64::new);
        let (epoch, slot) = (AtomicU64::new(FIRST_EPOCH), AtomicU64::new(section::IDLE));
        Arc::new(Self { epoch, slot, pages, told: AtomicU64::new(0) })
    }
}

/// The daemon: one endpoint, and domains of one mapping each.
struct Daemon {
    shared: Arc<Shared>,
    store: Store,
    pasids: PasidTable,
    structures: Structures,
    wrong: Wrong,
}

impl Daemon {
    fn new(wrong: Wrong) -> Self {
        let mut store = Store::new();
        let root = RootTable::new(&mut store).unwrap();
        let pasids = PasidTable::new(&mut store, 0).unwrap();
        root.set_context(&mut store, ENDPOINT.bdf(), &pasids.context()).unwrap();
        let structures = Structures::Vtd { root: root.root() };
        Self { shared: Shared::new(), store, pasids, structures, wrong }
    }

    /// The end of what comes before the case, and its reader.
    fn begin(&mut self) -> Reader {
        self.store.has_begun = true;
        if self.wrong == Wrong::ReleasesNothing {
            self.store.order = Ordering::Relaxed;
        }
        let acquires = self.wrong != Wrong::AcquiresNothing;
        let tables = Seen { memory: Arc::clone(&self.store.memory), acquires };
        let (shared, structures) = (Arc::clone(&self.shared), self.structures);
        let (cache, wrong) = (Cache::new(), self.wrong);
        Reader { shared, tables, structures, wrong, cache, seen: UNSEEN, refused: None }
    }

    /// A domain in which IOVA 0 leads to the guest's page `page`.
    fn domain(&mut self, page: u64) -> Table<VtdSecond> {
        let format = VtdSecond::new(39, 1 << 12 | 1 << 21 | 1 << PAGE_LG2).unwrap();
        let mut table = Table::new(format, &mut self.store).unwrap();
        let iova = IovaRange::with_len(Iova::new(0), 1 << PAGE_LG2).unwrap();
        let mapping = Mapping::new(iova, PhysAddr::new(page << PAGE_LG2), Access::RW).unwrap();
        table.map(&mut self.store, &mapping).unwrap();
        table
    }

    fn attach(&mut self, domain: &Table<VtdSecond>) {
        let (root, width) = (domain.root(), AddressWidth::Bits39);
        let translation = Translation::SecondLevel { root, width };
        let entry = PasidEntry { domain_tag: 2, translation };
        self.pasids.set(&mut self.store, 0, &entry).unwrap();
    }

    fn detach(&mut self) {
        self.pasids.clear(&mut self.store, 0);
    }

    /// As `Hub::drain`.
    fn drain(&mut self) {
        let Shared { epoch, slot, .. } = &*self.shared;
        if self.wrong != Wrong::NoDrain {
            section::publish(epoch, FIRST_EPOCH + 1);
            while !section::has_passed(slot, FIRST_EPOCH + 1) {
                thread::yield_now();
            }
        }
        self.store.reclaim();
    }

    /// The guest uses `page` for something else.
    fn reuse(&self, page: usize) {
        self.shared.pages[page].store(REUSED, Ordering::Relaxed);
    }
}

/// A device's thread: as `Reader`.
struct Reader {
    shared: Arc<Shared>,
    tables: Seen,
    structures: Structures,
    wrong: Wrong,
    cache: Cache,
    seen: u64,
    refused: Option<FaultReason>,
}

impl Reader {
    fn enter(&mut self) {
        let Shared { epoch, slot, .. } = &*self.shared;
        let now = section::enter(epoch, slot, self.seen);
        if now != self.seen {
            let flush = || {
                if self.wrong != Wrong::KeepsTranslations {
                    self.cache.flush();
                }
            };
            section::begin_anew(slot, now, || State::Running, flush);
            self.seen = now;
        }
    }

    /// As `Reader::leaf`.
    fn find(&mut self) -> Result<Leaf, FaultReason> {
        let wanted = Wanted { pasid: None, iova: 0, access: Access::READ };
        if let Some(leaf) = self.cache.find(wanted) {
            return Ok(leaf);
        }
        if let Some(reason) = self.refused {
            return Err(reason);
        }
        let guest: &dyn TableMemory = &NoGuestMemory;
        let tables = Memories::new(&self.tables, guest, PhysAddr::new(BASE));
        let from = Origin { tables, structures: &self.structures, endpoint: ENDPOINT };
        let epoch = if self.wrong == Wrong::KeepsRoutes { FIRST_EPOCH } else { self.seen };
        let found = self.cache.walk(&from, epoch, wanted);
        self.refused = found.err().filter(|_| self.wrong == Wrong::KeepsRefusals);
        found
    }

    fn use_page(&self, leaf: Leaf) {
        let page = usize::try_from(leaf.oa >> PAGE_LG2).unwrap();
        let held = self.shared.pages[page].load(Ordering::Relaxed);
        assert_eq!(held, GOOD, "{PROMISE}: used page {page}");
    }

    /// One section with one access. True if it was allowed.
    fn section(&mut self) -> bool {
        self.enter();
        let found = self.find();
        if let Ok(leaf) = found {
            self.use_page(leaf);
        }
        section::leave(&self.shared.slot);
        found.is_ok()
    }
}

/// Detached while a reader translates; the entry's leaf and the second level serve somebody else, and
/// so does the guest's page.
fn detach(wrong: Wrong) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let mut daemon = Daemon::new(wrong);
        let domain = daemon.domain(1);
        daemon.attach(&domain);
        let mut reader = daemon.begin();
        let reader = thread::spawn(move || {
            reader.section();
            reader.section();
        });
        if wrong == Wrong::DrainsFirst {
            daemon.drain();
        }
        daemon.detach();
        domain.destroy(&mut daemon.store);
        if wrong == Wrong::DrainsFirst {
            daemon.store.reclaim();
        } else {
            daemon.drain();
        }
        daemon.reuse(1);
        let _others = daemon.domain(FOREIGN);
        reader.join().unwrap();
    }
}

#[test]
fn after_a_detach_nothing_leads_to_what_was_reached_before() {
    search(detach(Wrong::Nothing));
}

#[test]
fn a_detach_that_waits_for_nobody_is_caught() {
    assert!(is_caught(detach(Wrong::NoDrain)));
}

#[test]
fn a_detach_that_drains_before_it_withdraws_is_caught() {
    assert!(is_caught(detach(Wrong::DrainsFirst)));
}

#[test]
fn a_reader_that_keeps_its_routes_over_an_epoch_is_caught() {
    assert!(is_caught(detach(Wrong::KeepsRoutes)));
}

#[test]
fn a_reader_that_keeps_its_translations_over_a_detach_is_caught() {
    assert!(is_caught(detach(Wrong::KeepsTranslations)));
}

/// Attached elsewhere, twice: the second time the leaf of the first entry holds the new one.
fn attach_elsewhere(wrong: Wrong) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let mut daemon = Daemon::new(wrong);
        let [first, second] = [1, 2].map(|page| daemon.domain(page));
        daemon.attach(&first);
        let mut reader = daemon.begin();
        let reader = thread::spawn(move || {
            for _ in 0..2 {
                assert!(reader.section(), "{PROMISE}: an access of an attached endpoint faulted");
            }
        });
        daemon.attach(&second);
        daemon.drain();
        daemon.reuse(1);
        daemon.attach(&second);
        reader.join().unwrap();
    }
}

#[test]
fn an_endpoint_that_is_attached_elsewhere_reaches_the_old_or_the_new_and_never_neither() {
    search(attach_elsewhere(Wrong::Nothing));
}

#[test]
fn a_leaf_that_serves_again_before_the_drain_is_caught() {
    assert!(is_caught(attach_elsewhere(Wrong::NoDrain)));
}

#[test]
fn a_pointer_that_does_not_release_the_entry_behind_it_is_caught() {
    assert!(is_caught(attach_elsewhere(Wrong::ReleasesNothing)));
}

#[test]
fn a_lookup_that_follows_a_pointer_without_its_fence_is_caught() {
    assert!(is_caught(attach_elsewhere(Wrong::AcquiresNothing)));
}

/// Attached for the first time, in the middle of a section.
fn first_attach(wrong: Wrong) -> impl Fn() + Sync + Send + std::panic::UnwindSafe + 'static {
    move || {
        let mut daemon = Daemon::new(wrong);
        let mut reader = daemon.begin();
        let reader = thread::spawn(move || {
            reader.enter();
            let _attached_or_not = reader.find();
            let is_told = reader.shared.told.load(Ordering::Acquire) == 1;
            match reader.find() {
                Ok(leaf) => reader.use_page(leaf),
                Err(fault) => assert!(!is_told, "{PROMISE}: attached, and {fault:?}"),
            }
            section::leave(&reader.shared.slot);
        });
        let domain = daemon.domain(1);
        daemon.attach(&domain);
        daemon.shared.told.store(1, Ordering::Release);
        reader.join().unwrap();
    }
}

#[test]
fn what_was_attached_is_found_at_once_also_by_a_section_that_found_nothing() {
    search(first_attach(Wrong::Nothing));
}

#[test]
fn a_reader_that_remembers_that_nothing_is_attached_is_caught() {
    assert!(is_caught(first_attach(Wrong::KeepsRefusals)));
}

//! Every replacement, seen by a request whose loads fall between the stores in every way.

use std::cell::Cell;
use std::collections::BTreeMap;

use viommu_pasid::smmuv3::{ContextControls, ContextDescriptor, Stage1Table, Stage1Tables};
use viommu_pasid::vtd::{AddressWidth, FirstControls, FirstLevel};
use viommu_pasid::{Memories, Pasid, lookup};
use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, ArmStage1, ArmStage2, Format, Granule, Iova, IovaRange, Mapping, OutOfTables, Table,
    TableMemory, VtdFirst, VtdSecond,
};

use super::super::domain::Domain;
use super::*;

const PAGE: u64 = 4096;
const SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;
const BASE: u64 = 1 << 46;
const ENDPOINT: EndpointId = EndpointId::new(0x18);
/// The page that requests name.
const ASKED: u64 = 7;

/// Table memory that remembers what it held: a time is a number of stores.
#[derive(Default)]
struct History {
    words: BTreeMap<u64, Vec<(usize, u64)>>,
    /// Where each store went.
    stores: Vec<u64>,
    pages: u64,
    live: BTreeMap<PhysAddr, u16>,
}

impl History {
    fn now(&self) -> usize {
        self.stores.len()
    }

    fn at(&self, at: PhysAddr, time: usize) -> Option<u64> {
        if !(BASE..BASE + self.pages * PAGE).contains(&at.raw()) {
            return None;
        }
        let known = self.words.get(&at.raw()).and_then(|versions| {
            versions.iter().rev().find(|(since, _)| *since <= time).map(|(_, word)| *word)
        });
        Some(known.unwrap_or(0))
    }

    /// `from`, and the times from then on at which something changed that a request could find at
    /// `from`: what is written to pages of later does not count.
    fn times(&self, from: usize, pages: u64) -> Vec<usize> {
        let old = |at: &u64| *at < BASE + pages * PAGE;
        let later = (from..self.now()).filter(|time| old(&self.stores[*time])).map(|time| time + 1);
        std::iter::once(from).chain(later).collect()
    }
}

impl TableMemory for History {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.at(at, self.now())
    }
}

impl TableStore for History {
    fn store(&mut self, at: PhysAddr, entry: u64) {
        self.stores.push(at.raw());
        let now = self.now();
        self.words.entry(at.raw()).or_default().push((now, entry));
    }

    fn alloc_pages(&mut self, pages: u64) -> Result<PhysAddr, OutOfTables> {
        let first = self.pages.next_multiple_of(pages.next_power_of_two());
        self.pages = first + pages;
        Ok(PhysAddr::new(BASE + first * PAGE))
    }

    fn free_pages(&mut self, _: PhysAddr, _: u64) {}

    fn pages_left(&self) -> u64 {
        1 << 20
    }

    fn live(&self, page: PhysAddr) -> u16 {
        self.live.get(&page).copied().unwrap_or(0)
    }

    fn set_live(&mut self, page: PhysAddr, entries: u16) {
        self.live.insert(page, entries);
    }
}

/// A request on its way: its first loads happen at one time, the rest at a later one.
struct Request<'a> {
    history: &'a History,
    first: usize,
    then: usize,
    /// Loads left before `then`.
    left: Cell<usize>,
    loads: Cell<usize>,
}

impl TableMemory for Request<'_> {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.loads.set(self.loads.get() + 1);
        let left = self.left.get();
        self.left.set(left.saturating_sub(1));
        self.history.at(at, if left > 0 { self.first } else { self.then })
    }
}

struct World {
    layout: Layout,
    store: History,
    guest: HeapStore,
    domains: [Domain; 2],
    bound: FirstTable,
}

fn mapping(page: u64, pages: u64, to: u64) -> Mapping {
    let iova = IovaRange::with_len(Iova::new(page * PAGE), pages * PAGE).unwrap();
    Mapping::new(iova, PhysAddr::new(to * PAGE), Access::RW).unwrap()
}

fn fill<F: Format>(format: F, guest: &mut HeapStore) -> PhysAddr {
    let mut table = Table::new(format, guest).unwrap();
    table.map(guest, &mapping(ASKED, 1, 70)).unwrap();
    table.root()
}

/// Structures without endpoints, and a guest's table.
fn in_vtd(guest: &mut HeapStore) -> (Layout, FirstTable) {
    let second = VtdSecond::new(48, SIZES).unwrap();
    let root = fill(VtdFirst::new(48, SIZES).unwrap(), guest);
    let controls = FirstControls::empty();
    let table = FirstTable::Vtd(FirstLevel { root, five_levels: false, controls });
    (Layout::Vtd(Vtd::new(second, AddressWidth::Bits48)), table)
}

fn in_smmuv3(guest: &mut HeapStore) -> (Layout, FirstTable) {
    let format = ArmStage1::new(Granule::K4, 48, 48).unwrap();
    let below = ArmStage2::new(Granule::K4, 4, 48, 48).unwrap();
    let table = Stage1Table::new(fill(format, guest), format).unwrap();
    let tables = Stage1Tables::lower_only(table);
    let controls = ContextControls::empty();
    let table = FirstTable::Arm(ContextDescriptor { tables, asid: 0, mair: 0, controls });
    (Layout::SmmuV3(SmmuV3::new(format, below)), table)
}

impl World {
    /// Domain n leads page 7 to 107 + 100 n, page 70 to 170 + 100 n, and guests' tables to
    /// themselves. The bound table leads page 7 to 70.
    fn new(vtd: bool) -> Self {
        let mut guest = HeapStore::new(PhysAddr::new(1 << 20), 100);
        let (mut layout, bound) = if vtd { in_vtd(&mut guest) } else { in_smmuv3(&mut guest) };
        let mut store = History::default();
        layout.add(&mut store, ENDPOINT, 8).unwrap();
        let domains = [0, 1].map(|n| {
            let mut domain = Domain::new(&layout.formats(), 2 + n);
            let n = u64::from(n) * 100;
            let all =
                [mapping(ASKED, 1, 107 + n), mapping(70, 1, 170 + n), mapping(0x100, 100, 0x100)];
            for form in [Form::Alone, Form::Below] {
                let mut all = all.iter().copied();
                domain.prepare(&layout.formats(), form, &mut store, &mut all).unwrap();
            }
            domain
        });
        Self { layout, store, guest, domains, bound }
    }

    /// False if the structures cannot say it. A drain has passed since the last change.
    fn lead(&mut self, requester: Requester, kind: Kind) -> bool {
        self.layout.settle(&mut self.store);
        match self.try_lead(requester, kind) {
            Ok(()) => true,
            Err(error) => {
                assert!(matches!(error, LeadError::Inexpressible(_)), "{error}");
                false
            }
        }
    }

    fn try_lead(&mut self, requester: Requester, kind: Kind) -> Result<(), LeadError> {
        let mapped = |n: usize| self.domains[n].mapped(DomainId::new(u32::try_from(n).unwrap()));
        let bound = |below| Lead::Bound { table: self.bound, tag: 9, below };
        let lead = match kind {
            Kind::Blocked => Lead::Blocked,
            Kind::Identity => Lead::Identity,
            Kind::Domain(n) => Lead::Mappings(mapped(n)),
            Kind::Bound(n) => bound(n.map(mapped)),
        };
        let change = self.layout.stage(&mut self.store, &[requester], &lead)?;
        self.layout.commit(&mut self.store, change);
        Ok(())
    }

    /// The page that a request is led to, and how many loads that takes. Its loads from `left` on
    /// happen at `then`, those before at `first`.
    fn ask(
        &self,
        requester: Requester,
        (first, then): (usize, usize),
        left: usize,
    ) -> (Option<u64>, usize) {
        let (left, loads) = (Cell::new(left), Cell::new(0));
        let request = Request { history: &self.store, first, then, left, loads };
        let memories = Memories::new(&request, &self.guest, PhysAddr::new(BASE));
        let structures = self.layout.structures(0).unwrap();
        let route = lookup(&memories, &structures, requester.endpoint, requester.pasid);
        let found = route.ok().and_then(|route| {
            memories.translate(&route, Iova::new(ASKED * PAGE), Access::READ).ok()
        });
        (found.map(|page| page.oa.raw() / PAGE), request.loads.get())
    }
}

impl World {
    /// Asks with every number of loads at the first of two times: what is seen is `allowed`. How
    /// often.
    fn ask_everyhow(
        &self,
        requester: Requester,
        at: (usize, usize),
        allowed: &[Option<u64>],
    ) -> usize {
        let mut left = 0;
        loop {
            let (found, loads) = self.ask(requester, at, left);
            assert!(
                allowed.contains(&found),
                "{requester:?} at {at:?}, {left}: {found:?}, not {allowed:?}"
            );
            left += 1;
            if left > loads {
                return left;
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Blocked,
    Identity,
    Domain(usize),
    Bound(Option<usize>),
}

const KINDS: [Kind; 7] = [
    Kind::Blocked,
    Kind::Identity,
    Kind::Domain(0),
    Kind::Domain(1),
    Kind::Bound(None),
    Kind::Bound(Some(0)),
    Kind::Bound(Some(1)),
];

fn leads(kind: Kind) -> Option<u64> {
    match kind {
        Kind::Blocked => None,
        Kind::Identity => Some(ASKED),
        Kind::Domain(n) => Some(107 + 100 * n as u64),
        Kind::Bound(None) => Some(70),
        Kind::Bound(Some(n)) => Some(170 + 100 * n as u64),
    }
}

/// Plays one replacement; the number of ways in which requests met it.
fn replace(
    vtd: bool,
    (who, from, to): (Requester, Kind, Kind),
    beside: (Requester, Kind),
) -> usize {
    let mut world = World::new(vtd);
    if !world.lead(beside.0, beside.1) || !world.lead(who, from) {
        return 0;
    }
    world.layout.settle(&mut world.store);
    let (start, pages) = (world.store.now(), world.store.pages);
    if !world.lead(who, to) {
        assert_eq!(world.ask(who, (world.store.now(), 0), usize::MAX).0, leads(from));
        return 0;
    }
    let times = world.store.times(start, pages);
    let pairs = times
        .iter()
        .enumerate()
        .flat_map(|(nth, first)| times[nth..].iter().map(move |then| (*first, *then)));
    let mut met = 0;
    for at in pairs {
        met += world.ask_everyhow(who, at, &[leads(from), leads(to)]);
        met += world.ask_everyhow(beside.0, at, &[leads(beside.1)]);
    }
    met
}

/// The replacements of `who` beside another requester that structures can say, but for an SMMU's
/// bypass beside a second level: that ends, and has a test of its own.
fn replacements(vtd: bool, who: Requester, beside: Requester) -> Vec<(Kind, Kind, Kind)> {
    let there = [Kind::Blocked, Kind::Domain(0), Kind::Bound(None), Kind::Bound(Some(0))];
    let all = KINDS.into_iter().flat_map(|from| {
        KINDS.into_iter().flat_map(move |to| there.map(|there| (from, to, there)))
    });
    let can = |kind, who: Requester| !matches!(kind, Kind::Identity) || who.pasid.is_none();
    all.filter(|(from, to, there)| {
        let kinds = [*from, *to, *there];
        let identity = kinds.iter().any(|kind| matches!(kind, Kind::Identity));
        let below = kinds.iter().any(|kind| matches!(kind, Kind::Bound(Some(_))));
        can(*from, who) && can(*to, who) && can(*there, beside) && (vtd || !identity || !below)
    })
    .collect()
}

#[test]
fn a_request_sees_the_old_or_the_new_wherever_its_loads_fall_and_its_neighbours_see_no_change() {
    let tagged = |tag| Requester { endpoint: ENDPOINT, pasid: Pasid::new(tag) };
    let rid = Requester::rid(ENDPOINT);
    // the last two have descriptors in one leaf, and in two
    let pairs =
        [(tagged(5), rid), (rid, tagged(5)), (tagged(5), tagged(6)), (tagged(5), tagged(200))];
    for vtd in [true, false] {
        let mut met = 0;
        for (who, beside) in pairs {
            for (from, to, there) in replacements(vtd, who, beside) {
                met += replace(vtd, (who, from, to), (beside, there));
            }
        }
        assert!(met > 10_000, "{met}");
    }
}

/// Plays replacements that follow each other without a drain, as requests of one batch do, but where
/// the structures ask for one. The number of ways in which requests met them.
fn replace_in_a_batch(vtd: bool, who: Requester, kinds: &[Kind]) -> usize {
    let mut world = World::new(vtd);
    let (mut times, mut allowed) = (vec![world.store.now()], vec![None]);
    let mut met = 0;
    for kind in kinds {
        let (start, pages) = (world.store.now(), world.store.pages);
        let mut led = world.try_lead(who, *kind);
        if led == Err(LeadError::Busy) {
            met += world.ask_in_between(who, &times, &allowed);
            world.layout.settle(&mut world.store);
            (times, allowed) = (vec![world.store.now()], allowed.split_off(allowed.len() - 1));
            led = world.try_lead(who, *kind);
        }
        match led {
            Ok(()) => allowed.push(leads(*kind)),
            Err(error) => assert!(matches!(error, LeadError::Inexpressible(_)), "{error}"),
        }
        times.extend(world.store.times(start, pages));
    }
    met + world.ask_in_between(who, &times, &allowed)
}

impl World {
    /// Asks with loads at each two of `times`.
    fn ask_in_between(&self, who: Requester, times: &[usize], allowed: &[Option<u64>]) -> usize {
        let pairs = times
            .iter()
            .enumerate()
            .flat_map(|(nth, first)| times[nth..].iter().map(move |then| (*first, *then)));
        pairs.map(|at| self.ask_everyhow(who, at, allowed)).sum()
    }
}

#[test]
fn a_request_that_outlasts_several_replacements_of_a_batch_sees_one_of_them() {
    let tagged = Requester { endpoint: ENDPOINT, pasid: Pasid::new(5) };
    let batches = KINDS.into_iter().flat_map(|first| {
        KINDS.into_iter().flat_map(move |second| KINDS.map(|third| [first, second, third]))
    });
    for vtd in [true, false] {
        for who in [tagged, Requester::rid(ENDPOINT)] {
            let met: usize =
                batches.clone().map(|batch| replace_in_a_batch(vtd, who, &batch)).sum();
            assert!(met > 10_000, "{met}");
        }
    }
}

//! What a translation costs: ours, vm-memory's `Iotlb` and a `BTreeMap`, both under an `RwLock`, on
//! the same random accesses in one run.
//!
//! `cargo bench -p viommu-iotlb` prints nanoseconds for each access, the median of all batches.
//! *quiet*: nothing changes; *busy*: another thread maps and unmaps elsewhere all the time, and
//! ours drains after each unmap. One guard, or one lock, for each batch of accesses.
#![expect(clippy::unwrap_used, reason = "a bench")]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, RwLock};
use std::time::{Duration, Instant};

use viommu_iotlb::{Device, Hub, HubConfig, Withdrawn};
use viommu_pasid::vtd::{AddressWidth, PasidEntry, PasidTable, RootTable, Translation};
use viommu_pasid::{EndpointId, Requester, Structures};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr, Table, VtdSecond};
use vm_memory::iommu::Iotlb;
use vm_memory::{GuestAddress, Permissions};

const PAGE: u64 = 4096;

/// Accesses of a round; the same for all.
const ACCESSES: usize = 1 << 16;

/// Accesses under one guard or lock.
const BATCH: usize = 64;

/// Where the mappings are, and where the busy one maps.
const BASE: u64 = 0x10_0000_0000;
const ELSEWHERE: u64 = 0x7000_0000_0000;

const ENDPOINT: EndpointId = EndpointId::new(8);

/// Where page `index` leads. Neighbours lead far from each other, so that nothing can be merged.
const fn output(index: u64, pages: u64) -> u64 {
    (index.wrapping_mul(0x9e37_79b1) & (pages - 1)) * 2 * PAGE
}

/// A fixed sequence of addresses in `pages` pages.
fn accesses(pages: u64) -> Vec<u64> {
    let mut state = 0x1234_5678_9abc_def1u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..ACCESSES).map(|_| BASE + (next() % pages) * PAGE + next() % 2048).collect()
}

/// Translates a batch of accesses of some length.
type Reader<'s> = Box<dyn FnMut(&[u64], u64) -> u64 + Send + 's>;

/// Something that translates.
trait Subject: Sync {
    /// A thread's own way to translate.
    fn reader(&self) -> Reader<'_>;
    /// Maps a page elsewhere and unmaps it again.
    fn change(&self);
}

struct World {
    hub: Hub,
    table: Table<VtdSecond>,
}

impl World {
    fn new() -> Self {
        let mut hub = Hub::new(HubConfig::default()).unwrap();
        let format = VtdSecond::new(48, 1 << 12 | 1 << 21 | 1 << 30).unwrap();
        let table = Table::new(format, hub.region_mut()).unwrap();
        Self { hub, table }
    }

    fn map(&mut self, iova: u64, oa: u64) {
        let range = IovaRange::with_len(Iova::new(iova), PAGE).unwrap();
        let mapping = Mapping::new(range, PhysAddr::new(oa), Access::RW).unwrap();
        self.table.map(self.hub.region_mut(), &mapping).unwrap();
    }

    /// Attaches the endpoint and connects to it.
    fn device(&mut self) -> Device {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let (store, root) = (self.hub.region_mut(), self.table.root());
        let translation = Translation::SecondLevel { root, width: AddressWidth::Bits48 };
        let pasids = PasidTable::new(store, 0).unwrap();
        pasids.set(store, 0, &PasidEntry { domain_tag: 1, translation }).unwrap();
        let root = RootTable::new(store).unwrap();
        root.set_context(store, ENDPOINT.bdf(), &pasids.context()).unwrap();
        self.hub.listen(ENDPOINT, Structures::Vtd { root: root.root() }, 0, &socket).unwrap();
        let (done, device) = channel();
        std::thread::spawn(move || done.send(Device::connect(socket).unwrap()).unwrap());
        loop {
            self.hub.dispatch(&mut |_| {});
            if let Ok(device) = device.recv_timeout(Duration::from_millis(1)) {
                return device;
            }
        }
    }
}

struct Ours {
    device: Device,
    world: Mutex<World>,
}

impl Ours {
    fn new(pages: u64) -> Self {
        let mut world = World::new();
        (0..pages).for_each(|n| world.map(BASE + n * PAGE, output(n, pages)));
        Self { device: world.device(), world: Mutex::new(world) }
    }
}

/// A batch of accesses under one guard.
fn translate(reader: &viommu_iotlb::Reader, batch: &[u64], len: u64) -> u64 {
    let guard = reader.enter().unwrap();
    let mut sum = 0;
    for iova in batch {
        for piece in guard.translate(None, Iova::new(*iova), len, Access::READ) {
            sum ^= piece.map_or(0, |piece| piece.gpa.raw());
        }
    }
    sum
}

impl Subject for Ours {
    fn reader(&self) -> Reader<'_> {
        let reader = self.device.reader().unwrap();
        Box::new(move |batch, len| translate(&reader, batch, len))
    }

    fn change(&self) {
        let mut world = self.world.lock().unwrap();
        world.map(ELSEWHERE, PAGE);
        let range = IovaRange::with_len(Iova::new(ELSEWHERE), PAGE).unwrap();
        let World { hub, table } = &mut *world;
        table.unmap(hub.region_mut(), range).unwrap();
        hub.withdraw(Withdrawn::Range { requester: Requester::rid(ENDPOINT), range });
        hub.drain();
    }
}

struct VmMemory(RwLock<Iotlb>);

impl VmMemory {
    fn new(pages: u64) -> Self {
        let mut iotlb = Iotlb::new();
        (0..pages).for_each(|n| Self::map(&mut iotlb, BASE + n * PAGE, output(n, pages)));
        Self(RwLock::new(iotlb))
    }

    fn map(iotlb: &mut Iotlb, iova: u64, oa: u64) {
        let (iova, gpa) = (GuestAddress(iova), GuestAddress(oa));
        iotlb.set_mapping(iova, gpa, 4096, Permissions::ReadWrite).unwrap();
    }
}

impl Subject for VmMemory {
    fn reader(&self) -> Reader<'_> {
        Box::new(|batch, len| {
            let (iotlb, len) = (self.0.read().unwrap(), usize::try_from(len).unwrap());
            let mut sum = 0;
            for iova in batch {
                let found = Iotlb::lookup(&*iotlb, GuestAddress(*iova), len, Permissions::Read);
                sum ^= found.map_or(0, |pieces| pieces.fold(0, |sum, piece| sum ^ piece.base.0));
            }
            sum
        })
    }

    fn change(&self) {
        let mut iotlb = self.0.write().unwrap();
        Self::map(&mut iotlb, ELSEWHERE, PAGE);
        iotlb.invalidate_mapping(GuestAddress(ELSEWHERE), 4096);
    }
}

/// From a mapping's first address to where it leads.
struct Tree(RwLock<BTreeMap<u64, u64>>);

impl Tree {
    fn new(pages: u64) -> Self {
        Self(RwLock::new((0..pages).map(|n| (BASE + n * PAGE, output(n, pages))).collect()))
    }
}

impl Subject for Tree {
    fn reader(&self) -> Reader<'_> {
        Box::new(|batch, len| {
            let tree = self.0.read().unwrap();
            let mut sum = 0;
            for iova in batch {
                let first = tree.range(..=*iova).next_back().map_or(*iova, |(start, _)| *start);
                for (start, oa) in tree.range(first..*iova + len) {
                    sum ^= oa + iova.saturating_sub(*start);
                }
            }
            sum
        })
    }

    fn change(&self) {
        let mut tree = self.0.write().unwrap();
        tree.insert(ELSEWHERE, PAGE);
        tree.remove(&ELSEWHERE);
    }
}

/// How a run is made.
#[derive(Clone, Copy)]
struct Run {
    len: u64,
    threads: usize,
    busy: bool,
    rounds: usize,
}

/// Median nanoseconds of an access; a batch is long enough for its clock not to matter.
fn measure(subject: &dyn Subject, accesses: &[u64], run: Run) -> f64 {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if run.busy {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    subject.change();
                }
            });
        }
        let threads: Vec<_> = (0..run.threads)
            .map(|_| scope.spawn(|| round_times(&mut subject.reader(), accesses, run)))
            .collect();
        let times: Vec<f64> = threads.into_iter().flat_map(|t| t.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        median(times)
    })
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The times of single batches: whoever interrupts us makes few of them long.
fn round_times(reader: &mut Reader<'_>, accesses: &[u64], run: Run) -> Vec<f64> {
    // a long access is many pages: fewer of them
    let batches = if run.len > PAGE { ACCESSES / BATCH / 16 } else { ACCESSES / BATCH };
    let mut times = Vec::new();
    // the first round warms up
    for round in 0..=run.rounds {
        for batch in accesses.chunks_exact(BATCH).take(batches) {
            let start = Instant::now();
            black_box(reader(batch, run.len));
            if round > 0 {
                times.push(start.elapsed().as_secs_f64() * 1e9 / BATCH as f64);
            }
        }
    }
    times
}

/// Median nanoseconds of `what`, which is done many times in a row.
fn median_of(rounds: usize, mut what: impl FnMut()) -> f64 {
    const IN_A_ROW: u32 = 1000;
    let times = (0..rounds * 100).map(|_| {
        let start = Instant::now();
        (0..IN_A_ROW).for_each(|_| what());
        start.elapsed().as_secs_f64() * 1e9 / f64::from(IN_A_ROW)
    });
    median(times.collect())
}

/// What a section costs, a hit on one page inside it, and a change with a reader connected.
fn print_section(rounds: usize) {
    let ours = Ours::new(64);
    let reader = ours.device.reader().unwrap();
    let section = median_of(rounds, || _ = black_box(reader.enter().unwrap()));
    println!("enter and leave: {section:.1} ns");
    let guard = reader.enter().unwrap();
    let hit = median_of(rounds, || {
        let iova = Iova::new(black_box(BASE + 64));
        black_box(guard.translate(None, iova, black_box(64), Access::READ).next());
    });
    println!("hit on one page: {hit:.1} ns");
    drop(guard);
    println!("map, unmap and drain: {:.0} ns", median_of(rounds, || ours.change()));
}

/// What a miss costs: of pages that share their lowest table, and of pages that share none. The reader
/// forgets all that it knows before each batch.
fn print_misses(rounds: usize) {
    for (name, stride) in
        [("beside a page that was found", PAGE), ("with a whole walk", 512 * PAGE)]
    {
        let mut world = World::new();
        let batch: Vec<u64> = (0..BATCH as u64).map(|n| BASE + n * stride).collect();
        batch.iter().zip(0..).for_each(|(iova, n)| world.map(*iova, output(n, BATCH as u64)));
        let device = world.device();
        let reader = device.reader().unwrap();
        let times = (0..rounds * 1000).map(|_| {
            world.hub.withdraw(Withdrawn::Everything);
            world.hub.drain();
            let start = Instant::now();
            black_box(translate(&reader, &batch, 64));
            start.elapsed().as_secs_f64() * 1e9 / BATCH as f64
        });
        println!("miss {name}: {:.1} ns", median(times.collect()));
    }
}

fn main() {
    // `cargo test --benches` has every part of it run, once and briefly
    let rounds = if std::env::args().any(|argument| argument == "--bench") { 9 } else { 1 };
    print_section(rounds);
    print_misses(rounds);
    println!("\nns for each access {:>28} {:>11} {:>11}", "ours", "vm-memory", "BTreeMap");
    for pages in [64, 2 << 10, 64 << 10, 1 << 20] {
        let accesses = accesses(pages);
        let subjects: [Box<dyn Subject>; 3] = [
            Box::new(Ours::new(pages)),
            Box::new(VmMemory::new(pages)),
            Box::new(Tree::new(pages)),
        ];
        // one reader alone, then two beside each other
        let mut ours = Vec::new();
        for (len, threads, busy) in
            [(1500, 1, false), (1500, 2, false), (1500, 1, true), (64 << 10, 1, false)]
        {
            let run = Run { len, threads, busy, rounds };
            let state = if busy { "busy" } else { "quiet" };
            print!("{pages:>8} pages {len:>6} B {threads} x {state:<6}");
            for (place, subject) in subjects.iter().enumerate() {
                let time = measure(&**subject, &accesses, run);
                print!(" {time:>11.1}");
                if place == 0 {
                    ours.push(time);
                }
            }
            println!();
        }
        if let [one, two, ..] = *ours {
            println!(
                "{pages:>8} pages   two of our readers do {:.2} x one's work",
                2.0 * one / two
            );
        }
    }
}

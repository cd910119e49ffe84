//! What a translation costs: ours, vm-memory's `Iotlb` and a `BTreeMap`, both under an `RwLock`, on
//! the same random accesses in one run.
//!
//! `cargo bench -p viommu-iotlb` prints nanoseconds for each access, the median of all batches.
//! *quiet*: nothing changes; *busy*: pages elsewhere are mapped and unmapped all the time, by another
//! process for ours, which drains after each unmap, and by another thread for what only threads can
//! share. One guard, or one lock, for each batch of accesses. More threads than processors want to run
//! then: a priority that lets one of them keep its processor (`chrt -f`) has the others wait for ever.
#![expect(clippy::unwrap_used, reason = "a bench")]

mod ours;
mod peers;
mod together;

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ours::{Apart, World, translate};
use peers::{Tree, VmMemory};
use viommu_iotlb::Withdrawn;
use viommu_pgtable::{Access, Iova};

const PAGE: u64 = 4096;

/// Accesses of a round; the same for all.
const ACCESSES: usize = 1 << 16;

/// Accesses under one guard or lock.
const BATCH: usize = 64;

/// Where the mappings are, and where the busy one maps.
const BASE: u64 = 0x10_0000_0000;
const ELSEWHERE: u64 = 0x7000_0000_0000;

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
    /// Maps a page elsewhere and unmaps it again, over and over, until `stop` is true.
    fn change_until(&self, stop: &AtomicBool);
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
            scope.spawn(|| subject.change_until(&stop));
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

/// The times of all batches.
fn round_times(reader: &mut Reader<'_>, accesses: &[u64], run: Run) -> Vec<f64> {
    // a long access is many pages: fewer of them
    let fewer = if run.len > PAGE { 16 } else { 1 };
    let accesses = accesses.get(..accesses.len() / fewer).unwrap_or_default();
    // the first round warms up
    let rounds = (0..=run.rounds).map(|_| batch_times(reader, accesses, run.len));
    rounds.skip(1).flatten().collect()
}

/// The times of single batches: whoever interrupts us makes few of them long. Nanoseconds for each access.
fn batch_times(reader: &mut Reader<'_>, accesses: &[u64], len: u64) -> Vec<f64> {
    let time = |batch| {
        let start = Instant::now();
        black_box(reader(batch, len));
        start.elapsed().as_secs_f64() * 1e9 / BATCH as f64
    };
    accesses.chunks_exact(BATCH).map(time).collect()
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
    let mut world = World::with_pages(64);
    let device = world.device();
    let reader = device.reader().unwrap();
    let section = median_of(rounds, || _ = black_box(reader.enter().unwrap()));
    println!("enter and leave: {section:.1} ns");
    let guard = reader.enter().unwrap();
    let hit = median_of(rounds, || {
        let iova = Iova::new(black_box(BASE + 64));
        black_box(guard.translate(None, iova, black_box(64), Access::READ).next());
    });
    println!("hit on one page: {hit:.1} ns");
    drop(guard);
    println!("map, unmap and drain: {:.0} ns", median_of(rounds, || world.change()));
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
            world.withdraw(Withdrawn::Everything);
            let start = Instant::now();
            black_box(translate(&reader, &batch, 64));
            start.elapsed().as_secs_f64() * 1e9 / BATCH as f64
        });
        println!("miss {name}: {:.1} ns", median(times.collect()));
    }
}

fn main() {
    if let Some(pages) = std::env::var_os(ours::PAGES) {
        return ours::daemon(pages.to_str().unwrap().parse().unwrap());
    }
    // `cargo test --benches` has every part of it run, once and briefly
    let rounds = if std::env::args().any(|argument| argument == "--bench") { 9 } else { 1 };
    print_section(rounds);
    print_misses(rounds);
    println!("\nns for each access {:>28} {:>11} {:>11}", "ours", "vm-memory", "BTreeMap");
    for pages in [64, 2 << 10, 64 << 10, 1 << 20] {
        let accesses = accesses(pages);
        let subjects: [Box<dyn Subject>; 3] = [
            Box::new(Apart::new(pages)),
            Box::new(VmMemory::new(pages)),
            Box::new(Tree::new(pages)),
        ];
        for (len, threads, busy) in
            [(1500, 1, false), (1500, 2, false), (1500, 1, true), (64 << 10, 1, false)]
        {
            let run = Run { len, threads, busy, rounds };
            let state = if busy { "busy" } else { "quiet" };
            print!("{pages:>8} pages {len:>6} B {threads} x {state:<6}");
            for subject in &subjects {
                print!(" {:>11.1}", measure(&**subject, &accesses, run));
            }
            println!();
        }
        let [ours, ..] = &subjects;
        let [low, middle, high] = together::two_to_one(&**ours, &accesses, rounds);
        println!(
            "{pages:>8} pages   two of our readers do {middle:.2} x one's work ({low:.2} to {high:.2})"
        );
    }
}

//! The stress: readers in other processes look at marks in the pages that they reach, while the
//! daemon maps and unmaps.
//!
//! `STRESS_SECONDS=60 cargo test -p viommu-iotlb --test processes marks` runs for a minute.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use viommu_iotlb::{Device, StuckPolicy};
use viommu_pgtable::{Access, Iova};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

use crate::device::say;
use crate::support::{Daemon, PATIENCE, World};
use crate::tests::{Process, daemon};

/// Pages whose mappings come and go.
const PAGES: u64 = 16;

/// The IOVA of page `page`: always two beside each other in a table of their own, which becomes empty
/// often and is used again for others.
const fn iova(page: u64) -> u64 {
    0x10_0000 + (page / 2) * 0x20_0000 + (page % 2) * 0x1000
}

/// The mark of a page that may be read; each page has its own, so that a foreign one is noticed.
const fn owned(page: u64) -> u64 {
    page + 1
}

/// A mark that says: withdrawn, and the daemon was told that nobody reads any more.
const STALE: u64 = u64::MAX;

/// Turns that the run which must fail leaves the drain out for: with none at all its table memory would
/// run out, for only a drain gives pages back.
const TURNS_WITHOUT: u64 = 1024;

/// How long readers and the daemon work against each other.
fn stress() -> Duration {
    let seconds = std::env::var("STRESS_SECONDS").map_or(2, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

/// Where the marks are: a file beside the socket, one page for each page of IOVAs.
fn path(socket: &Path) -> PathBuf {
    socket.with_file_name("marks")
}

fn open(socket: &Path) -> GuestMemoryMmap {
    let file = std::fs::File::options().read(true).write(true).open(path(socket)).unwrap();
    let bytes = usize::try_from(PAGES << 12).unwrap();
    let file = FileOffset::new(file, 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), bytes, Some(file))]).unwrap()
}

/// The device: reads through translations and looks at the marks.
pub(crate) fn read(socket: &Path) {
    let marks = open(socket);
    let device = Device::connect(socket).unwrap();
    let reader = device.reader().unwrap();
    say("ready");
    let until = Instant::now() + stress();
    let (mut seen, mut page) = (0u64, 0);
    while Instant::now() < until {
        let guard = reader.enter().unwrap();
        for _ in 0..8 {
            page = (page + 1) % PAGES;
            let iova = Iova::new(iova(page));
            let Some(Ok(piece)) = guard.translate(None, iova, 8, Access::READ).next() else {
                continue;
            };
            let at = GuestAddress(piece.gpa.raw());
            for _ in 0..4 {
                let mark: u64 = marks.load(at, Ordering::Acquire).unwrap();
                assert_eq!(mark, owned(page), "stale or foreign access to page {page}");
                seen += 1;
            }
        }
    }
    say(&format!("read {seen}"));
}

/// The daemon: maps and unmaps pages in a fixed disorder, and marks them. Returns the turns it
/// took.
fn change(world: &mut World, marks: &GuestMemoryMmap, drains: bool) -> u64 {
    let mark = |page: u64, mark: u64| {
        marks.store(mark, GuestAddress(page << 12), Ordering::Release).unwrap();
    };
    (0..PAGES).for_each(|page| mark(page, STALE));
    let (mut turns, mut mapped) = (0u64, BTreeSet::new());
    let until = Instant::now() + stress();
    while Instant::now() < until {
        let page = turns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
        let iova = iova(page);
        if mapped.remove(&page) {
            world.unmap(iova, 0x1000);
            if drains {
                assert_eq!(world.hub.drain().killed, 0);
            } else if turns.is_multiple_of(TURNS_WITHOUT) {
                world.hub.drain();
            }
            mark(page, STALE);
        } else {
            mark(page, owned(page));
            world.map(iova, 0x1000, page << 12, Access::READ);
            mapped.insert(page);
        }
        turns += 1;
    }
    turns
}

/// Runs two readers against a daemon. Returns the daemon's turns, and what the readers said at the
/// end.
fn run(drains: bool) -> (u64, [String; 2]) {
    let daemon: Daemon = daemon(PATIENCE, StuckPolicy::Kill);
    std::fs::File::create(path(&daemon.socket)).unwrap().set_len(PAGES << 12).unwrap();
    let marks = open(&daemon.socket);
    let mut readers = [(); 2].map(|()| Process::start("reads-marks", &daemon));
    let turns = daemon.begin(move |world| change(world, &marks, drains));
    let turns = turns.recv_timeout(stress() + PATIENCE).unwrap();
    (turns, readers.each_mut().map(Process::hear))
}

pub(crate) fn no_stale_access() {
    let (turns, said) = run(true);
    for said in said {
        let read: u64 = said.strip_prefix("read ").unwrap_or("0").parse().unwrap();
        assert!(read > 1000, "a reader ended with {said:?}");
    }
    assert!(turns > 1000, "{turns} turns only");
}

/// The same run must find what it looks for.
pub(crate) fn without_drains() {
    let (_, said) = run(false);
    assert!(said.iter().any(String::is_empty), "no reader met a stale page: {said:?}");
}

//! A user-space driver in a guest: DMA through mappings made page by page, and what happens without.
//!
//! ```text
//! vfio-dma GROUP ADDRESS refused|allowed
//! ```
//! GROUP is the number of the DMA engine's IOMMU group, ADDRESS its PCI address; it is bound to vfio-pci. The
//! third word is what is expected of reads of a write-only page: not every kind of page table can refuse them
//! (virtio 1.4, 5.13.6.6.2). Each check is one line, `check NAME: ok WHAT` or `check NAME: FAIL WHY`. The
//! exit status is 0 when all checks could be made, whatever came of them.

mod container;
mod engine;
mod sys;

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use container::{Container, Rights};
use engine::{Ended, Engine};
use sys::{PAGE_BYTES, Page};
use viommu_guest::pattern;

/// Where the source and the destination of the copies are for the device. Nothing of the guest's
/// memory lies at the destination's number, so an address that is not translated shows.
const SOURCE: u64 = 0x1000_0000;
const DESTINATION: u64 = 0xff_4000_0000;

/// Pages of one buffer. Each is a mapping of its own.
const PAGES: usize = 4;
const PAGE: u64 = PAGE_BYTES as u64;
const LENGTH: u64 = PAGES as u64 * PAGE;

/// Pairs of map and unmap whose time is told.
const PAIRS: u32 = 200;

/// A check and what it does; its text says what was seen.
type Check = (&'static str, fn(&Bench) -> io::Result<String>);

/// Mappings that are left to the end of the program.
const LEFT: u64 = 256;

/// In this order: each but the last leaves everything unmapped.
const CHECKS: &[Check] = &[
    ("copy", mapped_pages_are_copied),
    ("unmapped", what_was_unmapped_is_out_of_reach),
    ("unmapped-source", an_unmapped_source_is_not_read),
    ("straddle", a_copy_stops_where_the_mapping_ends),
    ("read-only", a_read_only_page_is_not_written),
    ("write-only", a_write_only_page_is_not_read_where_that_can_be_said),
    ("moved", a_page_mapped_anew_is_reached_where_it_is_now),
    ("pairs", mapping_and_unmapping_keeps_working),
    ("left", what_stays_mapped_is_the_kernels_to_end),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (group, address, refused) = match words.as_slice() {
        [group, address, "refused"] => (*group, *address, true),
        [group, address, "allowed"] => (*group, *address, false),
        _ => {
            eprintln!("usage: vfio-dma GROUP ADDRESS refused|allowed");
            return ExitCode::from(2);
        }
    };
    let bench = match Bench::new(group, address, refused) {
        Ok(bench) => bench,
        Err(error) => {
            println!("check open: FAIL {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("check open: ok group {group}, {address}, ends told by {}", bench.engine.tells_by());
    for (name, check) in CHECKS {
        match check(&bench) {
            Ok(seen) => println!("check {name}: ok {seen}"),
            Err(error) => println!("check {name}: FAIL {error}"),
        }
    }
    ExitCode::SUCCESS
}

/// The engine and two buffers.
#[derive(Debug)]
struct Bench {
    container: Container,
    engine: Engine,
    source: Vec<Page>,
    destination: Vec<Page>,
    /// Whether reads of write-only pages are to be refused.
    write_only: bool,
}

impl Bench {
    fn new(group: &str, address: &str, write_only: bool) -> io::Result<Self> {
        let container = Container::open(group)?;
        println!("fact page-sizes: {:#x}", container.page_sizes()?);
        let engine = Engine::open(&container, address)?;
        let buffer = || (0..PAGES).map(|_| Page::new()).collect::<io::Result<Vec<Page>>>();
        let (source, destination) = (buffer()?, buffer()?);
        Ok(Self { container, engine, source, destination, write_only })
    }

    /// Fills the source anew and the destination with something else.
    fn fill(&self, seed: u64) {
        for (page, at) in self.source.iter().zip((0..).step_by(PAGE_BYTES)) {
            let mut content = [0; PAGE_BYTES];
            pattern::fill(seed, at, &mut content);
            page.write(&content);
        }
        for page in &self.destination {
            page.write(&[0xee; PAGE_BYTES]);
        }
    }

    /// The first `pages` pages of the destination hold the source's content, the others nothing.
    fn copied(&self, seed: u64, pages: usize) -> io::Result<()> {
        for (index, page) in self.destination.iter().enumerate() {
            let (content, at) = (page.read(), index as u64 * PAGE);
            let right = if index < pages {
                pattern::first_difference(seed, at, &content).is_none()
            } else {
                content == [0xee; PAGE_BYTES]
            };
            if !right {
                return Err(io::Error::other(format!("page {index} has another content")));
            }
        }
        Ok(())
    }

    fn map(&self, at: u64, pages: &[Page], rights: Rights) -> io::Result<()> {
        for (page, offset) in pages.iter().zip((0..).step_by(PAGE_BYTES)) {
            self.container.map(at + offset, page, rights)?;
        }
        Ok(())
    }

    fn unmap(&self, at: u64) -> io::Result<()> {
        self.container.unmap(at, LENGTH)
    }

    /// Copies everything and compares how it ended.
    fn copy(&self, expected: Ended) -> io::Result<()> {
        let ended = self.engine.copy(SOURCE, DESTINATION, LENGTH)?;
        if ended == expected {
            return Ok(());
        }
        Err(io::Error::other(format!("the copy ended {ended:x?}, not {expected:x?}")))
    }
}

fn mapped_pages_are_copied(bench: &Bench) -> io::Result<String> {
    bench.fill(1);
    bench.map(SOURCE, &bench.source, Rights::Read)?;
    bench.map(DESTINATION, &bench.destination, Rights::Write)?;
    bench.copy(Ended::Done)?;
    bench.copied(1, PAGES)?;
    bench.unmap(SOURCE)?;
    bench.unmap(DESTINATION)?;
    Ok(format!("{LENGTH} bytes in {PAGES} mappings each way"))
}

fn what_was_unmapped_is_out_of_reach(bench: &Bench) -> io::Result<String> {
    bench.fill(2);
    bench.map(SOURCE, &bench.source, Rights::ReadWrite)?;
    bench.map(DESTINATION, &bench.destination, Rights::ReadWrite)?;
    bench.copy(Ended::Done)?;
    bench.unmap(DESTINATION)?;
    bench.fill(3);
    bench.copy(Ended::Fault { address: DESTINATION, write: true })?;
    bench.copied(3, 0)?;
    bench.unmap(SOURCE)?;
    Ok(format!("write to {DESTINATION:#x} blocked, memory untouched"))
}

fn an_unmapped_source_is_not_read(bench: &Bench) -> io::Result<String> {
    bench.fill(4);
    bench.map(DESTINATION, &bench.destination, Rights::ReadWrite)?;
    bench.copy(Ended::Fault { address: SOURCE, write: false })?;
    bench.copied(4, 0)?;
    bench.unmap(DESTINATION)?;
    Ok(format!("read from {SOURCE:#x} blocked"))
}

fn a_copy_stops_where_the_mapping_ends(bench: &Bench) -> io::Result<String> {
    bench.fill(5);
    bench.map(SOURCE, &bench.source, Rights::Read)?;
    let (first_pages, _) = bench.destination.split_at(2);
    bench.map(DESTINATION, first_pages, Rights::Write)?;
    let end = DESTINATION + 2 * PAGE;
    bench.copy(Ended::Fault { address: end, write: true })?;
    bench.copied(5, 2)?;
    bench.unmap(SOURCE)?;
    bench.container.unmap(DESTINATION, 2 * PAGE)?;
    Ok(format!("two pages copied, then blocked at {end:#x}"))
}

fn a_read_only_page_is_not_written(bench: &Bench) -> io::Result<String> {
    bench.fill(6);
    bench.map(SOURCE, &bench.source, Rights::Read)?;
    bench.map(DESTINATION, &bench.destination, Rights::Read)?;
    bench.copy(Ended::Fault { address: DESTINATION, write: true })?;
    bench.copied(6, 0)?;
    bench.unmap(SOURCE)?;
    bench.unmap(DESTINATION)?;
    Ok("write refused, memory untouched".to_owned())
}

fn a_write_only_page_is_not_read_where_that_can_be_said(bench: &Bench) -> io::Result<String> {
    bench.fill(7);
    bench.map(SOURCE, &bench.source, Rights::Write)?;
    bench.map(DESTINATION, &bench.destination, Rights::Write)?;
    let (expected, pages, seen) = if bench.write_only {
        (Ended::Fault { address: SOURCE, write: false }, 0, "read refused")
    } else {
        (Ended::Done, PAGES, "read allowed, as these tables cannot refuse it")
    };
    bench.copy(expected)?;
    bench.copied(7, pages)?;
    bench.unmap(SOURCE)?;
    bench.unmap(DESTINATION)?;
    Ok(seen.to_owned())
}

/// The same addresses lead to other pages: nothing remembers the old ones.
fn a_page_mapped_anew_is_reached_where_it_is_now(bench: &Bench) -> io::Result<String> {
    bench.map(SOURCE, &bench.destination, Rights::ReadWrite)?;
    bench.map(DESTINATION, &bench.source, Rights::ReadWrite)?;
    bench.copy(Ended::Done)?;
    bench.unmap(SOURCE)?;
    bench.unmap(DESTINATION)?;
    bench.fill(8);
    bench.map(SOURCE, &bench.source, Rights::Read)?;
    bench.map(DESTINATION, &bench.destination, Rights::Write)?;
    bench.copy(Ended::Done)?;
    bench.copied(8, PAGES)?;
    bench.unmap(SOURCE)?;
    bench.unmap(DESTINATION)?;
    Ok("the new pages were used".to_owned())
}

fn mapping_and_unmapping_keeps_working(bench: &Bench) -> io::Result<String> {
    let (first, _) = bench.source.split_at(1);
    let began = Instant::now();
    for _ in 0..PAIRS {
        bench.map(SOURCE, first, Rights::ReadWrite)?;
        bench.container.unmap(SOURCE, PAGE)?;
    }
    let each = began.elapsed().as_micros() / u128::from(PAIRS);
    Ok(format!("{PAIRS} pairs of map and unmap, {each} us each"))
}

/// The domain ends with this program, and takes what is mapped with it.
fn what_stays_mapped_is_the_kernels_to_end(bench: &Bench) -> io::Result<String> {
    let (first, _) = bench.source.split_at(1);
    for index in 0..LEFT {
        bench.map(SOURCE + index * PAGE, first, Rights::Read)?;
    }
    Ok(format!("{LEFT} mappings"))
}

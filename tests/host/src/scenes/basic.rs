//! What holds for every IOMMU: mapped memory is reached, everything else is refused, and what is
//! attached is replaced in the middle of DMA.

use std::fs;
use std::io;

use viommu_client::{Property, Rights};
use viommu_guest::pattern;

use super::load;
use crate::bench::{Bench, EDU, HERE, ONE, OPTIONS, TEST, TEST_AT, THERE, last_page_is_reached};
use crate::edu::BUFFER_BYTES;
use crate::pci::Function;
use crate::ram::PAGE;
use crate::{check, expect};

/// The played guest's interrupts come where no host of these has its own: what is told of the host's is the
/// host's word.
const WINDOW: &[&str] = &["--msi-window", "0x10000000-0x1000ffff"];

pub(super) fn play(replacement: load::Replacement) -> io::Result<()> {
    let mut bench = Bench::open(&[OPTIONS, WINDOW].concat())?;
    check("serve", Ok("all functions opened by the daemon".to_owned()));
    check("probe", reserved_ranges_are_told(&mut bench));
    check("width", the_last_page_that_is_told_can_be_mapped(&mut bench));
    check("unattached", what_is_not_attached_reaches_nothing(&bench));
    check("write", a_mapped_page_is_written(&mut bench));
    check("copy", content_is_copied_through_two_mappings(&mut bench));
    check("read-only", a_read_only_page_is_not_written(&mut bench));
    check("unmapped", what_was_unmapped_is_out_of_reach(&mut bench));
    check("detached", what_was_detached_is_out_of_reach(&mut bench));
    check("replaced", load::domains_are_replaced(&mut bench, replacement));
    let Bench { daemon, driver, .. } = bench;
    drop(driver);
    check("end", daemon.end().map(|_| "status 0".to_owned()));
    Ok(())
}

/// What the host cannot map, as its kernel says it in sysfs, is told.
fn reserved_ranges_are_told(bench: &mut Bench) -> io::Result<String> {
    let known = fs::read_to_string(Function::at(TEST_AT).file("iommu_group/reserved_regions"))?;
    let known: Vec<_> = known.lines().filter_map(binding).collect();
    let told = bench.driver.probe(TEST).map_err(io::Error::other)?;
    let covers = |property: &Property, (first, last): &(u64, u64)| match property {
        Property::ReservedMemory { iovas, .. } => iovas.contains(first) && iovas.contains(last),
        _ => false,
    };
    let untold = known.iter().find(|range| !told.iter().any(|property| covers(property, range)));
    expect("what is not told", &untold, &None)?;
    expect("the host reserves nothing", &known.is_empty(), &false)?;
    let known: Vec<_> = known.iter().map(|(first, last)| format!("{first:#x}-{last:#x}")).collect();
    Ok(format!("reserved {}, and told", known.join(", ")))
}

/// First and last address of a line of `reserved_regions`, but for those that bind no assigned device.
fn binding(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split_whitespace();
    let mut number = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let range = (number()?, number()?);
    (words.next()? != "direct-relaxable").then_some(range)
}

fn the_last_page_that_is_told_can_be_mapped(bench: &mut Bench) -> io::Result<String> {
    bench.attach(ONE, TEST)?;
    let told = last_page_is_reached(&mut bench.driver, &bench.test, &bench.ram)?;
    bench.driver.detach(ONE, TEST).map_err(io::Error::other)?;
    Ok(told)
}

fn what_is_not_attached_reaches_nothing(bench: &Bench) -> io::Result<String> {
    let page = bench.ram.page()?;
    bench.is_refused(page, page)?;
    Ok(format!("a write to {page:#x}, unmapped, refused"))
}

fn a_mapped_page_is_written(bench: &mut Bench) -> io::Result<String> {
    let page = bench.ram.page()?;
    bench.attach(ONE, TEST)?;
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    bench.reaches(HERE, page)?;
    bench.unmap(ONE, HERE)?;
    Ok(format!("IOVA {HERE:#x} led to {page:#x}"))
}

fn content_is_copied_through_two_mappings(bench: &mut Bench) -> io::Result<String> {
    let (from, to) = (bench.ram.page()?, bench.ram.page()?);
    let mut content = vec![0; BUFFER_BYTES as usize];
    pattern::fill(1, 0, &mut content);
    let other = vec![0xee; content.len()];
    bench.ram.write(from, &content)?;
    bench.attach(ONE, EDU)?;
    bench.map(ONE, HERE, from, Rights::Read)?;
    bench.map(ONE, THERE, to, Rights::Write)?;
    bench.edu.load(HERE, BUFFER_BYTES)?;
    bench.edu.store(THERE, BUFFER_BYTES)?;
    expect("the copy is the same", &(bench.ram.read(to, content.len())? == content), &true)?;
    bench.unmap(ONE, THERE)?;
    bench.ram.write(to, &other)?;
    bench.edu.store(THERE, BUFFER_BYTES)?;
    let untouched = bench.ram.read(to, other.len())? == other;
    expect("the page is untouched after UNMAP", &untouched, &true)?;
    bench.unmap(ONE, HERE)?;
    Ok(format!("{BUFFER_BYTES} bytes read and written by DMA; none after UNMAP"))
}

fn a_read_only_page_is_not_written(bench: &mut Bench) -> io::Result<String> {
    let page = bench.ram.page()?;
    bench.map(ONE, HERE, page, Rights::Read)?;
    bench.is_refused(HERE, page)?;
    bench.unmap(ONE, HERE)?;
    Ok("write refused, memory untouched".to_owned())
}

fn what_was_unmapped_is_out_of_reach(bench: &mut Bench) -> io::Result<String> {
    let (page, other) = (bench.ram.page()?, bench.ram.page()?);
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    bench.map(ONE, HERE + PAGE, other, Rights::ReadWrite)?;
    bench.reaches(HERE, page)?;
    bench.unmap(ONE, HERE)?;
    bench.is_refused(HERE, page)?;
    bench.reaches(HERE + PAGE, other)?;
    bench.unmap(ONE, HERE + PAGE)?;
    Ok("refused after UNMAP, its neighbour still reached".to_owned())
}

fn what_was_detached_is_out_of_reach(bench: &mut Bench) -> io::Result<String> {
    let page = bench.ram.page()?;
    // EDU is attached too, so that the domain and its mapping stay
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    bench.reaches(HERE, page)?;
    bench.driver.detach(ONE, TEST).map_err(io::Error::other)?;
    bench.is_refused(HERE, page)?;
    bench.attach(ONE, TEST)?;
    bench.reaches(HERE, page)?;
    bench.unmap(ONE, HERE)?;
    Ok("refused after DETACH, reached again after ATTACH".to_owned())
}

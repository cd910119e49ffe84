//! Guest memory comes and goes while devices are attached: what leads to it goes with it, and is back when
//! it is.

use std::fs;
use std::io;

use viommu_client::{Rights, Status};

use crate::bench::{
    Bench, FOLDER, HERE, ONE, OPTIONS, TEST, THERE, TWO, attach_to_bypass, status_of,
};
use crate::ram::{PAGE, RAM_BYTES};
use crate::{check, expect};

/// The two parts of guest memory. The second one goes.
const HALF: u64 = RAM_BYTES / 2;
const FIRST: (u64, u64) = (0, HALF);
const BOTH: &[(u64, u64)] = &[FIRST, (HALF, HALF)];

/// What is in the part that stays, and in the one that goes: behind what queues use.
const STAYS: u64 = HALF - 8 * PAGE;
const GOES: u64 = HALF + 8 * PAGE;

/// A mapping over the seam: so long, and half of it in each part.
const SEAM_BYTES: u64 = 4 * PAGE;
const SEAM: u64 = HALF - SEAM_BYTES / 2;

/// Where that is for the device: behind what leads to the part that stays.
const OVER: u64 = THERE + PAGE;

/// An endpoint without a device, whose domain nothing limits.
const OTHER: u32 = 0x80;
const OTHERS: &[&str] = &["--endpoint", "00:10.0"];

/// Where the kernel has the number of mappings that a container takes, and what it is to be.
const ENTRIES: &str = "/sys/module/vfio_iommu_type1/parameters/dma_entry_limit";
const LIMIT: u64 = 8;

pub(super) fn play() -> io::Result<()> {
    check("static", with_devices(&["--pin", "static"]));
    check("dynamic", with_devices(&["--pin", "dynamic"]));
    Ok(())
}

pub(super) fn play_type1() -> io::Result<()> {
    check("limit", a_mapping_past_the_limit_is_refused_and_maps_nothing());
    check("type1", with_devices(&[]));
    Ok(())
}

fn with_devices(options: &[&str]) -> io::Result<String> {
    let mut bench = Bench::open(&[OPTIONS, options].concat())?;
    bench.driver.transport().set_memory(BOTH)?;
    what_leads_to_memory_goes_and_comes_with_it(&mut bench)?;
    bypassing_devices_reach_what_there_is(&mut bench)?;
    end(bench)?;
    Ok("taken away and back: with its mappings, and for a device that bypasses".to_owned())
}

/// Ends the daemon, so that there can be another.
fn end(bench: Bench) -> io::Result<()> {
    let Bench { daemon, driver, .. } = bench;
    drop(driver);
    daemon.end()?;
    fs::remove_dir_all(FOLDER)
}

fn what_leads_to_memory_goes_and_comes_with_it(bench: &mut Bench) -> io::Result<()> {
    bench.attach(ONE, TEST)?;
    bench.map(ONE, HERE, GOES, Rights::ReadWrite)?;
    bench.map(ONE, THERE, STAYS, Rights::ReadWrite)?;
    expect("MAP over the seam", &over_the_seam(bench)?, &Status::OK)?;
    all_is_reached(bench)?;

    bench.driver.transport().set_memory(&[FIRST])?;
    bench.is_refused(HERE, GOES)?;
    bench.is_refused(OVER, SEAM)?;
    bench.is_refused(OVER + SEAM_BYTES / 2, HALF)?;
    bench.reaches(THERE, STAYS)?;

    bench.driver.transport().set_memory(BOTH)?;
    all_is_reached(bench)?;

    bench.driver.transport().set_memory(&[FIRST])?;
    bench.driver.unmap(ONE, 0..=u64::MAX).map_err(io::Error::other)?;
    expect("MAP of what is half there", &over_the_seam(bench)?, &Status::UNSUPP)?;
    bench.is_refused(OVER, SEAM)?;
    bench.driver.transport().set_memory(BOTH)?;
    bench.is_refused(HERE, GOES)?;
    bench.is_refused(OVER, SEAM)
}

fn over_the_seam(bench: &mut Bench) -> io::Result<Status> {
    let iovas = OVER..=OVER + (SEAM_BYTES - 1);
    status_of(bench.driver.map(ONE, iovas, SEAM, Rights::ReadWrite))
}

fn all_is_reached(bench: &Bench) -> io::Result<()> {
    bench.reaches(HERE, GOES)?;
    bench.reaches(THERE, STAYS)?;
    bench.reaches(OVER, SEAM)?;
    bench.reaches(OVER + SEAM_BYTES - PAGE, SEAM + SEAM_BYTES - PAGE)
}

fn bypassing_devices_reach_what_there_is(bench: &mut Bench) -> io::Result<()> {
    let before = bench.daemon.pinned_kib()?;
    attach_to_bypass(&mut bench.driver, TWO, TEST)?;
    bench.reaches(STAYS, STAYS)?;
    bench.reaches(GOES, GOES)?;
    bench.driver.transport().set_memory(&[FIRST])?;
    bench.reaches(STAYS, STAYS)?;
    bench.is_refused(GOES, GOES)?;
    bench.driver.transport().set_memory(BOTH)?;
    bench.reaches(GOES, GOES)?;
    bench.driver.detach(TWO, TEST).map_err(io::Error::other)?;
    bench.is_refused(STAYS, STAYS)?;
    expect("KiB pinned as before", &bench.daemon.pinned_kib()?, &before)
}

/// The limit counts for each container; the domain of an endpoint without one may hold more.
fn a_mapping_past_the_limit_is_refused_and_maps_nothing() -> io::Result<String> {
    fs::write(ENTRIES, LIMIT.to_string())?;
    let mut bench = Bench::open(&[OPTIONS, OTHERS].concat())?;
    fs::write(ENTRIES, u16::MAX.to_string())?;
    bench.attach(ONE, TEST)?;
    bench.attach(TWO, OTHER)?;
    let (iova, gpa) = (|page| HERE + page * PAGE, |page| HALF + page * PAGE);
    for page in 0..LIMIT {
        bench.map(ONE, iova(page), gpa(page), Rights::ReadWrite)?;
        bench.map(TWO, iova(page), gpa(page), Rights::ReadWrite)?;
    }
    let past = iova(LIMIT)..=iova(LIMIT) + (PAGE - 1);
    let refused = bench.driver.map(ONE, past, gpa(LIMIT), Rights::ReadWrite);
    expect("MAP past the limit", &status_of(refused)?, &Status::NOMEM)?;
    bench.is_refused(iova(LIMIT), gpa(LIMIT))?;
    bench.map(TWO, iova(LIMIT), gpa(LIMIT), Rights::ReadWrite)?;
    let refused = bench.driver.attach(TWO, TEST);
    expect("ATTACH to more than fits", &status_of(refused)?, &Status::NOMEM)?;
    (0..LIMIT).try_for_each(|page| bench.reaches(iova(page), gpa(page)))?;
    bench.is_refused(iova(LIMIT), gpa(LIMIT))?;
    bench.unmap(ONE, iova(0))?;
    bench.map(ONE, iova(LIMIT), gpa(LIMIT), Rights::ReadWrite)?;
    bench.reaches(iova(LIMIT), gpa(LIMIT))?;
    end(bench)?;
    Ok(format!("NOMEM past {LIMIT} mappings, also for ATTACH; room again after UNMAP"))
}

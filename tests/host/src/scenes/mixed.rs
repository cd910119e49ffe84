//! One domain with an endpoint on VFIO and one in a device process.

use std::io;
use std::path::Path;

use viommu_client::{Request, Rights, Status};
use viommu_iotlb::{Device, Reader};
use viommu_pgtable::{Access, Iova};

use super::load::{self, Replacement};
use crate::bench::{
    Bench, FOLDER, HERE, ONE, OPTIONS, READ_WRITE, TEST, THERE, page_range, status_of,
};
use crate::ram::RAM_BYTES;
use crate::{check, expect};

/// The device process's endpoint, 00:10.0, and its socket in the daemon's folder.
const PROCESS: u32 = 0x80;
const SOCKET: &str = "process";

/// Room for few tables, and what one of the lowest level spans, bytes: a page in each such span takes one.
const LITTLE: &[&str] = &["--table-memory", "512K"];
const TABLE_SPAN: u64 = 2 << 20;

pub(super) fn play() -> io::Result<()> {
    let socket = Path::new(FOLDER).join(SOCKET);
    let endpoint = format!("00:10.0,socket={}", socket.display());
    let options = [OPTIONS, &["--endpoint", &endpoint], LITTLE].concat();
    let mut bench = Bench::open(&options)?;
    let device = Device::connect(&socket).map_err(io::Error::other)?;
    let reader = device.reader().map_err(io::Error::other)?;
    check("both", a_mapping_reaches_both(&mut bench, &reader));
    check("late", who_enters_late_finds_what_was_mapped(&mut bench, &reader));
    check("refused", what_the_kernel_refuses_is_not_in_the_tables(&mut bench, &reader));
    check("undone", what_the_tables_refuse_is_taken_out_of_the_kernel(&mut bench, &reader));
    check("replaced", load::domains_are_replaced(&mut bench, Replacement::Clean));
    Ok(())
}

/// Where a read of a byte by the device process leads.
fn reads(reader: &Reader, iova: u64) -> io::Result<Option<u64>> {
    let guard = reader.enter().map_err(io::Error::other)?;
    let mut pieces = guard.translate(None, Iova::new(iova), 1, Access::READ);
    Ok(pieces.next().and_then(Result::ok).map(|piece| piece.gpa.raw()))
}

fn a_mapping_reaches_both(bench: &mut Bench, reader: &Reader) -> io::Result<String> {
    let page = bench.ram.page()?;
    bench.attach(ONE, PROCESS)?;
    bench.attach(ONE, TEST)?;
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    bench.reaches(HERE, page)?;
    expect("the process reads", &reads(reader, HERE)?, &Some(page))?;
    bench.unmap(ONE, HERE)?;
    bench.is_refused(HERE, page)?;
    expect("the process reads after UNMAP", &reads(reader, HERE)?, &None)?;
    Ok("one domain, two kinds of endpoints; neither after UNMAP".to_owned())
}

fn who_enters_late_finds_what_was_mapped(bench: &mut Bench, reader: &Reader) -> io::Result<String> {
    let page = bench.ram.page()?;
    for late in [TEST, PROCESS] {
        bench.driver.detach(ONE, late).map_err(io::Error::other)?;
        bench.map(ONE, HERE, page, Rights::ReadWrite)?;
        bench.attach(ONE, late)?;
        bench.reaches(HERE, page)?;
        expect("the process reads", &reads(reader, HERE)?, &Some(page))?;
        bench.unmap(ONE, HERE)?;
    }
    Ok("either of them late".to_owned())
}

/// The kernel maps guest memory only, the tables would take any address.
fn what_the_kernel_refuses_is_not_in_the_tables(
    bench: &mut Bench,
    reader: &Reader,
) -> io::Result<String> {
    let (page, iovas) = (bench.ram.page()?, page_range(THERE));
    let beyond = Request::Map { domain: ONE, iovas, to: RAM_BYTES, flags: READ_WRITE };
    let answer = bench.driver.send(&beyond).map_err(io::Error::other)?;
    expect("MAP past guest memory", &answer.status(), &Status::UNSUPP)?;
    expect("the process reads", &reads(reader, THERE)?, &None)?;
    bench.map(ONE, THERE, page, Rights::ReadWrite)?;
    bench.reaches(THERE, page)?;
    expect("the process reads", &reads(reader, THERE)?, &Some(page))?;
    bench.unmap(ONE, THERE)?;
    Ok("UNSUPP of the kernel's is in neither".to_owned())
}

/// The kernel is asked first, so a mapping for which the tables have no room was in it.
fn what_the_tables_refuse_is_taken_out_of_the_kernel(
    bench: &mut Bench,
    reader: &Reader,
) -> io::Result<String> {
    let page = bench.ram.page()?;
    let mut held = 0;
    let refused = loop {
        let iova = HERE + held * TABLE_SPAN;
        match status_of(bench.driver.map(ONE, page_range(iova), page, Rights::ReadWrite))? {
            Status::OK => held += 1,
            status => {
                expect("MAP without room for tables", &status, &Status::NOMEM)?;
                break iova;
            }
        }
    };
    bench.is_refused(refused, page)?;
    expect("the process reads", &reads(reader, refused)?, &None)?;
    bench.reaches(HERE, page)?;
    bench.unmap(ONE, HERE)?;
    bench.map(ONE, refused, page, Rights::ReadWrite)?;
    bench.reaches(refused, page)?;
    expect("the process reads", &reads(reader, refused)?, &Some(page))?;
    bench.driver.unmap(ONE, 0..=u64::MAX).map_err(io::Error::other)?;
    Ok(format!("NOMEM of the tables past {held} mappings, and out of the kernel again"))
}

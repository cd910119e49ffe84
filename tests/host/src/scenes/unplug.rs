//! The machine takes a function away while the daemon has it, and the guest attaches it.

use std::io;

use viommu_client::{Rights, Status};

use super::load::{self, Replacement};
use crate::bench::{Bench, HERE, ONE, OPTIONS, TEST, reaches, status_of};
use crate::pci::Function;
use crate::testdev::TestDevice;
use crate::{check, expect};

/// The function that goes: here, behind a port, and for the guest that is played.
const PLUGGED_AT: &str = "0000:01:00.0";
const PLUGGED: u32 = 0x38;
const OPTION: &str = "00:07.0,vfio=0000:01:00.0";

/// What the daemon's log has when the kernel has asked for a function, and what the host answers when the
/// machine has none any more.
const TAKEN: &str = "was taken away";
const UNPLUGGED: &str = "unplugged";

pub(super) fn play() -> io::Result<()> {
    let plugged = Function::at(PLUGGED_AT);
    plugged.bind()?;
    let mut bench = Bench::open(&[OPTIONS, &["--endpoint", OPTION]].concat())?;
    let page = bench.ram.page()?;
    check("before", both_reach_a_page(&mut bench, &plugged, page));
    println!("ready unplug");
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    expect("the host", &answer.trim(), &UNPLUGGED)?;
    check("gone", the_function_is_gone(&bench, &plugged));
    check("others", others_go_on(&mut bench, page));
    check("detached", what_is_gone_leaves_its_domain_under_bypass(&mut bench, page));
    check("refused", what_is_gone_cannot_be_attached(&mut bench));
    bench.unmap(ONE, HERE)?;
    check("replaced", load::domains_are_replaced(&mut bench, Replacement::Clean));
    let Bench { daemon, driver, .. } = bench;
    drop(driver);
    daemon.end().map(drop)
}

fn both_reach_a_page(bench: &mut Bench, plugged: &Function, page: u64) -> io::Result<String> {
    bench.attach(ONE, TEST)?;
    bench.attach(ONE, PLUGGED)?;
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    bench.reaches(HERE, page)?;
    reaches(&TestDevice::open(plugged)?, &bench.ram, HERE, page)?;
    Ok("in one domain, both written by DMA".to_owned())
}

fn the_function_is_gone(bench: &Bench, plugged: &Function) -> io::Result<String> {
    expect("sysfs has it", &plugged.file("").exists(), &false)?;
    expect("the daemon gave it back", &bench.daemon.log().contains(TAKEN), &true)?;
    Ok("let go by a daemon that goes on; the machine has it back".to_owned())
}

fn others_go_on(bench: &mut Bench, page: u64) -> io::Result<String> {
    bench.reaches(HERE, page)?;
    bench.unmap(ONE, HERE)?;
    bench.is_refused(HERE, page)?;
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    bench.reaches(HERE, page)?;
    Ok("reached, unmapped and mapped again".to_owned())
}

/// What firmware set is on while a driver runs, as a rule: where `bypass` is 1, DETACH sends an endpoint to
/// memory as it is.
fn what_is_gone_leaves_its_domain_under_bypass(bench: &mut Bench, page: u64) -> io::Result<String> {
    bench.driver.transport().set_bypass(true)?;
    bench.driver.detach(ONE, PLUGGED).map_err(io::Error::other)?;
    let transport = bench.driver.transport();
    [false, true].into_iter().try_for_each(|on| transport.set_bypass(on))?;
    bench.driver.detach(ONE, TEST).map_err(io::Error::other)?;
    bench.reaches(page, page)?;
    bench.driver.transport().set_bypass(false)?;
    bench.is_refused(page, page)?;
    // the domain ended with its last endpoint
    bench.attach(ONE, TEST)?;
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    Ok("DETACH, and bypass on and off: others follow, it is in nobody's way".to_owned())
}

fn what_is_gone_cannot_be_attached(bench: &mut Bench) -> io::Result<String> {
    let status = status_of(bench.driver.attach(ONE, PLUGGED))?;
    expect("ATTACH", &status, &Status::UNSUPP)?;
    Ok("its endpoint is still there, and ATTACH is UNSUPP".to_owned())
}

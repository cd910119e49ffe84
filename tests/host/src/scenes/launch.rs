//! `launch`: a daemon and an unpatched QEMU share three functions of this machine, and a guest in that QEMU
//! moves data through mappings of its own.

use std::io;

use rustix::process::Signal;

use crate::bench::{EDU_AT, SECOND_AT, TEST_AT, reaches};
use crate::launched::{Boots, Launched, mount_shared};
use crate::pci::Function;
use crate::ram::Ram;
use crate::testdev::{Ended, TestDevice};
use crate::vmm::Vmm;
use crate::{check, expect, wait_until};

/// An address in the inner guest's memory that nothing has there this early.
const ITS_MEMORY: u64 = 1 << 20;

/// Where the test device looks for what it has written: nobody here knows where the inner guest's memory is.
/// So it says [`Ended::Elsewhere`] whenever it has written.
const UNKNOWN: u64 = 0;

/// What nobody gives the device, it does not reach.
const NO_BYPASS: &[&str] = &["--boot-bypass", "off"];

pub(super) fn play() -> io::Result<()> {
    let functions = [TEST_AT, EDU_AT, SECOND_AT].map(Function::at);
    for function in &functions {
        function.bind()?;
    }
    mount_shared()?;
    check("terminated", sigterm_ends_both(&functions));
    check("killed", the_daemons_death_ends_qemu());
    check("orphaned", launchs_own_death_ends_both(&functions));
    check("early", sigterm_is_heard_before_the_guest_runs());
    check("guest", a_guest_boots_and_its_end_is_the_end(&functions));
    Ok(())
}

/// Where a write of the test device to the inner guest's memory ends, as long as that guest gave it nothing.
fn write_to_its_memory(function: &Function) -> io::Result<Ended> {
    TestDevice::open(function)?.write(ITS_MEMORY, UNKNOWN)
}

/// Binds the functions anew and moves data, which only who has them alone can do.
fn are_free(functions: &[Function; 3]) -> io::Result<()> {
    let ram = Ram::new()?;
    let page = ram.page()?;
    let _vmm = Vmm::new(&functions.each_ref(), &ram)?;
    let [test, ..] = functions;
    reaches(&TestDevice::open(test)?, &ram, page, page)
}

fn a_guest_boots_and_its_end_is_the_end(functions: &[Function; 3]) -> io::Result<String> {
    let [test, ..] = functions;
    let mut launched = Launched::start("guest", NO_BYPASS, &Boots::Inner)?;
    let parts = launched.parts()?;
    // QEMU has mapped all its memory for the function, and that is replaced before the guest has begun
    expect("the early DMA ended", &write_to_its_memory(test)?, &Ended::Refused)?;
    let status = launched.wait()?;
    for line in launched.serial().lines().filter(|line| line.starts_with("check ")) {
        println!("{}", line.trim_end());
    }
    expect("the exit status", &status.code(), &Some(0))?;
    parts.are_gone()?;
    are_free(functions)?;
    Ok("three functions, the guest's end is the end, and they are free again".to_owned())
}

fn sigterm_ends_both([test, ..]: &[Function; 3]) -> io::Result<String> {
    let mut launched = Launched::start("terminated", &[], &Boots::Nothing)?;
    let parts = launched.parts()?;
    expect("the DMA with bypass ended", &write_to_its_memory(test)?, &Ended::Elsewhere)?;
    launched.signal(Signal::TERM)?;
    let status = launched.wait()?;
    expect("the exit status", &status.code(), &Some(0))?;
    parts.are_gone()?;
    Ok("SIGTERM to launch ended QEMU and the daemon, with status 0".to_owned())
}

fn the_daemons_death_ends_qemu() -> io::Result<String> {
    let mut launched = Launched::start("killed", NO_BYPASS, &Boots::Nothing)?;
    let parts = launched.parts()?;
    parts.kill_daemon()?;
    let status = launched.wait()?;
    expect("the exit status", &status.code(), &Some(1))?;
    wait_until("QEMU is gone", || parts.are_gone().is_ok())?;
    let told = "the daemon has ended (signal: 9 (SIGKILL)): QEMU was ended, too";
    expect("launch says why", &launched.log().contains(told), &true)?;
    Ok("a daemon that was killed took QEMU along, and launch said so".to_owned())
}

fn launchs_own_death_ends_both(functions: &[Function; 3]) -> io::Result<String> {
    let mut launched = Launched::start("orphaned", NO_BYPASS, &Boots::Nothing)?;
    let parts = launched.parts()?;
    launched.signal(Signal::KILL)?;
    launched.wait()?;
    wait_until("both are gone", || parts.are_gone().is_ok())?;
    are_free(functions)?;
    Ok("SIGKILL to launch ended QEMU and the daemon, and the functions are free".to_owned())
}

fn sigterm_is_heard_before_the_guest_runs() -> io::Result<String> {
    let mut launched = Launched::start("early", NO_BYPASS, &Boots::NoQemu)?;
    let parts = launched.parts()?;
    launched.signal(Signal::TERM)?;
    let status = launched.wait()?;
    expect("the exit status", &status.code(), &Some(128 + Signal::TERM.as_raw()))?;
    parts.are_gone()?;
    Ok("SIGTERM ended a launch whose QEMU never answered".to_owned())
}

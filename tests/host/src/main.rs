//! One scenario of the host suite, from within the guest whose emulated IOMMU is the host IOMMU here.
//!
//! ```text
//! host-suite SCENARIO
//! ```
//! It starts the daemon, plays the VMM and the guest's driver over the daemon's real socket, and has a
//! real (emulated) PCI function move data. What it finds is said on standard output, a line each:
//! `check NAME: ok WHAT` or `check NAME: FAIL WHY`. The exit status is 0 when all could be said, whatever
//! came of it.
//!
//! Started as a machine's first process it is the guest that `launch` runs in such a guest ([`inner`]).

mod bench;
mod daemon;
mod edu;
mod inner;
mod iommufd;
mod launched;
mod pci;
mod ram;
mod scenes;
mod testdev;
mod type1;
mod vmm;

use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How long anything may take before a scenario has failed. The machine is an emulated one; nothing waits
/// this long when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// The number of a machine's first process.
const FIRST: u32 = 1;

fn main() -> ExitCode {
    if std::process::id() == FIRST {
        // where nothing else is, the kernel's console is what remains to say it
        return inner::live().map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [scenario] = arguments.as_slice() else {
        eprintln!("usage: host-suite SCENARIO");
        return ExitCode::from(2);
    };
    match scenes::play(scenario) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("check {scenario}: FAIL {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says how a check went; a check that failed does not end the scenario.
fn check(name: &str, done: io::Result<String>) {
    match done {
        Ok(seen) => println!("check {name}: ok {seen}"),
        Err(error) => println!("check {name}: FAIL {error}"),
    }
}

/// Waits until `done` holds, looking again and again.
///
/// # Errors
/// It does not hold within [`PATIENCE`].
fn wait_until(what: &str, mut done: impl FnMut() -> bool) -> io::Result<()> {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > PATIENCE {
            return Err(io::Error::other(format!("waited in vain: {what}")));
        }
        std::thread::sleep(Duration::from_micros(100));
    }
    Ok(())
}

/// Fails unless something is what it should be.
///
/// # Errors
/// It is not; the error shows both.
fn expect<T: PartialEq + std::fmt::Debug>(what: &str, is: &T, should_be: &T) -> io::Result<()> {
    if is == should_be {
        return Ok(());
    }
    Err(io::Error::other(format!("{what}: {is:x?}, not {should_be:x?}")))
}

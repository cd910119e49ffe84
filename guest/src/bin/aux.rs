//! Drives the guest's virtio-iommu without a kernel driver, with the features for auxiliary domains, and
//! runs their sequences with real DMA.
//!
//! ```text
//! aux IOMMU ENGINE ENGINE
//! ```
//! PCI addresses, as in `0000:00:01.0`. The functions are taken from their drivers, if they have any.
//! Each check is one line, `check NAME: ok WHAT` or `check NAME: FAIL WHY`; each sequence is a check. The
//! exit status is 0 when all could be made, whatever came of them.

use std::fmt::Display;
use std::fs;
use std::io;
use std::process::ExitCode;

use viommu_client::engine::Engine;
use viommu_client::sysfs::{self, Pinned, SysfsFunction, VirtioPci};
use viommu_client::{Iommu, features};
use viommu_guest::sequences::{self, Bench, Device, SEQUENCES, Wrong};

/// Pages that the sequences may take: none of them gives one back.
const PAGES: usize = 2048;

/// Whether the kernel moves pages that are locked.
const MOVES_LOCKED: &str = "/proc/sys/vm/compact_unevictable_allowed";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [iommu, engines @ ..] = words.as_slice() else { return usage() };
    if engines.len() != 2 {
        return usage();
    }
    match run(iommu, engines) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell::<&str, _>("aux", &Err(error));
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: aux IOMMU ENGINE ENGINE");
    ExitCode::from(2)
}

/// Prints how a check went.
fn tell<W: Display, E: Display>(name: &str, seen: &Result<W, E>) {
    match seen {
        Ok(what) => println!("check {name}: ok {what}"),
        Err(why) => println!("check {name}: FAIL {why}"),
    }
}

fn run(iommu: &str, engines: &[&str]) -> Result<(), Wrong> {
    for address in engines.iter().chain(&[iommu]) {
        sysfs::unbind(address)?;
    }
    fs::write(MOVES_LOCKED, "0")?;
    let memory = Pinned::new(PAGES)?;
    let wanted = features::STANDARD | features::AUX | features::BIND_TABLE;
    let driver = Iommu::start(VirtioPci::open(iommu, memory.clone())?, wanted)?;
    tell("features", &Ok::<_, Wrong>(format!("{:#x} negotiated", driver.features())));
    let devices = engines.iter().map(|address| device(address)).collect::<Result<_, _>>()?;
    let mut bench = Bench::new(driver, devices)?;
    println!("fact tables: {:?}", bench.flavour());
    for sequence in SEQUENCES {
        let seen = sequences::run(sequence.number, &mut bench);
        tell(&format!("sequence-{}", sequence.number), &seen);
        if seen.is_err() {
            // what it left behind would make the next one fail as well
            break;
        }
    }
    tell("pinned", &memory.check().map(|()| format!("{PAGES} pages stayed where they were")));
    Ok(())
}

/// The engine of that address; the endpoint's number is where it is on its bus (`docs/architecture.md`).
fn device(address: &str) -> Result<Device<SysfsFunction>, Wrong> {
    let endpoint = endpoint(address)
        .ok_or_else(|| io::Error::other(format!("{address} is no PCI address")))?;
    let mut engine = Engine::new(SysfsFunction::open(address)?)?;
    let pasids = engine.pasid_capability()?.is_some();
    println!("fact engine: {address} endpoint {endpoint} with the PASID capability: {pasids}");
    Ok(Device { endpoint, engine })
}

/// `SSSS:BB:DD.F` as segment, bus, device and function in one number.
fn endpoint(address: &str) -> Option<u32> {
    let (segment, rest) = address.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    let part = |text, most: u32| u32::from_str_radix(text, 16).ok().filter(|part| *part <= most);
    let (device, function) = (part(device, 0x1f)?, part(function, 7)?);
    Some(part(segment, 0xffff)? << 16 | part(bus, 0xff)? << 8 | device << 3 | function)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_its_endpoint_and_what_is_no_address_is_none() {
        assert_eq!(endpoint("0000:00:04.0"), Some(0x20));
        assert_eq!(endpoint("0001:02:1f.7"), Some(0x1_02ff));
        for bad in ["", "00:04.0", "0000:00:20.0", "0000:00:04.8", "0000:00:04", "x:00:04.0"] {
            assert_eq!(endpoint(bad), None, "{bad}");
        }
    }
}

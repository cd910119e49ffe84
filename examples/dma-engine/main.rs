//! A PCI device that copies memory: what a test needs to do DMA at addresses of its choice, and the
//! smallest example of a device behind the IOMMU of `vhost-user-iommu`.
//!
//! It is function `1234:11e9`, class `ff0000`, with one MSI-X vector, served over vfio-user (QEMU's
//! `vfio-user-pci`).
//!
//! ```text
//! dma-engine --socket run/dma.sock --iotlb run/iotlb.sock
//! ```
//!
//! # Registers
//!
//! BAR 0, 4 KiB, little-endian. A 64-bit register may be accessed whole or as two halves. Offsets
//! not listed read as zero and ignore writes; 0x100 and up is kept for work queues. All addresses
//! are IOVAs (guest-physical without `--iotlb`).
//!
//! | offset | bytes | name | access | at reset | meaning |
//! | --- | --- | --- | --- | --- | --- |
//! | 0x00 | 4 | ID | RO | 0x414d4456 | "VDMA" |
//! | 0x04 | 4 | VERSION | RO | 1 | of this table |
//! | 0x08 | 8 | SRC | RW | 0 | first byte to read; fixed while BUSY |
//! | 0x10 | 8 | DST | RW | 0 | first byte to write; fixed while BUSY |
//! | 0x18 | 8 | LEN | RW | 0 | bytes to copy, 1 to LEN_MAX; fixed while BUSY |
//! | 0x20 | 4 | COMMAND | WO | 0 | 1: COPY; other values do nothing |
//! | 0x24 | 4 | STATUS | RW1C | 0 | bit 0 BUSY (RO), bit 1 DONE, bit 2 FAULT, bit 3 REFUSED |
//! | 0x28 | 8 | FAULT_ADDR | RO | 0 | the address that faulted, exact to the byte |
//! | 0x30 | 4 | FAULT_INFO | RO | 0 | bit 0: 1 the write faulted, 0 the read; bit 1: the IOMMU is gone |
//! | 0x38 | 8 | COPIED | RO | 0 | bytes written by the last COPY |
//! | 0x40 | 8 | LEN_MAX | RO | 0x4000000 | the longest copy |
//!
//! COPY clears the other bits of STATUS, FAULT_ADDR, FAULT_INFO and COPIED, and sets BUSY. At its end
//! BUSY goes, DONE or FAULT comes, and vector 0 is raised. It is REFUSED, without an interrupt, while
//! BUSY, and if LEN is out of range or SRC or DST plus LEN wraps around.
//!
//! The copy proceeds in ascending order, up to 64 KiB at a time; of ranges that overlap, DST has to be
//! the lower one. What lies before a fault is copied, what lies behind it is untouched.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use log::info;

use self::engine::Engine;
use self::support::{DmaPort, Function, Identity, LayoutError, Spec};

mod copy;
mod engine;
mod registers;
#[path = "../support/mod.rs"]
#[expect(
    dead_code,
    reason = "INTA#, more capabilities and the wait for memory are for other devices"
)]
mod support;

#[cfg(test)]
mod tests;

/// A DMA engine served over vfio-user
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Socket to listen on, for the VMM
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Socket of the IOMMU for this device [default: addresses are guest-physical]
    #[arg(long, value_name = "PATH")]
    iotlb: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(&args) {
        Err(error) => {
            eprintln!("dma-engine: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Infallible, Box<dyn std::error::Error>> {
    let dma = Arc::new(DmaPort::connect(args.iotlb.as_deref())?);
    info!("{}", if args.iotlb.is_some() { "behind the IOMMU" } else { "no IOMMU" });
    let mut function = function(dma)?;
    Ok(support::serve(&args.socket, &mut function)?)
}

/// The PCI function: a device of no standard class.
fn function(dma: Arc<DmaPort>) -> Result<Function<Engine>, LayoutError> {
    let spec = Spec {
        identity: Identity {
            vendor: 0x1234,
            device: 0x11e9,
            class: 0xff_00_00,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        },
        register_bytes: registers::BYTES,
        vectors: 1,
        intx: false,
    };
    Function::new(&spec, Arc::clone(&dma), |interrupts| Engine::new(dma, interrupts))
}

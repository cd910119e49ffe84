//! A PCI device that copies memory: what a test needs to do DMA at addresses of its choice, and the
//! smallest example of a device behind the IOMMU of `vhost-user-iommu`.
//!
//! Served over vfio-user (QEMU's `vfio-user-pci`):
//!
//! ```text
//! dma-engine --socket run/dma.sock --iotlb run/iotlb.sock
//! ```
//!
//! It does one copy at a time, untagged, for tests of the IOMMU as every guest uses it; and it has work
//! queues, each with a PASID of its own, for those of the extension. `device` has all registers.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use log::info;

use self::support::DmaPort;

mod device;
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
    let mut function = device::function(dma)?;
    Ok(support::serve(&args.socket, &mut function)?)
}

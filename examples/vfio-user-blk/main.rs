//! A virtio block device in a process of its own, for a VMM that speaks vfio-user (QEMU's
//! `vfio-user-pci`), behind the IOMMU of `vhost-user-iommu` or behind none.
//!
//! It is also the pattern for a device of your own: `support/` knows PCI, vfio-user and the IOMMU's
//! daemon, `virtio_pci` and `ring` know virtio, and only `block`, `disk` and `request` know of disks.
//!
//! ```text
//! vfio-user-blk --socket run/disk.sock --iotlb run/iotlb.sock --image disk.img
//! qemu ... -device '{"driver":"vfio-user-pci","socket":{"type":"unix","path":"run/disk.sock"}}'
//! ```
//!
//! # What it guarantees
//! - Each DMA goes through the IOMMU if `--iotlb` is given: rings, indirect tables, requests, data.
//! - After the answer to an unmap, a reset or a stop, nothing is accessed any more.
//! - Whatever a driver puts into its rings, registers or requests: no panic, and memory within
//!   named bounds. A broken ring sets DEVICE_NEEDS_RESET; a bad request fails alone.
//!
//! # What it leaves out
//! Packed rings, discard, write zeroes, resizing, several disks in one process.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use log::info;

use self::block::Block;
use self::disk::Disk;
use self::support::{DmaPort, Function, Identity, Spec};
use self::virtio_pci::VirtioPci;

mod block;
mod common_config;
mod disk;
mod notifier;
mod request;
mod ring;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "PASIDs are for other devices")]
mod support;
mod virtio_pci;
mod worker;

#[cfg(test)]
mod tests;

/// Most queues: each is a thread and, behind the IOMMU, one of its 64 reader slots.
const MAX_QUEUES: i64 = 16;

/// A virtio block device served over vfio-user
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Socket to listen on, for the VMM
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Socket of the IOMMU for this device [default: addresses are guest-physical]
    #[arg(long, value_name = "PATH")]
    iotlb: Option<PathBuf>,
    /// Image file: the disk's content, byte by byte
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Open the image for reading only
    #[arg(long)]
    readonly: bool,
    /// Number of request queues, 1 to 16
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=MAX_QUEUES))]
    queues: u16,
}

fn main() -> ExitCode {
    let args = Args::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(&args) {
        Err(error) => {
            eprintln!("vfio-user-blk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Infallible, Box<dyn std::error::Error>> {
    let disk = Disk::open(&args.image, args.readonly)?;
    let dma = Arc::new(DmaPort::connect(args.iotlb.as_deref())?);
    info!(
        "{}: {} sectors, {} queues{}{}",
        args.image.display(),
        disk.sectors(),
        args.queues,
        if disk.read_only() { ", read-only" } else { "" },
        if args.iotlb.is_some() { ", behind the IOMMU" } else { ", no IOMMU" },
    );
    let mut function = function(disk, dma, args.queues)?;
    Ok(support::serve(&args.socket, &mut function)?)
}

/// The PCI function: a modern virtio block device, mass storage.
fn function(
    disk: Disk,
    dma: Arc<DmaPort>,
    queues: u16,
) -> Result<Function<VirtioPci<Block>>, support::LayoutError> {
    let spec = Spec {
        identity: Identity {
            vendor: 0x1af4,
            device: 0x1042,
            class: 0x01_00_00,
            revision: 1,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        },
        register_bytes: virtio_pci::REGISTER_BYTES,
        vectors: queues + 1,
        intx: true,
    };
    let block = Block::new(disk, Arc::clone(&dma), queues);
    let mut function = Function::new(&spec, dma, |interrupts| VirtioPci::new(block, interrupts))?;
    virtio_pci::add_capabilities(&mut function)?;
    Ok(function)
}

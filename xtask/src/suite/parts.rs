//! The processes beside a guest.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::set::{DISKS, Iommu, Seat, Set};
use super::stage::Place;
use super::topology;
use crate::error::{Error, Result};
use crate::image;
use crate::vm::process::{Deadline, Process};

/// The daemon's socket for QEMU, in the run's folder.
pub(crate) const IOMMU_SOCKET: &str = "iommu.sock";

/// The seed of the first disk's first content; the next disk has the next one.
pub(crate) const DISK_SEED: u64 = 1;

/// The size of a disk of QEMU's own.
const OWN_DISK_MIB: u64 = 64;

/// How long our processes may take until their sockets are there.
pub(crate) const START_WITHIN: Duration = Duration::from_secs(10);

/// The image behind a disk of ours.
pub(crate) fn image_of(seat: &Seat) -> String {
    format!("{}.img", seat.name)
}

/// Fills the images of all disks.
///
/// # Errors
/// They cannot be written.
pub(crate) fn make_images(set: &Set, dir: &Path) -> Result<()> {
    for ((seat, mib), seed) in DISKS.iter().zip(set.disks).zip(DISK_SEED..) {
        image::make(&dir.join(image_of(seat)), seed, mib << 20)?;
    }
    for disk in set.own {
        image::make(&dir.join(disk.image), DISK_SEED, OWN_DISK_MIB << 20)?;
    }
    Ok(())
}

/// Starts the daemon; returns when its sockets are there.
///
/// # Errors
/// It does not start.
pub(crate) fn start_daemon(set: &Set, place: &Place<'_>) -> Result<Process> {
    let mut daemon = Command::new(&place.tools.programs.daemon);
    daemon.args(["--socket-path", IOMMU_SOCKET, "--log-level", "info"]);
    daemon.args(["--arch", place.arch.option()]);
    if let Some(time) = set.poll_us {
        daemon.args(["--poll-us", &time.to_string()]);
    }
    if let Some(window) = topology::msi_window(place.kit.kernel.architecture) {
        daemon.args(["--msi-window", window]);
    }
    for disk in set.own {
        daemon.args(["--endpoint", &topology::address(disk.slot)]);
    }
    for seat in set.seats() {
        let at = topology::address(seat.slot);
        let Seat { iotlb, pasid_bits, .. } = seat;
        daemon.args(["--endpoint", &format!("{at},socket={iotlb},pasid-bits={pasid_bits}")]);
    }
    start("daemon", IOMMU_SOCKET, daemon, place.dir)
}

/// Starts a disk; returns when its socket is there.
///
/// # Errors
/// It does not start.
pub(crate) fn start_disk(set: &Set, seat: &Seat, place: &Place<'_>) -> Result<Process> {
    let mut disk = Command::new(&place.tools.programs.disk);
    disk.args(["--image", &image_of(seat), "--queues", &set.queues.to_string()]);
    start_device(set, seat, disk, place.dir)
}

/// Starts a DMA engine; returns when its socket is there.
///
/// # Errors
/// It does not start.
pub(crate) fn start_engine(set: &Set, seat: &Seat, place: &Place<'_>) -> Result<Process> {
    start_device(set, seat, Command::new(&place.tools.programs.engine), place.dir)
}

fn start_device(set: &Set, seat: &Seat, mut device: Command, dir: &Path) -> Result<Process> {
    device.args(["--socket", seat.socket]);
    if set.iommu == Iommu::Ours {
        device.args(["--iotlb", seat.iotlb]);
    }
    start(seat.name, seat.socket, device, dir)
}

/// Starts a process that listens at `socket`. What one that was killed has left there is removed: it
/// would be taken for the new one's.
fn start(name: &'static str, socket: &str, command: Command, dir: &Path) -> Result<Process> {
    let socket = dir.join(socket);
    if socket.exists() {
        fs::remove_file(&socket).map_err(Error::file("remove", &socket))?;
    }
    let mut process = Process::start(name, command, dir)?;
    process.until_path(&socket, Deadline::after(START_WITHIN))?;
    Ok(process)
}

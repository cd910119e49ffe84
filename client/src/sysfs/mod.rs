//! Inside a guest, without a kernel driver: a virtio-iommu on PCI and other functions through sysfs,
//! and pages of this process whose guest-physical addresses the kernel tells.
//!
//! It needs root. The functions must have no driver ([`unbind`]), and the kernel has to leave pages that
//! are locked where they are: `/proc/sys/vm/compact_unevictable_allowed` is 0. [`Pinned::check`] says
//! whether it did.

mod capability;
mod function;
mod pinned;
mod sys;
mod virtio_pci;

use std::fs;
use std::io;
use std::path::PathBuf;

pub use function::SysfsFunction;
pub use pinned::Pinned;
pub use virtio_pci::VirtioPci;

/// Takes a function, by its address as in `0000:00:01.0`, away from its driver, if it has one.
///
/// # Errors
/// There is no such function, or the kernel refuses.
pub fn unbind(address: &str) -> io::Result<()> {
    let driver = folder(address).join("driver");
    if driver.exists() { fs::write(driver.join("unbind"), address) } else { Ok(()) }
}

/// The folder of a function.
fn folder(address: &str) -> PathBuf {
    PathBuf::from("/sys/bus/pci/devices").join(address)
}

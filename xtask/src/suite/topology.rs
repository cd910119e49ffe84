//! What a guest is told of its IOMMU: an ACPI table on x86, a device tree on Arm.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::set::IOMMU_SLOT;
use crate::command;
use crate::error::{Error, Result};
use crate::setup::emulator::Emulator;
use crate::setup::guest_kernel::Architecture;
use crate::vm::fdt::{HOST_BRIDGE, cells, text};
use crate::vm::machine::Machine;

/// A number that nothing else in the tree has: QEMU counts its own up from 0x8000.
const PHANDLE: u32 = 0x9001;

/// Where the guest's interrupt controller takes messages, if it is not where the daemon expects it:
/// the ITS of QEMU's `virt`.
pub(crate) const fn msi_window(guest: Architecture) -> Option<&'static str> {
    match guest {
        Architecture::Amd64 => None,
        Architecture::Arm64 => Some("0x8080000-0x809ffff"),
    }
}

/// Writes what tells the guest that the functions in `slots` are behind the IOMMU.
///
/// # Errors
/// `daemon` or QEMU refuses, or the file cannot be written.
pub(crate) fn write(
    machine: &Machine<'_>,
    slots: &[u8],
    tools: (&Path, &Emulator),
    dir: &Path,
) -> Result<PathBuf> {
    let (daemon, emulator) = tools;
    match machine.kernel.architecture {
        Architecture::Amd64 => acpi_table(daemon, slots, dir),
        Architecture::Arm64 => device_tree(machine, slots, emulator, dir),
    }
}

/// The table that the daemon's program writes.
fn acpi_table(daemon: &Path, slots: &[u8], dir: &Path) -> Result<PathBuf> {
    let path = dir.join("viot.bin");
    let mut write = Command::new(daemon);
    write.args(["viot", "--iommu", &address(IOMMU_SLOT)]);
    for slot in slots {
        write.args(["--endpoint", &address(*slot)]);
    }
    command::output(write.arg("--output").arg(&path))?;
    Ok(path)
}

/// QEMU's own tree, and in its host bridge the IOMMU and the map that leads to it (Linux,
/// Documentation/devicetree/bindings/pci/pci-iommu.txt and virtio/pci-iommu.yaml).
fn device_tree(
    machine: &Machine<'_>,
    slots: &[u8],
    emulator: &Emulator,
    dir: &Path,
) -> Result<PathBuf> {
    let mut tree = machine.device_tree(emulator, &dir.join("qemu.dtb"))?;
    // requester, IOMMU, id there, how many
    let map = slots.iter().flat_map(|slot| [requester(*slot), PHANDLE, requester(*slot), 1]);
    let iommu = [
        ("compatible", text("virtio,pci-iommu")),
        ("reg", cells(&[requester(IOMMU_SLOT) << 8, 0, 0, 0, 0])),
        ("#iommu-cells", cells(&[1])),
        ("phandle", cells(&[PHANDLE])),
    ];
    let name = format!("iommu@{IOMMU_SLOT:x}");
    tree.add_properties(HOST_BRIDGE, &[("iommu-map", cells(&map.collect::<Vec<_>>()))])?;
    tree.add_below(HOST_BRIDGE, (&name, &iommu))?;
    let path = dir.join("iommu.dtb");
    fs::write(&path, tree.bytes()).map_err(Error::file("write", &path))?;
    Ok(path)
}

/// The PCI address of function 0 in a slot of the root bus.
pub(crate) fn address(slot: u8) -> String {
    format!("00:{slot:02x}.0")
}

/// Its requester ID, which is its endpoint ID.
fn requester(slot: u8) -> u32 {
    u32::from(slot) << 3
}

//! A second IOMMU: a host bridge of its own, with an SMMUv3.
//!
//! QEMU tells of one behind another bridge in ACPI's tables only, and on Arm these take firmware. So the device
//! tree tells of it here: of both bridges, which share the board's configuration space and memory window,
//! and of both IOMMUs (Linux, Documentation/devicetree/bindings: pci/host-generic-pci.yaml,
//! pci/pci-iommu.txt, iommu/arm,smmu-v3.yaml).

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::setup::emulator::Emulator;
use crate::vm::fdt::{Fdt, HOST_BRIDGE, Property, cells, text};
use crate::vm::machine::Machine;

/// QEMU's arguments: the IOMMUs, and one more device for testing them behind the second. That bridge takes
/// nothing but ports; the device is behind one, at 09:00.0.
pub(super) const ARGUMENTS: &[&str] = &[
    "-device",
    "arm-smmuv3,primary-bus=pcie.0,stage=nested",
    "-device",
    "pxb-pcie,id=pcie.1,bus=pcie.0,addr=8,bus_nr=8",
    "-device",
    "arm-smmuv3,primary-bus=pcie.1,stage=nested",
    "-device",
    "pcie-root-port,id=beyond,bus=pcie.1,chassis=1",
    "-device",
    "iommu-testdev,bus=beyond",
];

/// An IOMMU: its node, a number that nothing else in the tree has (QEMU counts its own up from 0x8000), its
/// registers and the first of its four interrupts. QEMU lays them out one behind the other, from the
/// beginning of what it has for such devices.
struct Smmu {
    node: &'static str,
    phandle: u32,
    registers: u32,
    interrupt: u32,
}

const FIRST: Smmu =
    Smmu { node: "smmuv3@c000000", phandle: 0x9001, registers: 0x0c00_0000, interrupt: 0x70 };
const SECOND: Smmu =
    Smmu { node: "smmuv3@c020000", phandle: 0x9002, registers: 0x0c02_0000, interrupt: 0x74 };

/// Bytes of an IOMMU's registers.
const SMMU_BYTES: u32 = 0x2_0000;

/// A shared interrupt, and one that is an edge (interrupt-controller/arm,gic-v3.yaml).
const SHARED: u32 = 0;
const EDGE: u32 = 1;

/// The first bridge has buses 0 to 7, the second 8 to 15. The configuration space, 1 MiB for each, is at
/// 0x40_1000_0000.
const FIRST_BUSES: [u32; 2] = [0, 7];
const FIRST_SPACE: [u32; 4] = [0x40, 0x1000_0000, 0, 0x80_0000];
const SECOND_BUSES: [u32; 2] = [8, 15];
const SECOND_SPACE: [u32; 4] = [0x40, 0x1080_0000, 0, 0x80_0000];

/// Where BARs may be: kind and address on the bus, address, bytes. The first bridge has ports, memory below
/// 4 GiB, but for what the second takes of the board's, and memory above.
const FIRST_WINDOWS: [[u32; 7]; 3] = [
    [0x0100_0000, 0, 0, 0, 0x3eff_0000, 0, 0x1_0000],
    [0x0200_0000, 0, 0x1000_0000, 0, 0x1000_0000, 0, 0x2000_0000],
    [0x0300_0000, 0x80, 0, 0x80, 0, 0x80, 0],
];
const SECOND_WINDOW: [u32; 7] = [0x0200_0000, 0, 0x3000_0000, 0, 0x3000_0000, 0, 0x0800_0000];

/// The second bridge's node, and its PCI domain: Linux gives a bridge out of the tree one of its own.
const BRIDGE: &str = "pcie@30000000";
const PCI_DOMAIN: u32 = 1;

/// Writes the tree for `machine`.
///
/// # Errors
/// QEMU's own is not as expected, or the file cannot be written.
pub(super) fn device_tree(
    machine: &Machine<'_>,
    emulator: &Emulator,
    dir: &Path,
) -> Result<PathBuf> {
    let mut tree = machine.device_tree(emulator, &dir.join("qemu.dtb"))?;
    let second = second_bridge(&tree)?;
    tree.add_behind(HOST_BRIDGE, (BRIDGE, &second))?;
    for smmu in [FIRST, SECOND] {
        tree.add_behind(HOST_BRIDGE, (smmu.node, &smmu.properties()))?;
    }
    tree.add_properties(HOST_BRIDGE, &[FIRST.map()])?;
    tree.overwrite(HOST_BRIDGE, ("bus-range", cells(&FIRST_BUSES)))?;
    tree.overwrite(HOST_BRIDGE, ("reg", cells(&FIRST_SPACE)))?;
    tree.overwrite(HOST_BRIDGE, ("ranges", cells(FIRST_WINDOWS.as_flattened())))?;
    let path = dir.join("twice.dtb");
    fs::write(&path, tree.bytes()).map_err(Error::file("write", &path))?;
    Ok(path)
}

/// As the first, without the wires of old interrupts: nothing behind it has one.
fn second_bridge(tree: &Fdt) -> Result<Vec<Property<'static>>> {
    let mut bridge = vec![
        ("device_type", text("pci")),
        ("reg", cells(&SECOND_SPACE)),
        ("bus-range", cells(&SECOND_BUSES)),
        ("ranges", cells(&SECOND_WINDOW)),
        ("linux,pci-domain", cells(&[PCI_DOMAIN])),
        SECOND.map(),
    ];
    for same in ["compatible", "#address-cells", "#size-cells", "dma-coherent", "msi-map"] {
        bridge.push((same, tree.value(HOST_BRIDGE, same)?.to_vec()));
    }
    Ok(bridge)
}

impl Smmu {
    /// What its node says.
    fn properties(&self) -> Vec<Property<'static>> {
        let interrupts = (self.interrupt..).take(4).flat_map(|number| [SHARED, number, EDGE]);
        vec![
            ("compatible", text("arm,smmu-v3")),
            ("reg", cells(&[0, self.registers, 0, SMMU_BYTES])),
            ("interrupts", cells(&interrupts.collect::<Vec<_>>())),
            ("interrupt-names", text("eventq\0priq\0cmdq-sync\0gerror")),
            ("#iommu-cells", cells(&[1])),
            ("dma-coherent", Vec::new()),
            ("phandle", cells(&[self.phandle])),
        ]
    }

    /// What a bridge says whose requesters are all behind it, by their own numbers.
    fn map(&self) -> Property<'static> {
        ("iommu-map", cells(&[0, self.phandle, 0, 0x1_0000]))
    }
}

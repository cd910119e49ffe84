//! What a VMM does with a device before it shares it.

use std::io;
use std::os::unix::fs::FileExt;

use crate::iommufd::{Device, Iommufd, Place, Space};
use crate::pci::Function;
use crate::ram::{RAM_BYTES, Ram};

/// Where a device's descriptor has its configuration space, and the command register in that (linux/vfio.h;
/// PCI 3.0, 6.2.2).
const COMMAND_AT: u64 = 7 << 40 | 4;

/// A VMM with devices, attached to all of guest memory at its own addresses: what QEMU has when it is
/// ready. What we start inherits all descriptors.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) iommufd: Iommufd,
    pub(crate) devices: Vec<Device>,
    memory: Space,
}

impl Vmm {
    /// Opens and binds `functions`, and attaches them to `ram`.
    ///
    /// # Errors
    /// The kernel has no iommufd, or refuses.
    pub(crate) fn new(functions: &[&Function], ram: &Ram) -> io::Result<Self> {
        let iommufd = Iommufd::open()?;
        let (memory, memfd) = (iommufd.space()?, ram.memfd());
        iommufd.map(memory, Place { file: memfd.file(), at: 0 }, (0, RAM_BYTES))?;
        let with = |function: &&Function| {
            let device = Device::bind(function, &iommufd)?;
            device.attach(memory).map(|()| device)
        };
        let devices = functions.iter().map(with).collect::<io::Result<_>>()?;
        Ok(Self { iommufd, devices, memory })
    }

    /// Has `bytes` bytes of a device's first BAR at `gpa`, as QEMU has when the guest lets the device
    /// decode addresses.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn show_registers(&self, device: usize, gpa: u64, bytes: u64) -> io::Result<()> {
        let registers = self.device(device)?.registers(bytes)?;
        self.iommufd.map(self.memory, Place { file: &registers, at: 0 }, (gpa, bytes))
    }

    /// Ends [`Vmm::show_registers`], as QEMU does when the guest does not let the device decode any more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn hide_registers(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        self.iommufd.unmap(self.memory, (gpa, bytes))
    }

    /// Lets a device decode addresses and master the bus, or neither, by its own descriptor.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn enable(&self, device: usize, enabled: bool) -> io::Result<()> {
        let command: u16 = if enabled { 6 } else { 0 };
        self.device(device)?.file().write_all_at(&command.to_le_bytes(), COMMAND_AT)
    }

    fn device(&self, device: usize) -> io::Result<&Device> {
        self.devices.get(device).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

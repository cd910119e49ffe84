//! The DMA engine as a driver sees it (its registers: `examples/dma-engine`).

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::container::Container;
use crate::sys;

/// Registers in BAR 0.
const SOURCE: u64 = 0x08;
const DESTINATION: u64 = 0x10;
const LENGTH: u64 = 0x18;
const COMMAND: u64 = 0x20;
const STATUS: u64 = 0x24;
const FAULT_ADDRESS: u64 = 0x28;
const FAULT_INFO: u64 = 0x30;

/// A command, and bits of the status.
const COPY: u32 = 1;
const STATUS_DONE: u32 = 1 << 1;
const STATUS_FAULT: u32 = 1 << 2;
const FAULT_WAS_WRITE: u32 = 1;

/// VFIO's indexes of regions and interrupt kinds (linux/vfio.h).
const REGION_BAR0: u32 = 0;
const REGION_CONFIG: u32 = 7;
const IRQ_MSIX: u32 = 2;

/// The command register of a PCI function, and its memory and bus-master bits (PCI 3.0, 6.2.2).
const PCI_COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 6;

/// How long a copy may take until its end is told.
const ENDS_WITHIN: Duration = Duration::from_secs(10);
/// How often the status is looked at where no interrupt tells.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// How a copy ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// All was copied.
    Done,
    /// The access to `address` was refused.
    Fault { address: u64, write: bool },
}

/// The engine, its interrupt wired to an eventfd.
#[derive(Debug)]
pub(crate) struct Engine {
    device: File,
    registers: u64,
    /// None where the kernel has none to give: Linux 7.3 on Arm gives type1 no messages behind an
    /// IOMMU whose MSI window is the hardware's.
    interrupt: Option<OwnedFd>,
}

impl Engine {
    /// Opens the device and makes it ready for DMA.
    ///
    /// # Errors
    /// The group has no such device, or VFIO refuses.
    pub(crate) fn open(container: &Container, address: &str) -> io::Result<Self> {
        let device = container.device(address)?;
        let (registers, _) = sys::region(&device, REGION_BAR0)?;
        let (config, _) = sys::region(&device, REGION_CONFIG)?;
        let mut command = [0; 2];
        device.read_exact_at(&mut command, config + PCI_COMMAND)?;
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        device.write_all_at(&command.to_le_bytes(), config + PCI_COMMAND)?;
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC)?;
        let interrupt = match sys::set_eventfd(&device, IRQ_MSIX, &interrupt) {
            Ok(()) => Some(interrupt),
            Err(error) if cfg!(target_arch = "aarch64") && none_left(&error) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { device, registers, interrupt })
    }

    /// How the end of a copy is told.
    pub(crate) fn tells_by(&self) -> &'static str {
        if self.interrupt.is_some() { "interrupt" } else { "status" }
    }

    /// Copies `length` bytes from one IOVA to another and waits for the end.
    ///
    /// # Errors
    /// The end does not come, or the status makes no sense.
    pub(crate) fn copy(&self, source: u64, destination: u64, length: u64) -> io::Result<Ended> {
        self.write_wide(SOURCE, source)?;
        self.write_wide(DESTINATION, destination)?;
        self.write_wide(LENGTH, length)?;
        self.write(COMMAND, COPY)?;
        self.wait()?;
        match self.read(STATUS)? {
            STATUS_DONE => Ok(Ended::Done),
            status if status & STATUS_FAULT != 0 => {
                let (low, high) = (self.read(FAULT_ADDRESS)?, self.read(FAULT_ADDRESS + 4)?);
                let address = u64::from(high) << 32 | u64::from(low);
                let write = self.read(FAULT_INFO)? & FAULT_WAS_WRITE != 0;
                Ok(Ended::Fault { address, write })
            }
            status => Err(io::Error::other(format!("interrupt with status {status:#x}"))),
        }
    }

    fn wait(&self) -> io::Result<()> {
        let Some(interrupt) = &self.interrupt else { return self.watch() };
        let mut ready = [PollFd::new(interrupt, PollFlags::IN)];
        let within = Timespec::try_from(ENDS_WITHIN).map_err(io::Error::other)?;
        if poll(&mut ready, Some(&within))? == 0 {
            let status = self.read(STATUS)?;
            return Err(io::Error::other(format!("no interrupt; the status is {status:#x}")));
        }
        rustix::io::read(interrupt, &mut [0_u8; 8])?;
        Ok(())
    }

    /// Looks at the status until it tells an end.
    fn watch(&self) -> io::Result<()> {
        let began = Instant::now();
        while self.read(STATUS)? & (STATUS_DONE | STATUS_FAULT) == 0 {
            if began.elapsed() > ENDS_WITHIN {
                return Err(io::Error::other("the copy does not end"));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    fn read(&self, register: u64) -> io::Result<u32> {
        let mut value = [0; 4];
        self.device.read_exact_at(&mut value, self.registers + register)?;
        Ok(u32::from_le_bytes(value))
    }

    fn write(&self, register: u64, value: u32) -> io::Result<()> {
        self.device.write_all_at(&value.to_le_bytes(), self.registers + register)
    }

    fn write_wide(&self, register: u64, value: u64) -> io::Result<()> {
        self.device.write_all_at(&value.to_le_bytes(), self.registers + register)
    }
}

/// True where no interrupt could be had at all.
fn none_left(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOSPC)
}

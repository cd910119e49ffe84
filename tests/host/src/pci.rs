//! A PCI function through sysfs: its driver, bus mastering, its registers.
//!
//! Whoever holds the function's VFIO descriptors, its registers are reached here: the daemon has no
//! part in them.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use crate::wait_until;

/// The command register, and its memory and bus-master bits (PCI 3.0, 6.2.2).
const COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 6;

/// One function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    address: String,
}

impl Function {
    /// The function at `0000:00:04.0`, say.
    pub(crate) fn at(address: &str) -> Self {
        Self { address: address.to_owned() }
    }

    /// Its address.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Gives it to vfio-pci.
    ///
    /// # Errors
    /// There is no such function, or vfio-pci does not take it.
    pub(crate) fn bind(&self) -> io::Result<()> {
        fs::write(self.file("driver_override"), "vfio-pci")?;
        fs::write("/sys/bus/pci/drivers_probe", &self.address)?;
        let driver = self.file("driver");
        let bound = || fs::read_link(&driver).is_ok_and(|path| path.ends_with("vfio-pci"));
        wait_until("vfio-pci takes the function", bound)
    }

    /// Lets it start DMA; who opens it through VFIO takes that away.
    ///
    /// # Errors
    /// Its configuration space cannot be written.
    pub(crate) fn let_dma(&self) -> io::Result<()> {
        let config = OpenOptions::new().read(true).write(true).open(self.file("config"))?;
        let mut command = [0; 2];
        config.read_exact_at(&mut command, COMMAND)?;
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        config.write_all_at(&command.to_le_bytes(), COMMAND)
    }

    /// Its BAR of that number.
    ///
    /// # Errors
    /// It has none, or it cannot be mapped.
    pub(crate) fn bar(&self, index: u8) -> io::Result<Bar> {
        let path = self.file(&format!("resource{index}"));
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let map = MmapRegion::from_file(FileOffset::new(file, 0), bytes);
        Ok(Bar { map: map.map_err(io::Error::other)? })
    }

    /// A file of its folder.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        PathBuf::from(format!("/sys/bus/pci/devices/{}/{name}", self.address))
    }
}

/// A function's registers.
#[derive(Debug)]
pub(crate) struct Bar {
    map: MmapRegion,
}

impl Bar {
    /// Reads a register of 32 bits.
    pub(crate) fn read(&self, at: usize) -> io::Result<u32> {
        // Relaxed: the device orders its registers itself; one load is one access
        self.register(at).map(|register| u32::from_le(register.load(Ordering::Relaxed)))
    }

    /// Writes a register of 32 bits.
    pub(crate) fn write(&self, at: usize, value: u32) -> io::Result<()> {
        // Release: what was written to memory before is there when the device starts
        self.register(at).map(|register| register.store(value.to_le(), Ordering::Release))
    }

    /// Writes a register of 64 bits.
    pub(crate) fn write_wide(&self, at: usize, value: u64) -> io::Result<()> {
        let register: &AtomicU64 = self.map.get_atomic_ref(at).map_err(io::Error::other)?;
        // Release: as in `write`
        register.store(value.to_le(), Ordering::Release);
        Ok(())
    }

    fn register(&self, at: usize) -> io::Result<&AtomicU32> {
        self.map.get_atomic_ref(at).map_err(io::Error::other)
    }
}

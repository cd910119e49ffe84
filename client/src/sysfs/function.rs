//! A PCI function through sysfs.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use super::folder;
use super::sys::Mapping;
use crate::function::Function;

/// The command register, and what a function without a kernel driver needs there: memory, bus
/// mastering, no INTA# (PCI 3.0, 6.2.2).
const COMMAND: u64 = 4;
const MEMORY_MASTER_NO_INTX: u16 = 1 << 1 | 1 << 2 | 1 << 10;

/// Opens the configuration space of a function and turns the function on.
pub(super) fn open_config(address: &str) -> io::Result<File> {
    let config = OpenOptions::new().read(true).write(true).open(folder(address).join("config"))?;
    config.write_all_at(&MEMORY_MASTER_NO_INTX.to_le_bytes(), COMMAND)?;
    Ok(config)
}

/// Maps a BAR.
pub(super) fn open_bar(address: &str, bar: u8) -> io::Result<Mapping> {
    let path = folder(address).join(format!("resource{bar}"));
    Mapping::of_bar(&OpenOptions::new().read(true).write(true).open(path)?)
}

/// A function with registers in BAR 0.
#[derive(Debug)]
pub struct SysfsFunction {
    config: File,
    registers: Mapping,
}

impl SysfsFunction {
    /// Opens the function of this address, as in `0000:00:04.0`, and lets it do DMA.
    ///
    /// # Errors
    /// There is none, or it has a driver.
    pub fn open(address: &str) -> io::Result<Self> {
        Ok(Self { config: open_config(address)?, registers: open_bar(address, 0)? })
    }
}

/// A guest's offset as the mapping counts.
fn offset(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl Function for SysfsFunction {
    fn read(&mut self, at: u64) -> io::Result<u32> {
        self.registers.read(offset(at)?).map(u32::from_le)
    }

    fn write(&mut self, at: u64, value: u32) -> io::Result<()> {
        self.registers.write(offset(at)?, value.to_le())
    }

    fn read_config(&mut self, offset: u16) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.config.read_exact_at(&mut bytes, offset.into())?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn write_config(&mut self, offset: u16, value: u16) -> io::Result<()> {
        self.config.write_all_at(&value.to_le_bytes(), offset.into())
    }
}

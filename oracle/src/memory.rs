//! The emulated machine's memory, shared with it through one file.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::MemfdFlags;
use viommu_pgtable::{PhysAddr, TableMemory};

use crate::error::{Error, Result};

/// A piece of guest-physical memory and where it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// First guest-physical address.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
    /// Offset in the file.
    pub offset: u64,
}

/// All of the machine's RAM.
///
/// Entries are read and written with one system call each. The emulator looks at them only while it
/// carries out a command, and none is under way then.
#[derive(Debug)]
pub struct GuestRam {
    file: File,
    windows: Vec<Window>,
}

impl GuestRam {
    /// Memory of the size of all `windows` together, all zero and sparse.
    ///
    /// # Errors
    /// If the host gives no such file.
    pub fn new(windows: &[Window]) -> Result<Self> {
        let fd = rustix::fs::memfd_create("viommu-oracle", MemfdFlags::CLOEXEC)
            .map_err(|error| Error::io("make the guest's memory")(error.into()))?;
        let file = File::from(fd);
        let bytes = windows.iter().map(|window| window.bytes).sum();
        file.set_len(bytes).map_err(Error::io("size the guest's memory"))?;
        Ok(Self { file, windows: windows.to_vec() })
    }

    /// Bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.windows.iter().map(|window| window.bytes).sum()
    }

    /// A path by which the emulator opens the file, valid while this lives.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        let (process, fd) = (std::process::id(), self.file.as_raw_fd());
        PathBuf::from(format!("/proc/{process}/fd/{fd}"))
    }

    /// Reads `into.len()` bytes; `None` where there is no memory.
    #[must_use]
    pub fn read(&self, at: PhysAddr, into: &mut [u8]) -> Option<()> {
        let offset = self.offset(at, into.len() as u64)?;
        self.file.read_exact_at(into, offset).ok()
    }

    /// Writes bytes; `None` where there is no memory, and nothing is written then.
    #[must_use]
    pub fn write(&self, at: PhysAddr, bytes: &[u8]) -> Option<()> {
        let offset = self.offset(at, bytes.len() as u64)?;
        self.file.write_all_at(bytes, offset).ok()
    }

    /// Stores a 64-bit little-endian word; `None` where there is no memory.
    #[must_use]
    pub fn store(&self, at: PhysAddr, word: u64) -> Option<()> {
        self.write(at, &word.to_le_bytes())
    }

    fn offset(&self, at: PhysAddr, bytes: u64) -> Option<u64> {
        self.windows.iter().find_map(|window| {
            let inside = at.raw().checked_sub(window.start)?;
            (inside.checked_add(bytes)? <= window.bytes).then_some(window.offset + inside)
        })
    }
}

impl TableMemory for GuestRam {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        let mut word = [0; 8];
        self.read(at, &mut word)?;
        Some(u64::from_le_bytes(word))
    }

    /// Nobody else writes meanwhile, so compare and store need not be one step.
    fn compare_exchange(
        &self,
        at: PhysAddr,
        old: u64,
        new: u64,
    ) -> Option<std::result::Result<(), u64>> {
        let found = self.load(at)?;
        if found != old {
            return Some(Err(found));
        }
        self.store(at, new).map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_found_in_its_windows_and_nowhere_else() {
        let low = Window { start: 0, bytes: 0x2000, offset: 0 };
        let high = Window { start: 0x10_0000, bytes: 0x1000, offset: 0x2000 };
        let ram = GuestRam::new(&[low, high]).unwrap();
        assert_eq!(ram.bytes(), 0x3000);
        ram.store(PhysAddr::new(0x10_0ff8), 7).unwrap();
        assert_eq!(ram.load(PhysAddr::new(0x10_0ff8)), Some(7));
        assert_eq!(ram.load(PhysAddr::new(0x1ff8)), Some(0));
        for outside in [0x2000, 0x1ffc, 0x10_1000, 0xf_fff8, u64::MAX - 7] {
            assert_eq!(ram.load(PhysAddr::new(outside)), None, "{outside:#x}");
            assert_eq!(ram.store(PhysAddr::new(outside), 1), None, "{outside:#x}");
        }
    }

    #[test]
    fn compare_exchange_changes_only_what_was_expected() {
        let ram = GuestRam::new(&[Window { start: 0, bytes: 0x1000, offset: 0 }]).unwrap();
        let at = PhysAddr::new(8);
        assert_eq!(ram.compare_exchange(at, 0, 5), Some(Ok(())));
        assert_eq!(ram.compare_exchange(at, 0, 6), Some(Err(5)));
        assert_eq!(ram.load(at), Some(5));
    }
}

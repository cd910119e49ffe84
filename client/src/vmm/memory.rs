//! Guest memory that other processes can map.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::memory::{Memory, PAGE_BYTES};

/// Guest-physical address of the first page that is given out; what lies below is nobody's, so that
/// small numbers that stray lead to nothing of value.
const FIRST_PAGE: u64 = 1 << 20;

/// Guest memory from guest-physical address 0 on, in a file without a name.
#[derive(Debug, Clone)]
pub struct Memfd {
    file: Arc<File>,
    ram: GuestMemoryMmap,
    bytes: u64,
    /// Where the pages begin that are nobody's yet. Relaxed everywhere: it orders nothing else.
    next: Arc<AtomicU64>,
}

impl Memfd {
    /// `bytes` bytes, a multiple of [`PAGE_BYTES`], all zero.
    ///
    /// # Errors
    /// What the system says.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, bytes)?;
        let file = Arc::new(File::from(fd));
        let size = usize::try_from(bytes).map_err(io::Error::other)?;
        let offset = FileOffset::from_arc(Arc::clone(&file), 0);
        let ram = GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), size, Some(offset))])
            .map_err(io::Error::other)?;
        Ok(Self { file, ram, bytes, next: Arc::new(AtomicU64::new(FIRST_PAGE)) })
    }

    /// The file, for others to map.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }
}

fn error(error: GuestMemoryError) -> io::Error {
    io::Error::other(error)
}

impl Memory for Memfd {
    fn page(&self) -> io::Result<u64> {
        let page = self.next.fetch_add(PAGE_BYTES as u64, Ordering::Relaxed);
        let fits = page.checked_add(PAGE_BYTES as u64).is_some_and(|end| end <= self.bytes);
        if fits { Ok(page) } else { Err(io::ErrorKind::OutOfMemory.into()) }
    }

    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        self.ram.read_slice(to, GuestAddress(at)).map_err(error)
    }

    fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        self.ram.write_slice(from, GuestAddress(at)).map_err(error)
    }

    fn load_index(&self, at: u64) -> io::Result<u16> {
        // Acquire: what the device wrote before it stored the index is seen
        self.ram.load(GuestAddress(at), Ordering::Acquire).map(u16::from_le).map_err(error)
    }

    fn store_index(&self, at: u64, value: u16) -> io::Result<()> {
        // Release: the device's load of the index sees what was written before
        self.ram.store(value.to_le(), GuestAddress(at), Ordering::Release).map_err(error)
    }

    fn load_entry(&self, at: u64) -> io::Result<u64> {
        // Acquire: as above, for a walker that set a flag
        self.ram.load(GuestAddress(at), Ordering::Acquire).map(u64::from_le).map_err(error)
    }

    fn store_entry(&self, at: u64, value: u64) -> io::Result<()> {
        // Release: a walker that loads the entry sees the table that it leads to
        self.ram.store(value.to_le(), GuestAddress(at), Ordering::Release).map_err(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_different_until_there_are_no_more() {
        let memory = Memfd::new(FIRST_PAGE + 2 * PAGE_BYTES as u64).unwrap();
        let pages = [memory.page().unwrap(), memory.clone().page().unwrap()];
        assert_eq!(pages, [FIRST_PAGE, FIRST_PAGE + PAGE_BYTES as u64]);
        assert_eq!(memory.page().unwrap_err().kind(), io::ErrorKind::OutOfMemory);
    }

    #[test]
    fn what_lies_past_the_end_is_neither_read_nor_written() {
        let memory = Memfd::new(FIRST_PAGE).unwrap();
        assert!(memory.write(FIRST_PAGE, &[1]).is_err());
        assert!(memory.read(FIRST_PAGE - 1, &mut [0; 2]).is_err());
        assert!(memory.load_entry(u64::MAX - 7).is_err());
    }
}

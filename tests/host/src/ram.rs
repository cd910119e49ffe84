//! The played guest's memory, and where its pages are for the machine.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use viommu_client::vmm::Memfd;
use viommu_client::{Memory, PAGE_BYTES};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// Bytes of it, at guest-physical address 0.
pub(crate) const RAM_BYTES: u64 = 64 << 20;

/// Bytes of a page.
pub(crate) const PAGE: u64 = PAGE_BYTES as u64;

/// An entry of `/proc/self/pagemap` (Documentation/admin-guide/mm/pagemap.rst in Linux): the page is
/// present, and its number.
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Guest memory.
#[derive(Debug)]
pub(crate) struct Ram {
    memfd: Memfd,
    map: MmapRegion,
}

impl Ram {
    /// [`RAM_BYTES`] of zeros.
    ///
    /// # Errors
    /// What the system says.
    pub(crate) fn new() -> io::Result<Self> {
        let memfd = Memfd::new(RAM_BYTES)?;
        let offset = FileOffset::new(memfd.file().try_clone()?, 0);
        let bytes = usize::try_from(RAM_BYTES).map_err(io::Error::other)?;
        let map = MmapRegion::from_file(offset, bytes).map_err(io::Error::other)?;
        Ok(Self { memfd, map })
    }

    /// For a front-end.
    pub(crate) fn memfd(&self) -> Memfd {
        self.memfd.clone()
    }

    /// A page that nobody else has.
    ///
    /// # Errors
    /// There are no more.
    pub(crate) fn page(&self) -> io::Result<u64> {
        self.memfd.page()
    }

    /// What lies at `gpa`.
    pub(crate) fn read(&self, gpa: u64, bytes: usize) -> io::Result<Vec<u8>> {
        let mut content = vec![0; bytes];
        self.memfd.read(gpa, &mut content)?;
        Ok(content)
    }

    /// Replaces what lies at `gpa`.
    pub(crate) fn write(&self, gpa: u64, content: &[u8]) -> io::Result<()> {
        self.memfd.write(gpa, content)
    }

    /// Where `bytes` bytes at `gpa` are in this process, for calls that take addresses.
    ///
    /// # Errors
    /// There is no such memory.
    pub(crate) fn address(&self, gpa: u64, bytes: u64) -> io::Result<u64> {
        let end = gpa.checked_add(bytes).filter(|end| *end <= RAM_BYTES);
        end.ok_or_else(|| io::Error::other("past the end of memory"))?;
        Ok(self.map.as_ptr().addr() as u64 + gpa)
    }

    /// The physical address of the page at `gpa`, as this kernel knows it. The page is written to first,
    /// so that it is there.
    ///
    /// # Errors
    /// The kernel tells nobody, or not us.
    pub(crate) fn physical(&self, gpa: u64) -> io::Result<u64> {
        let at = usize::try_from(gpa).map_err(io::Error::other)?;
        // through this mapping, for pagemap knows only the pages that a mapping was used for
        let byte = self.map.get_ref::<u8>(at).map_err(io::Error::other)?;
        byte.store(byte.load());
        let page = self.address(gpa, PAGE)? / PAGE;
        let mut entry = [0; 8];
        File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, page * 8)?;
        let entry = u64::from_le_bytes(entry);
        if entry & PRESENT == 0 || entry & FRAME == 0 {
            return Err(io::Error::other(format!("no physical address of {gpa:#x}: {entry:#x}")));
        }
        Ok((entry & FRAME) * PAGE)
    }
}

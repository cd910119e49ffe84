//! The device's side of the region: tables, read-only.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use viommu_pgtable::{PhysAddr, TableMemory};

use crate::abi::{self, Arch, RegionHeader};
use crate::shm::{Mapping, Rights, Shared};
use crate::sync::{AtomicU64, Ordering, fence};

/// The region as a device process sees it.
#[derive(Debug)]
pub(crate) struct View {
    mapping: Arc<Mapping>,
    header: Shared<RegionHeader>,
    table_base: u64,
    arch: Arch,
}

impl View {
    /// Maps the region's first `bytes` bytes and checks its header.
    ///
    /// # Errors
    /// `InvalidData` if the header is not what this version writes; otherwise what the kernel says.
    pub(crate) fn new(fd: impl AsFd, bytes: u64) -> io::Result<Self> {
        let len = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidData)?;
        Mapping::check_sealed(&fd)?;
        let mapping = Arc::new(Mapping::map(fd, len, Rights::ReadOnly)?);
        let header: Shared<RegionHeader> = Shared::new(Arc::clone(&mapping))
            .ok_or_else(|| invalid("a region without room for its header".into()))?;
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
        if word(&header.magic) != abi::MAGIC {
            return Err(invalid(format!("region with magic {:#x}", word(&header.magic))));
        }
        if word(&header.version) != u64::from(abi::VERSION) || word(&header.size) != bytes {
            let (version, size) = (word(&header.version), word(&header.size));
            return Err(invalid(format!("region of version {version}, {size:#x} bytes")));
        }
        let arch = word(&header.arch);
        let arch = Arch::from_raw(arch)
            .ok_or_else(|| invalid(format!("region of unknown architecture {arch}")))?;
        let table_base = word(&header.table_base);
        Ok(Self { mapping, header, table_base, arch })
    }

    /// Whose structures the tables are.
    pub(crate) const fn arch(&self) -> Arch {
        self.arch
    }

    /// Where the tables' addresses begin.
    pub(crate) const fn table_base(&self) -> PhysAddr {
        PhysAddr::new(self.table_base)
    }

    /// The epoch word.
    #[inline]
    pub(crate) fn epoch(&self) -> &AtomicU64 {
        &self.header.epoch
    }
}

impl TableMemory for View {
    #[inline]
    fn load(&self, at: PhysAddr) -> Option<u64> {
        let word = self.mapping.word(at.raw().checked_sub(self.table_base)?)?;
        // Relaxed, then a fence: on read-only memory only relaxed loads are defined
        let entry = word.load(Ordering::Relaxed);
        // pairs with the Release in `Region::store`
        fence(Ordering::Acquire);
        Some(entry)
    }
}

fn invalid(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shm;

    /// A sealed region of one page whose header is right but for one word.
    fn but(wrong: impl Fn(&RegionHeader) -> (&AtomicU64, u64)) -> io::Error {
        let fd = shm::create("test", abi::PAGE_LEN).unwrap();
        let mapping = Arc::new(Mapping::map(&fd, abi::PAGE_LEN, Rights::ReadWrite).unwrap());
        let header: Shared<RegionHeader> = Shared::new(mapping).unwrap();
        let put = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
        put(&header.magic, abi::MAGIC);
        put(&header.version, abi::VERSION.into());
        put(&header.arch, Arch::Vtd.raw());
        put(&header.size, abi::PAGE_BYTES);
        shm::seal(&fd, true).unwrap();
        View::new(&fd, abi::PAGE_BYTES).unwrap();
        let (word, value) = wrong(&header);
        put(word, value);
        View::new(&fd, abi::PAGE_BYTES).unwrap_err()
    }

    #[test]
    fn a_region_that_this_version_did_not_write_is_refused_and_said_why() {
        let version = but(|header| (&header.version, 3));
        assert_eq!(version.to_string(), "region of version 3, 0x1000 bytes");
        let size = but(|header| (&header.size, 0x2000));
        assert_eq!(size.to_string(), "region of version 2, 0x2000 bytes");
        let arch = but(|header| (&header.arch, 3));
        assert_eq!(arch.to_string(), "region of unknown architecture 3");
        let magic = but(|header| (&header.magic, 7));
        assert_eq!(magic.to_string(), "region with magic 0x7");
    }
}

//! Pages of this process that devices reach.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::sys::Mapping;
use crate::memory::{Memory, PAGE_BYTES};

/// An entry of `/proc/self/pagemap` (Linux, Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;

/// Pages that are locked, and where they are in the guest's physical memory.
#[derive(Debug, Clone)]
pub struct Pinned(Arc<Pages>);

#[derive(Debug)]
struct Pages {
    mapping: Mapping,
    /// Guest-physical addresses in the order of the mapping.
    frames: Vec<u64>,
    /// Their places in the mapping.
    places: BTreeMap<u64, usize>,
    /// The next page that is nobody's yet. Relaxed everywhere: it orders nothing else.
    next: AtomicUsize,
}

impl Pinned {
    /// `pages` pages of zeroes.
    ///
    /// # Errors
    /// The kernel has no memory, or does not tell where it is: that is for root only.
    pub fn new(pages: usize) -> io::Result<Self> {
        let bytes = pages.checked_mul(PAGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        let mapping = Mapping::locked(bytes)?;
        let frames = frames(&mapping, pages)?;
        let places = frames.iter().copied().zip((0..).step_by(PAGE_BYTES)).collect();
        Ok(Self(Arc::new(Pages { mapping, frames, places, next: AtomicUsize::new(0) })))
    }

    /// Fails if the kernel has moved a page.
    ///
    /// # Errors
    /// See above.
    pub fn check(&self) -> io::Result<()> {
        if frames(&self.0.mapping, self.0.frames.len())? == self.0.frames {
            return Ok(());
        }
        Err(io::Error::other("the kernel has moved a page that devices use"))
    }

    /// Where `bytes` bytes at a guest-physical address are in the mapping.
    fn place(&self, at: u64, bytes: usize) -> io::Result<usize> {
        let nowhere = io::ErrorKind::NotFound;
        let inside = usize::try_from(at % PAGE_BYTES as u64).map_err(io::Error::other)?;
        let start = self.0.places.get(&(at - at % PAGE_BYTES as u64)).ok_or(nowhere)?;
        let fits = inside.checked_add(bytes).is_some_and(|end| end <= PAGE_BYTES);
        if fits { Ok(start + inside) } else { Err(nowhere.into()) }
    }
}

/// The guest-physical address of each page.
fn frames(mapping: &Mapping, pages: usize) -> io::Result<Vec<u64>> {
    let pagemap = File::open("/proc/self/pagemap")?;
    let first = mapping.address() / PAGE_BYTES;
    let frame = |page: usize| {
        let mut entry = [0; 8];
        pagemap.read_exact_at(&mut entry, (first + page) as u64 * 8)?;
        let entry = u64::from_ne_bytes(entry);
        if entry & PRESENT == 0 || entry & FRAME == 0 {
            return Err(io::Error::other("the kernel does not tell where a page is"));
        }
        Ok((entry & FRAME) * PAGE_BYTES as u64)
    };
    (0..pages).map(frame).collect()
}

impl Memory for Pinned {
    fn page(&self) -> io::Result<u64> {
        let next = self.0.next.fetch_add(1, Ordering::Relaxed);
        self.0.frames.get(next).copied().ok_or_else(|| io::ErrorKind::OutOfMemory.into())
    }

    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
        let place = self.place(at, to.len())?;
        for (offset, byte) in (place..).zip(to) {
            *byte = self.0.mapping.read(offset)?;
        }
        Ok(())
    }

    fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
        let place = self.place(at, from.len())?;
        let mut bytes = (place..).zip(from);
        bytes.try_for_each(|(offset, byte)| self.0.mapping.write(offset, *byte))
    }

    fn load_index(&self, at: u64) -> io::Result<u16> {
        self.0.mapping.load_index(self.place(at, 2)?).map(u16::from_le)
    }

    fn store_index(&self, at: u64, value: u16) -> io::Result<()> {
        self.0.mapping.store_index(self.place(at, 2)?, value.to_le())
    }

    fn load_entry(&self, at: u64) -> io::Result<u64> {
        self.0.mapping.load_entry(self.place(at, 8)?).map(u64::from_le)
    }

    fn store_entry(&self, at: u64, value: u64) -> io::Result<()> {
        self.0.mapping.store_entry(self.place(at, 8)?, value.to_le())
    }
}

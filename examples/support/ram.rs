//! The guest's memory as the VMM describes it: pieces that DMA_MAP adds and DMA_UNMAP takes away.
//!
//! A VMM changes it often while firmware runs: all of it goes and comes back in other pieces, some
//! read-only, some (ROMs) without a file behind them. So there are moments without any memory, and a
//! device that is just looking at its ring then has to wait for the next change
//! ([`GuestRam::wait_for_change`]) before it believes that its ring is gone.
//!
//! A thread of the device takes [`GuestRam::read`] for as long as it holds pointers; a change waits
//! for all of them. That is why an answered DMA_UNMAP means that nobody touches the piece any more.

use std::fs::File;
use std::io;
use std::iter::FusedIterator;
use std::sync::{Condvar, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use libc::{MAP_NORESERVE, MAP_SHARED, PROT_READ, PROT_WRITE};
use vfio_user::{DmaMapFlags, DmaUnmapFlags};
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{
    FileOffset, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionMmap, MmapRegion, Permissions, VolatileSlice,
};

/// Most pieces at a time: far above what a VMM makes of its memory slots (QEMU: 509 of them), low
/// enough that a VMM gone wild does not eat this process's mappings (65530 by default).
const MAX_PIECES: usize = 4096;

/// A piece of guest memory, as a DMA_MAP message names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Piece {
    /// Guest-physical address of its first byte.
    pub(crate) address: u64,
    /// Length in bytes.
    pub(crate) bytes: u64,
    /// Where it begins in the file.
    pub(crate) file_offset: u64,
    /// What the device may do there.
    pub(crate) flags: DmaMapFlags,
}

/// Why a change of guest memory was refused; nothing changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RamError {
    /// Nothing, or past the last address.
    #[error("{bytes:#x} bytes at {address:#x} are no range of memory")]
    Range {
        /// First address.
        address: u64,
        /// Length.
        bytes: u64,
    },
    /// Another piece is there.
    #[error("{bytes:#x} bytes at {address:#x} overlap memory that is mapped")]
    Overlap {
        /// First address.
        address: u64,
        /// Length.
        bytes: u64,
    },
    /// A piece would be cut in two.
    #[error("unmapping {bytes:#x} bytes at {address:#x} would cut a piece in two")]
    Split {
        /// First address.
        address: u64,
        /// Length.
        bytes: u64,
    },
    /// The file ends before the piece does: an access would kill this process.
    #[error("the piece ends at {end:#x} of its file, the file at {file_bytes:#x}")]
    FileTooShort {
        /// Where the piece ends in the file.
        end: u64,
        /// How long the file is.
        file_bytes: u64,
    },
    /// Too many pieces.
    #[error("more than {MAX_PIECES} pieces of memory")]
    TooMany,
    /// The kernel refused the mapping.
    #[error("mmap: {0}")]
    Map(#[from] io::Error),
}

/// Guest memory, shared by the threads of a device.
#[derive(Debug, Default)]
pub(crate) struct GuestRam {
    now: RwLock<Ram>,
    /// How often it changed, as [`Ram::generation`], to wait on without holding `now`.
    generation: Mutex<u64>,
    changed: Condvar,
}

/// Guest memory as it is while somebody looks: addresses are guest-physical.
#[derive(Debug, Default)]
pub(crate) struct Ram {
    pieces: GuestMemoryMmap,
    generation: u64,
}

impl GuestRam {
    /// The memory as it is now; it stays so until the value returned is dropped. Take it for a
    /// bounded time only, never across a wait for the VMM.
    pub(crate) fn read(&self) -> RwLockReadGuard<'_, Ram> {
        self.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a piece. One without a file holds no memory that this process could reach: accesses there
    /// fail as if it were absent.
    ///
    /// # Errors
    /// [`RamError`].
    pub(crate) fn map(&self, piece: &Piece, file: Option<File>) -> Result<(), RamError> {
        let Piece { address, bytes, .. } = *piece;
        address
            .checked_add(bytes)
            .filter(|_| bytes != 0)
            .ok_or(RamError::Range { address, bytes })?;
        let Some(file) = file else { return Ok(()) };
        let region = piece.mmap(file)?;

        let mut now = self.write();
        if now.pieces.num_regions() >= MAX_PIECES {
            return Err(RamError::TooMany);
        }
        let pieces = now.pieces.insert_region(region.into());
        now.pieces = pieces.map_err(|_| RamError::Overlap { address, bytes })?;
        self.publish(now);
        Ok(())
    }

    /// Takes away all pieces inside a range, or all there are. Returns when no thread uses them.
    ///
    /// # Errors
    /// [`RamError::Range`], or [`RamError::Split`] if a piece lies only partly inside.
    pub(crate) fn unmap(
        &self,
        flags: DmaUnmapFlags,
        address: u64,
        bytes: u64,
    ) -> Result<(), RamError> {
        if flags.contains(DmaUnmapFlags::UNMAP_ALL) {
            self.clear();
            return Ok(());
        }
        let last = address
            .checked_add(bytes.wrapping_sub(1))
            .filter(|_| bytes != 0)
            .ok_or(RamError::Range { address, bytes })?;
        let mut now = self.write();
        let mut kept = Vec::with_capacity(now.pieces.num_regions());
        for piece in now.pieces.iter() {
            let (first, end) = (piece.start_addr().0, piece.last_addr().0);
            if end < address || last < first {
                kept.push(share(piece)?);
            } else if first < address || last < end {
                return Err(RamError::Split { address, bytes });
            }
        }
        // an empty list is the one error that sorted, disjoint pieces can meet
        now.pieces = GuestMemoryMmap::from_regions(kept).unwrap_or_default();
        self.publish(now);
        Ok(())
    }

    /// Takes all pieces away. Returns when no thread uses them.
    pub(crate) fn clear(&self) {
        let mut now = self.write();
        now.pieces = GuestMemoryMmap::default();
        self.publish(now);
    }

    /// Waits until the memory is no longer that of `generation`, at most `timeout`; true if it is not.
    pub(crate) fn wait_for_change(&self, generation: u64, timeout: Duration) -> bool {
        let seen = self.generation.lock().unwrap_or_else(PoisonError::into_inner);
        let (seen, _) = self
            .changed
            .wait_timeout_while(seen, timeout, |now| *now == generation)
            .unwrap_or_else(PoisonError::into_inner);
        *seen != generation
    }

    fn write(&self) -> RwLockWriteGuard<'_, Ram> {
        self.now.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, mut now: RwLockWriteGuard<'_, Ram>) {
        now.generation += 1;
        let generation = now.generation;
        drop(now);
        *self.generation.lock().unwrap_or_else(PoisonError::into_inner) = generation;
        self.changed.notify_all();
    }
}

impl Piece {
    fn mmap(&self, file: File) -> Result<GuestRegionMmap, RamError> {
        let Self { address, bytes, file_offset, flags } = *self;
        let range = RamError::Range { address, bytes };
        let Some(end) = file_offset.checked_add(bytes) else { return Err(range) };
        let about = file.metadata()?;
        if about.is_file() && about.len() < end {
            return Err(RamError::FileTooShort { end, file_bytes: about.len() });
        }
        let Ok(size) = usize::try_from(bytes) else { return Err(range) };
        let protection = if flags.contains(DmaMapFlags::WRITE) { PROT_WRITE } else { 0 };
        let file = FileOffset::new(file, file_offset);
        let flags = MAP_SHARED | MAP_NORESERVE;
        let region = MmapRegion::build(Some(file), size, PROT_READ | protection, flags)
            .map_err(io::Error::other)?;
        GuestRegionMmap::new(region, GuestAddress(address)).ok_or(range)
    }
}

/// The same piece again: the mapping is shared, not copied.
fn share(piece: &GuestRegionMmap) -> Result<GuestRegionMmap, RamError> {
    let (address, bytes) = (piece.start_addr(), piece.len());
    let range = RamError::Range { address: address.0, bytes };
    GuestRegionMmap::with_arc(piece.get_mmap(), address).ok_or(range)
}

impl Ram {
    /// Changes with each change of the memory.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// The longest slice from `address` on, at most `count` bytes, if `access` is allowed there.
    fn slice(
        &self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<VolatileSlice<'_>, GuestMemoryError> {
        let (piece, offset) = self
            .pieces
            .to_region_addr(address)
            .filter(|(piece, _)| !access.has_write() || piece.prot() & PROT_WRITE != 0)
            .ok_or(GuestMemoryError::InvalidGuestAddress(address))?;
        let left = usize::try_from(piece.len() - offset.0).unwrap_or(usize::MAX);
        piece.get_slice(offset, left.min(count))
    }
}

impl GuestMemory for Ram {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        self.get_slices(address, count, access).is_ok_and(|mut slices| slices.all(|s| s.is_ok()))
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        Ok(RamSlices { ram: self, address: Some(address), left: count, access })
    }
}

/// The slices of a range; ends after the first that fails.
#[derive(Debug)]
struct RamSlices<'a> {
    ram: &'a Ram,
    /// Next address; `None` past the last one.
    address: Option<GuestAddress>,
    left: usize,
    access: Permissions,
}

impl<'a> Iterator for RamSlices<'a> {
    type Item = Result<VolatileSlice<'a>, GuestMemoryError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let slice = match self.address {
            Some(address) => self.ram.slice(address, self.left, self.access),
            None => Err(GuestMemoryError::GuestAddressOverflow),
        };
        let taken = slice.as_ref().map_or(self.left, |slice| slice.len());
        self.left -= taken;
        self.address = u64::try_from(taken)
            .ok()
            .and_then(|taken| self.address?.0.checked_add(taken))
            .map(GuestAddress);
        Some(slice)
    }
}

impl FusedIterator for RamSlices<'_> {}
impl<'a> GuestMemorySliceIterator<'a, ()> for RamSlices<'a> {}

#[cfg(test)]
mod tests;

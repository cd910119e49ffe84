//! The memory that a device sees: vm-memory's `GuestMemory`, by IOVA.

use std::cell::Cell;
use std::io;
use std::iter::FusedIterator;

use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Iova};
use vm_memory::bitmap::BS;
use vm_memory::guest_memory::{
    Error, GuestMemoryBackendSliceIterator, GuestMemorySliceIterator, Result,
};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Permissions, VolatileSlice,
};

use crate::fault::AccessFault;
use crate::pieces::Pieces;
use crate::reader::Guard;

/// Guest memory `M`, addressed by the IOVAs of one PASID (or untagged), as long as a guard is open.
///
/// virtio-queue's `Queue`, `DescriptorChain`, `Reader` and `Writer` work on it unchanged. An access that
/// is refused is an [`Error::IOError`] with the [`AccessFault`] inside; the daemon is told, and
/// [`fault`](Self::fault) remembers it, because callers between here and the device drop errors.
#[derive(Debug)]
pub struct IovaMemory<'g, M> {
    guard: &'g Guard<'g>,
    pasid: Option<Pasid>,
    memory: &'g M,
    fault: Cell<Option<AccessFault>>,
}

impl<'g, M: GuestMemoryBackend> IovaMemory<'g, M> {
    /// The memory that `pasid` (or untagged traffic) sees, backed by guest memory `memory`.
    #[must_use]
    pub const fn new(guard: &'g Guard<'g>, pasid: Option<Pasid>, memory: &'g M) -> Self {
        Self { guard, pasid, memory, fault: Cell::new(None) }
    }

    /// The first access that was refused, if any was.
    #[must_use]
    pub fn fault(&self) -> Option<AccessFault> {
        self.fault.get()
    }

    fn translate(&self, iova: GuestAddress, len: usize, permissions: Permissions) -> Pieces<'_> {
        let access = match permissions {
            Permissions::No => Access::empty(),
            Permissions::Read => Access::READ,
            Permissions::Write => Access::WRITE,
            Permissions::ReadWrite => Access::RW,
        };
        self.guard.translate(self.pasid, Iova::new(iova.0), len as u64, access)
    }

    #[cold]
    fn refuse(&self, fault: AccessFault) -> Error {
        self.fault.set(self.fault.get().or(Some(fault)));
        // a full ring counts what it drops
        let _counted = self.guard.report(&fault);
        Error::IOError(io::Error::new(io::ErrorKind::PermissionDenied, fault))
    }
}

impl<M: GuestMemoryBackend> GuestMemory for IovaMemory<'_, M> {
    type PhysicalMemory = M;
    type Bitmap = <M::R as GuestMemoryRegion>::B;

    /// A question, not an access: nothing is reported.
    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.translate(addr, count, access).all(|piece| {
            piece.is_ok_and(|piece| {
                let len = usize::try_from(piece.len);
                len.is_ok_and(|len| self.memory.check_range(GuestAddress(piece.gpa.raw()), len))
            })
        })
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        Ok(Slices { memory: self, pieces: self.translate(addr, count, access), piece: None })
    }
}

/// The slices of an access: those of each piece in turn, which may lie in several regions of `M`.
#[derive(Debug)]
struct Slices<'a, M: GuestMemoryBackend> {
    memory: &'a IovaMemory<'a, M>,
    pieces: Pieces<'a>,
    piece: Option<GuestMemoryBackendSliceIterator<'a, M>>,
}

impl<'a, M: GuestMemoryBackend> Iterator for Slices<'a, M> {
    type Item = Result<VolatileSlice<'a, BS<'a, <M::R as GuestMemoryRegion>::B>>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(slice) = self.piece.as_mut().and_then(Iterator::next) {
                if slice.is_err() {
                    self.pieces.end();
                }
                return Some(slice);
            }
            let piece = match self.pieces.next()? {
                Ok(piece) => piece,
                Err(fault) => return Some(Err(self.memory.refuse(fault))),
            };
            let Ok(len) = usize::try_from(piece.len) else {
                self.pieces.end();
                return Some(Err(Error::GuestAddressOverflow));
            };
            self.piece = Some(self.memory.memory.get_slices(GuestAddress(piece.gpa.raw()), len));
        }
    }
}

impl<M: GuestMemoryBackend> FusedIterator for Slices<'_, M> {}

impl<'a, M: GuestMemoryBackend> GuestMemorySliceIterator<'a, BS<'a, <M::R as GuestMemoryRegion>::B>>
    for Slices<'a, M>
{
}

//! The memory that a device sees: vm-memory's `GuestMemory`, by IOVA.

use std::cell::Cell;
use std::io;
use std::iter::FusedIterator;

use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Iova};
use vm_memory::bitmap::{BS, BitmapSlice};
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

use crate::fault::AccessFault;
use crate::guest_tables::GuestTables;
use crate::pieces::{Piece, Pieces};
use crate::reader::Guard;

/// Guest memory `M`, addressed by the IOVAs of one PASID (or untagged), as long as a guard is open.
///
/// Tables that the guest has bound are read from `M`, too.
///
/// `M` is asked with the permissions of the access, so that memory which the VMM gives read-only
/// can refuse writes that a mapping allows.
///
/// virtio-queue's `Queue`, `DescriptorChain`, `Reader` and `Writer` work on it unchanged. An access
/// that is refused is an [`Error::IOError`] with the [`AccessFault`] inside; the daemon is told,
/// and [`fault`](Self::fault) remembers it, because callers between here and the device drop
/// errors.
#[derive(Debug)]
pub struct IovaMemory<'g, M> {
    guard: &'g Guard<'g>,
    pasid: Option<Pasid>,
    memory: &'g M,
    tables: GuestTables<'g, M>,
    fault: Cell<Option<AccessFault>>,
}

impl<'g, M: GuestMemory> IovaMemory<'g, M> {
    /// The memory that `pasid` (or untagged traffic) sees, backed by guest memory `memory`.
    #[must_use]
    pub const fn new(guard: &'g Guard<'g>, pasid: Option<Pasid>, memory: &'g M) -> Self {
        let tables = GuestTables::new(memory);
        Self { guard, pasid, memory, tables, fault: Cell::new(None) }
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
        let iova = Iova::new(iova.0);
        self.guard.translate_with(&self.tables, self.pasid, iova, len as u64, access)
    }

    #[cold]
    fn refuse(&self, fault: AccessFault) -> Error {
        self.fault.set(self.fault.get().or(Some(fault)));
        // a full ring counts what it drops
        let _counted = self.guard.report(&fault);
        Error::IOError(io::Error::new(io::ErrorKind::PermissionDenied, fault))
    }
}

impl<M: GuestMemory> GuestMemory for IovaMemory<'_, M> {
    type PhysicalMemory = M::PhysicalMemory;
    type Bitmap = M::Bitmap;

    /// A question, not an access: nothing is reported.
    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.translate(addr, count, access).all(|piece| {
            let Ok(Ok((gpa, len))) = piece.map(|piece| in_memory(&piece)) else { return false };
            self.memory.check_range(gpa, len, access)
        })
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        let pieces = self.translate(addr, count, access);
        let open = move |piece| match piece {
            Ok(piece) => {
                let (gpa, len) = in_memory(&piece)?;
                self.memory.get_slices(gpa, len, access)
            }
            Err(fault) => Err(self.refuse(fault)),
        };
        Ok(Slices { pieces, open, piece: None, ended: false })
    }
}

/// A piece in guest memory's own terms.
fn in_memory(piece: &Piece<'_>) -> Result<(GuestAddress, usize)> {
    let len = usize::try_from(piece.len).map_err(|_| Error::GuestAddressOverflow)?;
    Ok((GuestAddress(piece.gpa.raw()), len))
}

/// The slices of an access: those of each piece in turn, which may lie in several regions of guest
/// memory. An error ends it.
struct Slices<P, F, I> {
    pieces: P,
    open: F,
    piece: Option<I>,
    ended: bool,
}

impl<'a, B, P, F, I> Iterator for Slices<P, F, I>
where
    B: BitmapSlice,
    P: Iterator,
    F: FnMut(P::Item) -> Result<I>,
    I: Iterator<Item = Result<VolatileSlice<'a, B>>>,
{
    type Item = Result<VolatileSlice<'a, B>>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            if let Some(slice) = self.piece.as_mut().and_then(Iterator::next) {
                self.ended = slice.is_err();
                return Some(slice);
            }
            match (self.open)(self.pieces.next()?) {
                Ok(piece) => self.piece = Some(piece),
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

impl<'a, B, P, F, I> FusedIterator for Slices<P, F, I>
where
    B: BitmapSlice,
    P: FusedIterator,
    F: FnMut(P::Item) -> Result<I>,
    I: Iterator<Item = Result<VolatileSlice<'a, B>>>,
{
}

impl<'a, B, P, F, I> GuestMemorySliceIterator<'a, B> for Slices<P, F, I>
where
    B: BitmapSlice,
    P: FusedIterator,
    F: FnMut(P::Item) -> Result<I>,
    I: Iterator<Item = Result<VolatileSlice<'a, B>>>,
{
}

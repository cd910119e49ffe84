//! What a translation yields.

use std::fmt;
use std::iter::FusedIterator;
use std::marker::PhantomData;

use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Iova, PhysAddr, TableMemory};

use crate::cache::Wanted;
use crate::fault::{AccessFault, FaultReason};
use crate::path::Leaf;
use crate::reader::{Guard, Reader};

/// Output addresses in a row. Good while the guard is open that it was translated under.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece<'g> {
    /// Where it begins.
    pub gpa: PhysAddr,
    /// Bytes, at least 1.
    pub len: u64,
    guard: PhantomData<&'g Guard<'g>>,
}

/// Whose access it is, and what it does.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'g> {
    pub(crate) reader: &'g Reader,
    /// Where the guest's tables are.
    pub(crate) guest: &'g dyn TableMemory,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) access: Access,
}

impl Asked<'_> {
    #[inline]
    fn leaf(&self, iova: u64) -> Result<Leaf, FaultReason> {
        let Self { pasid, access, .. } = *self;
        self.reader.leaf(self.guest, Wanted { pasid, iova, access })
    }
}

impl fmt::Debug for Asked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pasid, access, .. } = self;
        f.debug_struct("Asked")
            .field("pasid", pasid)
            .field("access", access)
            .finish_non_exhaustive()
    }
}

/// The pieces that a range of IOVAs leads to; see [`Guard::translate`].
#[derive(Debug)]
pub struct Pieces<'g> {
    asked: Asked<'g>,
    iova: u64,
    /// Bytes not yet yielded.
    left: u64,
    /// What follows the piece that was yielded last, found while looking how far it goes. A fault
    /// is not kept: whoever asks for what comes next meets it again.
    ahead: Option<Leaf>,
    /// The range runs past the last address.
    wraps: bool,
    guard: PhantomData<&'g Guard<'g>>,
}

impl<'g> Pieces<'g> {
    #[inline]
    pub(crate) fn new(asked: Asked<'g>, iova: u64, len: u64) -> Self {
        let wraps = len != 0 && iova.checked_add(len - 1).is_none();
        Self { asked, iova, left: len, ahead: None, wraps, guard: PhantomData }
    }

    /// Ends the iteration with a fault at the address that comes next.
    #[cold]
    fn fault(&mut self, reason: FaultReason) -> AccessFault {
        self.left = 0;
        let Asked { pasid, access, .. } = self.asked;
        AccessFault { pasid, iova: Iova::new(self.iova), access, reason }
    }

    /// Bytes of `leaf` from the current address on, within what is asked for.
    #[inline]
    fn bytes_in(&self, leaf: &Leaf) -> u64 {
        let page = 1u64 << leaf.size_lg2;
        self.left.min(page - (self.iova & (page - 1)))
    }

    #[inline]
    fn advance(&mut self, bytes: u64) {
        self.left -= bytes;
        // past the last address only when nothing is left
        self.iova = self.iova.wrapping_add(bytes);
    }
}

impl<'g> Iterator for Pieces<'g> {
    type Item = Result<Piece<'g>, AccessFault>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let first = match self.ahead.take() {
            Some(leaf) => leaf,
            None if self.wraps => return Some(Err(self.fault(FaultReason::OutOfRange))),
            None => match self.asked.leaf(self.iova) {
                Ok(leaf) => leaf,
                Err(reason) => return Some(Err(self.fault(reason))),
            },
        };
        let mut len = self.bytes_in(&first);
        self.advance(len);
        while self.left != 0 {
            let Ok(leaf) = self.asked.leaf(self.iova) else { break };
            if Some(leaf.oa) != first.oa.checked_add(len) {
                self.ahead = Some(leaf);
                break;
            }
            let more = self.bytes_in(&leaf);
            self.advance(more);
            len += more;
        }
        Some(Ok(Piece { gpa: PhysAddr::new(first.oa), len, guard: PhantomData }))
    }
}

impl FusedIterator for Pieces<'_> {}

//! One descriptor chain, taken apart: what the guest wrote, and where the answer goes.
//!
//! Everything is read once. The readable part is copied before anyone looks at it; the places of the
//! writable part are noted, and checked to lie in guest memory, before a request takes effect. So a
//! guest that changes a chain under our hands changes only what it reads itself.

use virtio_queue::desc::split::Descriptor;
use vm_memory::GuestAddress;

use super::memory::View;
use super::ring::{Parts, Table};
use crate::protocol::MAX_READABLE_BYTES;

/// Bytes of a descriptor, of which an indirect table holds a whole number (virtio 1.4, 2.7.5.3).
const DESCRIPTOR_BYTES: u32 = 16;

/// Why a chain is no request. Its buffer is left untouched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadChain {
    /// An index outside the table; a table inside a table, of odd length, or not in one region of
    /// memory; more than 2^32 bytes.
    #[error("the descriptors lead nowhere")]
    Broken,
    /// virtio 1.4, 2.7.4.2: readable descriptors come first.
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// An address that is no guest memory.
    #[error("{bytes:#x} bytes at {address:#x} are not guest memory")]
    Outside {
        /// First byte.
        address: u64,
        /// Length of the descriptor.
        bytes: u32,
    },
    /// virtio 1.4, 2.7.5.3.1: a chain is no longer than the queue. A loop, too.
    #[error("more than {0} descriptors")]
    TooLong(u16),
}

/// Where a piece of the writable part lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    address: GuestAddress,
    bytes: u32,
}

/// The parts of a chain. Kept and used again for the next chain, so that no request allocates.
#[derive(Debug)]
pub(super) struct Buffer {
    readable: [u8; MAX_READABLE_BYTES],
    readable_bytes: u32,
    writable: Vec<Piece>,
    writable_bytes: u32,
}

impl Buffer {
    /// An empty buffer.
    pub(super) fn new() -> Self {
        Self {
            readable: [0; MAX_READABLE_BYTES],
            readable_bytes: 0,
            writable: Vec::new(),
            writable_bytes: 0,
        }
    }

    /// Takes the chain at `head` apart.
    ///
    /// # Errors
    /// [`BadChain`]; the buffer holds nothing useful then.
    pub(super) fn load(&mut self, head: u16, parts: &Parts<'_>) -> Result<(), BadChain> {
        self.readable_bytes = 0;
        self.writable.clear();
        self.writable_bytes = 0;
        let limit = parts.size();
        let (mut table, mut index, mut total) = (parts.table, head, 0_u32);
        let mut indirect = false;
        let mut left = limit;
        loop {
            let descriptor = table.get(index).ok_or(BadChain::Broken)?;
            if descriptor.refers_to_indirect_table() {
                if std::mem::replace(&mut indirect, true) {
                    return Err(BadChain::Broken);
                }
                (table, index) = (indirect_table(&descriptor, &parts.view)?, 0);
                continue;
            }
            left = left.checked_sub(1).ok_or(BadChain::TooLong(limit))?;
            total = total.checked_add(descriptor.len()).ok_or(BadChain::Broken)?;
            self.add(&descriptor, &parts.view)?;
            if !descriptor.has_next() {
                return Ok(());
            }
            index = descriptor.next();
        }
    }

    /// What the guest wrote, cut at [`MAX_READABLE_BYTES`]: what follows means nothing.
    pub(super) fn readable(&self) -> &[u8] {
        let copied = usize::try_from(self.readable_bytes).unwrap_or(MAX_READABLE_BYTES);
        self.readable.get(..copied).unwrap_or(&self.readable)
    }

    /// Length of the part that the answer goes to.
    pub(super) fn writable_bytes(&self) -> usize {
        usize::try_from(self.writable_bytes).unwrap_or(usize::MAX)
    }

    /// Writes `bytes` at the start of the writable part. What lies beyond its end is not written.
    pub(super) fn write(&self, view: &View<'_>, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in &self.writable {
            let room = usize::try_from(piece.bytes).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            // Checked by `load` against the same table: it fails only if that check is wrong.
            if !view.write(piece.address, now) {
                log::debug!("an answer at {:#x} could not be written", piece.address.0);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }

    /// Takes note of one descriptor.
    #[inline]
    fn add(&mut self, descriptor: &Descriptor, view: &View<'_>) -> Result<(), BadChain> {
        let (address, bytes) = (descriptor.addr(), descriptor.len());
        let outside = BadChain::Outside { address: address.0, bytes };
        let length = usize::try_from(bytes).map_err(|_| outside)?;
        if descriptor.is_write_only() {
            view.has(address, length).then_some(()).ok_or(outside)?;
            self.writable.push(Piece { address, bytes });
            self.writable_bytes = self.writable_bytes.saturating_add(bytes);
            return Ok(());
        }
        if !self.writable.is_empty() {
            return Err(BadChain::Order);
        }
        let from = self.readable().len();
        let room = self.readable.get_mut(from..).unwrap_or_default();
        let whole = room.len() >= length || view.has(address, length);
        let (now, _) = room.split_at_mut(room.len().min(length));
        if !whole || !view.read(address, now) {
            return Err(outside);
        }
        self.readable_bytes = self.readable_bytes.saturating_add(bytes);
        Ok(())
    }
}

/// The table that a descriptor leads to.
#[inline]
fn indirect_table<'m>(descriptor: &Descriptor, view: &View<'m>) -> Result<Table<'m>, BadChain> {
    let bytes = descriptor.len();
    let entries = bytes / DESCRIPTOR_BYTES;
    if !bytes.is_multiple_of(DESCRIPTOR_BYTES) || entries > u32::from(u16::MAX) {
        return Err(BadChain::Broken);
    }
    let bytes = usize::try_from(bytes).map_err(|_| BadChain::Broken)?;
    view.slice(descriptor.addr(), bytes).map(Table::new).ok_or(BadChain::Broken)
}

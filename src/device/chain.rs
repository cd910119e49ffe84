//! One descriptor chain, taken apart: what the guest wrote, and where the answer goes.
//!
//! Everything is read once. The readable part is copied before anyone looks at it; the places of the
//! writable part are noted, and checked to lie in guest memory, before a request takes effect. So a
//! guest that changes a chain under our hands changes only what it reads itself.

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::protocol::MAX_READABLE_BYTES;

/// Why a chain is no request. Its buffer is left untouched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadChain {
    /// A loop, an index outside the table, a table inside a table, or a table of odd length.
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
    /// virtio 1.4, 2.7.5.3.1: a chain is no longer than the queue.
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

    /// Takes a chain apart; `limit` is the most descriptors it may have.
    ///
    /// # Errors
    /// [`BadChain`]; the buffer holds nothing useful then.
    pub(super) fn load(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        ram: &GuestMemoryMmap,
        limit: u16,
    ) -> Result<(), BadChain> {
        self.readable_bytes = 0;
        self.writable.clear();
        self.writable_bytes = 0;
        let mut unfinished = true;
        let mut left = limit;
        for descriptor in chain {
            left = left.checked_sub(1).ok_or(BadChain::TooLong(limit))?;
            unfinished = descriptor.has_next();
            self.add(&descriptor, ram)?;
        }
        // The iterator ends at whatever it cannot follow, without a word; what it yielded last then
        // still pointed on.
        if unfinished { Err(BadChain::Broken) } else { Ok(()) }
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
    pub(super) fn write(&self, ram: &GuestMemoryMmap, bytes: &[u8]) {
        let mut rest = bytes;
        for piece in &self.writable {
            let room = usize::try_from(piece.bytes).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            // Checked by `load` against the same table: it fails only if that check is wrong.
            if ram.write_slice(now, piece.address).is_err() {
                log::debug!("an answer at {:#x} could not be written", piece.address.0);
            }
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }

    /// Takes note of one descriptor.
    fn add(&mut self, descriptor: &Descriptor, ram: &GuestMemoryMmap) -> Result<(), BadChain> {
        let (address, bytes) = (descriptor.addr(), descriptor.len());
        let outside = BadChain::Outside { address: address.0, bytes };
        let length = usize::try_from(bytes).map_err(|_| outside)?;
        if descriptor.is_write_only() {
            check(ram, address, length).ok_or(outside)?;
            self.writable.push(Piece { address, bytes });
            self.writable_bytes = self.writable_bytes.saturating_add(bytes);
            return Ok(());
        }
        if !self.writable.is_empty() {
            return Err(BadChain::Order);
        }
        let from = self.readable().len();
        let room = self.readable.get_mut(from..).unwrap_or_default();
        if room.len() < length {
            check(ram, address, length).ok_or(outside)?;
        }
        let (now, _) = room.split_at_mut(room.len().min(length));
        ram.read_slice(now, address).map_err(|_| outside)?;
        self.readable_bytes = self.readable_bytes.saturating_add(bytes);
        Ok(())
    }
}

/// `Some` if all of a descriptor's bytes are guest memory.
fn check(ram: &GuestMemoryMmap, address: GuestAddress, length: usize) -> Option<()> {
    GuestMemoryBackend::check_range(ram, address, length).then_some(())
}

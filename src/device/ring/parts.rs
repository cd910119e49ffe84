//! The three parts of a split virtqueue as they lie in guest memory (virtio 1.4, 2.7).

use std::sync::atomic::{Ordering, fence};

use virtio_queue::desc::split::Descriptor;
use vm_memory::{AtomicAccess, Bytes, VolatileMemory, VolatileSlice};

use super::super::memory::View;
use super::RingFault;

/// Alignments of the parts, bytes (virtio 1.4, 2.7).
pub(super) const TABLE_ALIGN: u64 = 16;
/// See [`TABLE_ALIGN`].
pub(super) const AVAILABLE_ALIGN: u64 = 2;
/// See [`TABLE_ALIGN`].
pub(super) const USED_ALIGN: u64 = 4;

/// A descriptor's length.
const DESCRIPTOR_BYTES: usize = 16;
/// Flags and index before the entries of either ring.
const HEADER_BYTES: usize = 4;
/// An entry of the available ring: a head.
const HEAD_BYTES: usize = 2;
/// An entry of the used ring: a head, and the bytes written in the upper half.
const USED_ENTRY_BYTES: usize = 8;
/// `used_event` or `avail_event`, behind the entries.
const EVENT_BYTES: usize = 2;
/// Where flags and index lie in either ring.
const FLAGS_OFFSET: usize = 0;
/// See [`FLAGS_OFFSET`].
const INDEX_OFFSET: usize = 2;

/// Bit 0 of the available ring's flags: the driver wants no interrupt (virtio 1.4, 2.7.6).
const NO_INTERRUPT: u16 = 1;
/// Bit 0 of the used ring's flags: the device wants no kick (virtio 1.4, 2.7.8).
const NO_NOTIFY: u16 = 1;

/// Length of a descriptor table.
pub(super) fn table_bytes(entries: u16) -> usize {
    DESCRIPTOR_BYTES * usize::from(entries)
}

/// Length of an available ring.
pub(super) fn available_bytes(entries: u16) -> usize {
    HEADER_BYTES + HEAD_BYTES * usize::from(entries) + EVENT_BYTES
}

/// Length of a used ring.
pub(super) fn used_bytes(entries: u16) -> usize {
    HEADER_BYTES + USED_ENTRY_BYTES * usize::from(entries) + EVENT_BYTES
}

/// A descriptor table: a queue's, or an indirect one.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct Table<'m> {
    bytes: VolatileSlice<'m>,
}

impl<'m> Table<'m> {
    /// A table that fills `bytes`; what is left behind the last whole descriptor is none.
    pub(in super::super) const fn new(bytes: VolatileSlice<'m>) -> Self {
        Self { bytes }
    }

    /// The descriptor at `index`, read once; `None` past the last.
    #[inline]
    pub(in super::super) fn get(&self, index: u16) -> Option<Descriptor> {
        let offset = DESCRIPTOR_BYTES * usize::from(index);
        self.bytes.get_ref(offset).ok().map(|descriptor| descriptor.load())
    }
}

/// A ring, open for a turn of serving.
#[derive(Debug)]
pub(in super::super) struct Parts<'m> {
    /// The memory around it.
    pub(in super::super) view: View<'m>,
    /// The descriptors.
    pub(in super::super) table: Table<'m>,
    /// The driver's ring.
    pub(super) available: VolatileSlice<'m>,
    /// Ours.
    pub(super) used: VolatileSlice<'m>,
    pub(super) size: u16,
    pub(super) event_idx: bool,
}

impl Parts<'_> {
    /// Entries of the queue.
    pub(in super::super) const fn size(&self) -> u16 {
        self.size
    }

    /// The driver's index. Acquire: pairs with the driver's write barrier between entries and index.
    pub(super) fn available_index(&self) -> Result<u16, RingFault> {
        load(&self.available, INDEX_OFFSET, Ordering::Acquire).map(u16::from_le)
    }

    /// The head in place `index` of the driver's ring, which wraps around. Relaxed: it was written before
    /// the index that [`available_index`](Self::available_index) has seen.
    #[inline]
    pub(super) fn head(&self, index: u16) -> Result<u16, RingFault> {
        let offset = HEADER_BYTES + HEAD_BYTES * usize::from(index % self.size);
        load(&self.available, offset, Ordering::Relaxed).map(u16::from_le)
    }

    /// Writes a used entry, which [`show_used`](Self::show_used) shows.
    #[inline]
    pub(super) fn put_used(&self, index: u16, head: u16, bytes: u32) -> Result<(), RingFault> {
        let entry = u64::from(head) | u64::from(bytes) << 32;
        let offset = HEADER_BYTES + USED_ENTRY_BYTES * usize::from(index % self.size);
        let place = self.used.get_ref::<u64>(offset).map_err(|_| RingFault::Gone)?;
        place.store(entry.to_le());
        Ok(())
    }

    /// Shows the used entries before `index`. Release: pairs with the driver's read barrier between the
    /// index and the entries.
    pub(super) fn show_used(&self, index: u16) -> Result<(), RingFault> {
        store(&self.used, INDEX_OFFSET, index.to_le(), Ordering::Release)
    }

    /// Asks for no kick. By index nothing is to do: the one that was asked for last is past.
    pub(super) fn quiet(&self) -> Result<(), RingFault> {
        if self.event_idx {
            return Ok(());
        }
        // Relaxed: advice, which the driver may see late
        store(&self.used, FLAGS_OFFSET, NO_NOTIFY.to_le(), Ordering::Relaxed)
    }

    /// Asks for a kick when entry `next` comes; says whether it has come already.
    pub(super) fn listen(&self, next: u16) -> Result<bool, RingFault> {
        let (offset, wish) = match self.event_idx {
            true => (HEADER_BYTES + USED_ENTRY_BYTES * usize::from(self.size), next),
            false => (FLAGS_OFFSET, 0),
        };
        // Relaxed: the fence orders it.
        store(&self.used, offset, wish.to_le(), Ordering::Relaxed)?;
        // Pairs with the driver's full barrier between its index and its look at our wish: at least one
        // of us sees what the other wrote.
        fence(Ordering::SeqCst);
        Ok(self.available_index()? != next)
    }

    /// Whether the driver wants an interrupt for the used entries from `old` to before `new`.
    pub(super) fn wants_interrupt(&self, old: u16, new: u16) -> Result<bool, RingFault> {
        // Pairs with the driver's full barrier between saying what it wants and looking for entries: at
        // least one of us sees what the other wrote.
        fence(Ordering::SeqCst);
        // Relaxed: the fence orders it.
        let load = |offset| load(&self.available, offset, Ordering::Relaxed).map(u16::from_le);
        if !self.event_idx {
            return Ok(load(FLAGS_OFFSET)? & NO_INTERRUPT == 0);
        }
        // virtio 1.4, 2.7.7.2: when the index passes what the driver named.
        let event = load(HEADER_BYTES + HEAD_BYTES * usize::from(self.size))?;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }
}

/// A field of a ring. It fails if a region of guest memory is mapped at an odd place.
#[inline]
fn load<T: AtomicAccess>(
    ring: &VolatileSlice<'_>,
    at: usize,
    order: Ordering,
) -> Result<T, RingFault> {
    ring.load(at, order).map_err(|_| RingFault::Gone)
}

/// See [`load`].
#[inline]
fn store<T: AtomicAccess>(
    ring: &VolatileSlice<'_>,
    at: usize,
    value: T,
    order: Ordering,
) -> Result<(), RingFault> {
    ring.store(value, at, order).map_err(|_| RingFault::Gone)
}

//! A split virtqueue whose driver is not trusted, and the chains that come out of it.
//!
//! Each descriptor is read once, into a list of its own: checks and copies work on that list, so a
//! driver that rewrites a descriptor in between changes nothing.

use std::sync::atomic::Ordering;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory};

/// Most buffers in a chain: a request's header, its segments, its status.
pub(crate) const MAX_BUFFERS: usize = super::request::MAX_SEGMENTS as usize + 2;

/// Where the driver put a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RingSetup {
    /// Number of descriptors, a power of two.
    pub(crate) size: u16,
    /// Address of the descriptor table.
    pub(crate) descriptors: u64,
    /// Address of the available ring.
    pub(crate) available: u64,
    /// Address of the used ring.
    pub(crate) used: u64,
}

/// Why a queue cannot go on; its state is as before the call that said so.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RingError {
    /// Sizes, alignments or indexes that are never right, or memory that is not there.
    #[error("{0}")]
    Queue(#[from] virtio_queue::Error),
    /// An available entry could not be read.
    #[error("the available ring cannot be read")]
    Available,
    /// A chain is cut short, too long or out of order.
    #[error("broken descriptor chain at {head}: {reason}")]
    Chain {
        /// Its first descriptor.
        head: u16,
        /// What is wrong with it.
        reason: &'static str,
    },
}

/// One queue, driven from one thread.
#[derive(Debug)]
pub(crate) struct Ring {
    queue: Queue,
}

/// A request's buffers, in the driver's order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Its first descriptor: what goes into the used ring.
    pub(crate) head: u16,
    /// What the device reads.
    pub(crate) readable: Buffers,
    /// What the device writes.
    pub(crate) writable: Buffers,
}

/// Buffers one behind the other, as one range of bytes.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Buffers(Vec<(GuestAddress, u32)>);

impl Ring {
    /// The queue at `setup`, nothing of it taken yet.
    ///
    /// # Errors
    /// [`RingError::Queue`] for sizes and alignments that the standard forbids.
    pub(crate) fn new(setup: &RingSetup, event_idx: bool) -> Result<Self, RingError> {
        let mut queue = Queue::new(setup.size)?;
        queue.try_set_size(setup.size)?;
        queue.try_set_desc_table_address(GuestAddress(setup.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(setup.available))?;
        queue.try_set_used_ring_address(GuestAddress(setup.used))?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(Self { queue })
    }

    /// Takes the next chain, if there is one.
    ///
    /// # Errors
    /// [`RingError`]; the chain is still there.
    pub(crate) fn pop<M: GuestMemory>(&mut self, memory: &M) -> Result<Option<Chain>, RingError> {
        // asked first: the iterator has one answer for "no entry" and "no readable entry", and asking
        // afterwards would take an entry that came meanwhile for the latter
        if self.queue.avail_idx(memory, Ordering::Acquire)?.0 == self.queue.next_avail() {
            return Ok(None);
        }
        let chain = self.queue.iter(memory)?.next().ok_or(RingError::Available)?;
        let head = chain.head_index();
        Chain::collect(head, chain).map(Some).inspect_err(|_| self.queue.go_to_previous_position())
    }

    /// Gives a chain back, `written` bytes of it written; true if the driver wants an interrupt.
    ///
    /// # Errors
    /// [`RingError`]; the chain is not given back.
    pub(crate) fn push<M: GuestMemory>(
        &mut self,
        memory: &M,
        head: u16,
        written: u32,
    ) -> Result<bool, RingError> {
        let before = self.queue.next_used();
        self.queue
            .add_used(memory, head, written)
            .and_then(|()| self.queue.needs_notification(memory))
            .inspect_err(|_| self.queue.set_next_used(before))
            .map_err(RingError::from)
    }

    /// Asks the driver for no notifications while the queue is being worked on.
    ///
    /// # Errors
    /// [`RingError::Queue`].
    pub(crate) fn disarm<M: GuestMemory>(&mut self, memory: &M) -> Result<(), RingError> {
        Ok(self.queue.disable_notification(memory)?)
    }

    /// Asks the driver for a notification of the next chain; true if one is there already, which
    /// then has to be served first: nobody will notify.
    ///
    /// # Errors
    /// [`RingError::Queue`].
    pub(crate) fn rearm<M: GuestMemory>(&mut self, memory: &M) -> Result<bool, RingError> {
        Ok(self.queue.enable_notification(memory)?)
    }
}

impl Chain {
    fn collect(
        head: u16,
        descriptors: impl Iterator<Item = virtio_queue::desc::split::Descriptor>,
    ) -> Result<Self, RingError> {
        let broken = |reason| RingError::Chain { head, reason };
        let mut chain = Self { head, ..Self::default() };
        let mut complete = false;
        for (n, descriptor) in descriptors.enumerate() {
            if n == MAX_BUFFERS {
                return Err(broken("too many buffers"));
            }
            complete = !descriptor.has_next();
            let buffer = (descriptor.addr(), descriptor.len());
            if descriptor.is_write_only() {
                chain.writable.0.push(buffer);
            } else if chain.writable.0.is_empty() {
                chain.readable.0.push(buffer);
            } else {
                return Err(broken("a readable buffer behind a writable one"));
            }
        }
        // the iterator just ends at an unreadable descriptor, a loop, or a bad indirect table
        if complete { Ok(chain) } else { Err(broken("it does not end")) }
    }
}

impl Buffers {
    /// Length of all, in bytes.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.0.iter().map(|(_, bytes)| u64::from(*bytes)).sum()
    }

    /// Copies `to.len()` bytes out of guest memory, from `offset` on.
    ///
    /// # Errors
    /// If there are fewer bytes or some are not accessible; `to` holds rubbish then.
    pub(crate) fn read<M: GuestMemory>(
        &self,
        memory: &M,
        offset: u64,
        to: &mut [u8],
    ) -> Result<(), Inaccessible> {
        let mut rest = to;
        for (address, bytes) in self.behind(offset) {
            let (part, behind) = rest.split_at_mut(bytes.min(rest.len()));
            memory.read_slice(part, address).map_err(|_| Inaccessible)?;
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(Inaccessible) }
    }

    /// Copies `from` into guest memory, from `offset` on.
    ///
    /// # Errors
    /// If there is less room or some is not accessible; a part may be written then.
    pub(crate) fn write<M: GuestMemory>(
        &self,
        memory: &M,
        offset: u64,
        from: &[u8],
    ) -> Result<(), Inaccessible> {
        let mut rest = from;
        for (address, bytes) in self.behind(offset) {
            let (part, behind) = rest.split_at(bytes.min(rest.len()));
            memory.write_slice(part, address).map_err(|_| Inaccessible)?;
            rest = behind;
            if rest.is_empty() {
                break;
            }
        }
        if rest.is_empty() { Ok(()) } else { Err(Inaccessible) }
    }

    /// What lies behind the first `offset` bytes. A part that would begin past the last address ends
    /// the list.
    fn behind(&self, offset: u64) -> impl Iterator<Item = (GuestAddress, usize)> {
        let mut skip = offset;
        let parts = self.0.iter().filter_map(move |(address, bytes)| {
            let bytes = u64::from(*bytes);
            let skipped = skip.min(bytes);
            skip -= skipped;
            (skipped < bytes).then_some((address.0, skipped, bytes - skipped))
        });
        parts.map_while(|(address, skipped, bytes)| {
            let at = GuestAddress(address.checked_add(skipped)?);
            Some((at, usize::try_from(bytes).ok()?))
        })
    }
}

/// A buffer is too short, or lies where the device has no access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inaccessible;

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU16;
    use std::thread;

    use vm_memory::GuestMemoryMmap;

    use super::*;

    const SETUP: RingSetup =
        RingSetup { size: 4, descriptors: 0x1000, available: 0x2000, used: 0x3000 };

    /// A ring whose every available entry is descriptor 0: one buffer that the device reads.
    fn memory() -> GuestMemoryMmap {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0x1000), 0x4000)]).unwrap();
        memory.write_obj(0x4000u64, GuestAddress(0x1000)).unwrap();
        memory.write_obj(16u32, GuestAddress(0x1008)).unwrap();
        memory
    }

    fn publish(memory: &GuestMemoryMmap, index: u16) {
        memory.store(index, GuestAddress(0x2002), Ordering::Release).unwrap();
    }

    #[test]
    fn chains_are_taken_once_and_in_order() {
        let memory = memory();
        let mut ring = Ring::new(&SETUP, true).unwrap();
        assert_eq!(ring.pop(&memory).unwrap(), None);
        publish(&memory, 2);
        let readable = Buffers(vec![(GuestAddress(0x4000), 16)]);
        let chain = Chain { head: 0, readable, writable: Buffers::default() };
        assert_eq!(ring.pop(&memory).unwrap(), Some(chain));
        assert!(ring.pop(&memory).unwrap().is_some());
        assert_eq!(ring.pop(&memory).unwrap(), None);
    }

    #[test]
    fn an_entry_that_comes_while_the_ring_is_looked_at_is_no_error() {
        const ENTRIES: u16 = 20_000;
        let memory = memory();
        // Relaxed on both sides: it only paces the driver, the ring's index orders the rest
        let taken = AtomicU16::new(0);
        thread::scope(|scope| {
            scope.spawn(|| {
                for index in 1..=ENTRIES {
                    while taken.load(Ordering::Relaxed) + 1 < index {
                        std::hint::spin_loop();
                    }
                    publish(&memory, index);
                }
            });
            let mut ring = Ring::new(&SETUP, true).unwrap();
            while taken.load(Ordering::Relaxed) < ENTRIES {
                match ring.pop(&memory) {
                    Ok(None) => {}
                    Ok(Some(_)) => _ = taken.fetch_add(1, Ordering::Relaxed),
                    Err(error) => {
                        // lets the driver end
                        taken.store(ENTRIES, Ordering::Relaxed);
                        panic!("an entry that just came was taken for an unreadable one: {error}");
                    }
                }
            }
        });
    }

    #[test]
    fn a_chain_that_fails_is_still_there() {
        let memory = memory();
        let mut ring = Ring::new(&SETUP, true).unwrap();
        // the buffer goes on at a descriptor that does not exist
        memory.write_obj(1u16, GuestAddress(0x100c)).unwrap();
        memory.write_obj(4u16, GuestAddress(0x100e)).unwrap();
        publish(&memory, 1);
        let broken = |ring: &mut Ring| ring.pop(&memory).unwrap_err().to_string();
        assert_eq!(broken(&mut ring), "broken descriptor chain at 0: it does not end");
        assert_eq!(broken(&mut ring), "broken descriptor chain at 0: it does not end");
        memory.write_obj(0u16, GuestAddress(0x100c)).unwrap();
        assert!(ring.pop(&memory).unwrap().is_some());
    }

    #[test]
    fn sizes_and_alignments_that_the_standard_forbids_are_refused() {
        let bad = [
            RingSetup { size: 0, ..SETUP },
            RingSetup { size: 3, ..SETUP },
            RingSetup { descriptors: 0x1008, ..SETUP },
            RingSetup { available: 0x2001, ..SETUP },
            RingSetup { used: 0x3002, ..SETUP },
        ];
        assert!(bad.iter().all(|setup| Ring::new(setup, true).is_err()));
    }
}

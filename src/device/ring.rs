//! One virtqueue: its set-up by the front-end, and the two halves of serving it.

use std::fs::File;
use std::io;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::OFlags;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError, GuestMemoryMmap};

use super::memory::GuestRam;
use super::poll::Watched;

/// Largest queue that is served: what vhost-user front-ends use at most (QEMU's limit for split rings).
pub(super) const MAX_QUEUE_SIZE: u16 = 1024;

/// Bit 0 of the available ring's flags: the driver wants no interrupt (virtio 1.4, 2.7.6).
const NO_INTERRUPT: u16 = 1;

/// Why a set-up message is refused; the ring is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum SetupError {
    /// Not a power of two from 1 to [`MAX_QUEUE_SIZE`].
    #[error("queue size {0} is not a power of two up to {MAX_QUEUE_SIZE}")]
    Size(u32),
    /// More than 16 bits.
    #[error("ring base {0:#x} has more than 16 bits")]
    Base(u32),
    /// Only a stopped ring can be given this.
    #[error("the ring is in use")]
    InUse,
}

/// What makes a ring useless until the driver sets it up again.
#[derive(Debug, thiserror::Error)]
pub(super) enum RingFault {
    /// An address of the ring that lies in no region of the memory table, or is not aligned.
    #[error("the {part} at {user:#x} of the front-end is not usable")]
    Unreachable {
        /// Which of the three.
        part: &'static str,
        /// The front-end's address.
        user: u64,
    },
    /// A head that names no descriptor.
    #[error("head {head} in a queue of {size}")]
    Head {
        /// What the driver put into the ring.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// An index that jumps, or memory that is not there any more.
    #[error(transparent)]
    Queue(#[from] virtio_queue::Error),
}

/// Where the three parts of a ring lie, in the front-end's addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RingAddresses {
    /// Descriptor table.
    pub(super) descriptors: u64,
    /// Used ring.
    pub(super) used: u64,
    /// Available ring.
    pub(super) available: u64,
}

/// How far a ring has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Being set up, or stopped.
    Stopped,
    /// Served whenever it is enabled.
    Started,
    /// Unusable until it is stopped and set up again.
    Broken,
}

/// One virtqueue.
#[derive(Debug)]
pub(super) struct Ring {
    name: &'static str,
    queue: Queue,
    addresses: Option<RingAddresses>,
    kick: Option<Watched<File>>,
    call: Option<File>,
    error: Option<File>,
    enabled: bool,
    state: State,
}

impl Ring {
    /// A ring that nobody has set up. `name` is for the log.
    pub(super) fn new(name: &'static str) -> Self {
        Self {
            name,
            // A power of two within the crate's limit: cannot fail; the default serves nothing.
            queue: Queue::new(MAX_QUEUE_SIZE).unwrap_or_default(),
            addresses: None,
            kick: None,
            call: None,
            error: None,
            enabled: false,
            state: State::Stopped,
        }
    }

    /// SET_VRING_NUM.
    pub(super) fn set_size(&mut self, size: u32) -> Result<(), SetupError> {
        self.must_be_stopped()?;
        let small = u16::try_from(size).map_err(|_| SetupError::Size(size))?;
        self.queue.try_set_size(small).map_err(|_| SetupError::Size(size))
    }

    /// SET_VRING_BASE: where the next available entry will be.
    pub(super) fn set_base(&mut self, base: u32) -> Result<(), SetupError> {
        self.must_be_stopped()?;
        let base = u16::try_from(base).map_err(|_| SetupError::Base(base))?;
        self.queue.set_next_avail(base);
        self.queue.set_next_used(base);
        Ok(())
    }

    /// SET_VRING_ADDR. They count from the next [`start`](Self::start) or [`place`](Self::place) on.
    pub(super) fn set_addresses(&mut self, addresses: RingAddresses) {
        self.addresses = Some(addresses);
    }

    /// SET_VRING_KICK.
    pub(super) fn set_kick(&mut self, kick: Option<Watched<File>>) {
        self.kick = kick;
    }

    /// SET_VRING_CALL; `None`: the driver polls.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub(super) fn set_call(&mut self, call: Option<File>) -> io::Result<()> {
        call.as_ref().map_or(Ok(()), never_block)?;
        self.call = call;
        Ok(())
    }

    /// SET_VRING_ERR.
    ///
    /// # Errors
    /// The descriptor cannot be made non-blocking.
    pub(super) fn set_error(&mut self, error: Option<File>) -> io::Result<()> {
        error.as_ref().map_or(Ok(()), never_block)?;
        self.error = error;
        Ok(())
    }

    /// SET_VRING_ENABLE.
    pub(super) fn set_enabled(&mut self, enabled: bool) {
        self.enabled = enabled;
    }

    /// Has everything that [`start`](Self::start) needs, and waits for it.
    pub(super) fn is_ready(&self) -> bool {
        let set_up = self.kick.is_some() && self.addresses.is_some();
        set_up && self.enabled && self.state == State::Stopped
    }

    /// Was started and not stopped since, broken or not.
    pub(super) fn is_started(&self) -> bool {
        self.state != State::Stopped
    }

    /// May be served now.
    pub(super) fn is_live(&self) -> bool {
        self.state == State::Started && self.enabled
    }

    /// Where the next available entry is.
    pub(super) fn base(&self) -> u16 {
        self.queue.next_avail()
    }

    /// The queue's size.
    pub(super) fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the used ring, in the place it is set up for, holds anything but zeros.
    pub(super) fn was_used(&self, ram: &GuestRam) -> bool {
        let entries = usize::from(self.queue.size());
        let Some(at) = self.addresses else { return false };
        let Ok(start) = part(ram, "used ring", at.used, used_bytes(entries)) else { return false };
        let mut bytes = vec![0; used_bytes(entries)];
        ram.mapped().read_slice(&mut bytes, start).is_ok() && bytes.iter().any(|byte| *byte != 0)
    }

    /// Begins to serve. [`place`](Self::place) comes next.
    pub(super) fn start(&mut self, event_idx: bool) {
        self.queue.set_event_idx(event_idx);
        self.queue.set_ready(true);
        self.state = State::Started;
    }

    /// Finds the parts of a ring in use in guest memory, after a start or a change of the memory table.
    ///
    /// # Errors
    /// [`RingFault::Unreachable`], or a part that is not aligned.
    pub(super) fn place(&mut self, ram: &GuestRam) -> Result<(), RingFault> {
        if self.state == State::Started { self.resolve(ram) } else { Ok(()) }
    }

    /// GET_VRING_BASE: ends serving, forgets the descriptors, and says where it stopped. Nothing is in
    /// flight then: what was popped has been answered.
    pub(super) fn stop(&mut self) -> u16 {
        self.state = State::Stopped;
        self.queue.set_ready(false);
        self.kick = None;
        self.call = None;
        self.base()
    }

    /// Back to the state of a new ring.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.name);
    }

    /// Takes the kick, so that the descriptor is quiet until the next one.
    pub(super) fn take_kick(&self) {
        let Some(kick) = &self.kick else { return };
        // An empty or odd descriptor tells nothing: whoever calls looks at the ring in any case.
        let _ = rustix::io::read(kick.get(), &mut [0; 8]);
    }

    /// Asks the driver for no kick while the ring is looked at.
    pub(super) fn quiet(&mut self, ram: &GuestMemoryMmap) -> Result<(), RingFault> {
        Ok(self.queue.disable_notification(ram)?)
    }

    /// Asks for kicks again; says whether something came in the meantime.
    pub(super) fn listen(&mut self, ram: &GuestMemoryMmap) -> Result<bool, RingFault> {
        Ok(self.queue.enable_notification(ram)?)
    }

    /// Takes what is available now, at most as many as the queue is long, and calls `each` for it; `each`
    /// returns whether it wants the next one.
    pub(super) fn pop<'m>(
        &mut self,
        ram: &'m GuestMemoryMmap,
        mut each: impl FnMut(u16, DescriptorChain<&'m GuestMemoryMmap>) -> bool,
    ) -> Result<(), RingFault> {
        let size = self.queue.size();
        for chain in self.queue.iter(ram)? {
            let head = chain.head_index();
            if head >= size {
                return Err(RingFault::Head { head, size });
            }
            if !each(head, chain) {
                break;
            }
        }
        Ok(())
    }

    /// Gives buffers back: `used` are heads and the bytes written for each. The driver sees all of them
    /// or none: one store shows them. Then one interrupt, if it wants that.
    pub(super) fn publish(
        &mut self,
        ram: &GuestMemoryMmap,
        used: &[(u16, u32)],
    ) -> Result<(), RingFault> {
        if used.is_empty() {
            return Ok(());
        }
        let (old, size) = (self.queue.next_used(), self.queue.size());
        let mut new = old;
        for (head, bytes) in used {
            let entry = u64::from(*head) | u64::from(*bytes) << 32;
            let offset = USED_HEADER_BYTES + USED_ENTRY_BYTES * u64::from(new % size);
            ram.write_obj(entry.to_le(), at(self.queue.used_ring(), offset)?).map_err(memory)?;
            new = new.wrapping_add(1);
        }
        // Release: pairs with the driver's read barrier between the index and the entries.
        let index = at(self.queue.used_ring(), INDEX_OFFSET)?;
        ram.store(new.to_le(), index, Ordering::Release).map_err(memory)?;
        self.queue.set_next_used(new);
        if self.wants_interrupt(ram, old, new)? {
            signal(self.call.as_ref());
        }
        Ok(())
    }

    /// Marks the ring as unusable: said once, and told to the front-end if it wants to know.
    pub(super) fn give_up(&mut self, fault: &RingFault) {
        log::warn!("the {} queue is not served until it is set up again: {fault}", self.name);
        self.state = State::Broken;
        signal(self.error.as_ref());
    }

    /// Whether the driver wants an interrupt for the entries from `old` to before `new`.
    fn wants_interrupt(
        &self,
        ram: &GuestMemoryMmap,
        old: u16,
        new: u16,
    ) -> Result<bool, RingFault> {
        // Pairs with the driver's full barrier between saying what it wants and looking for entries: at
        // least one of us sees what the other wrote.
        fence(Ordering::SeqCst);
        let available = self.queue.avail_ring();
        let load = |offset| -> Result<u16, RingFault> {
            // Relaxed: the fence orders it.
            let word = ram.load(at(available, offset)?, Ordering::Relaxed).map_err(memory)?;
            Ok(u16::from_le(word))
        };
        if !self.queue.event_idx_enabled() {
            return Ok(load(0)? & NO_INTERRUPT == 0);
        }
        // virtio 1.4, 2.7.7.2: when the index passes what the driver named.
        let event = load(AVAILABLE_HEADER_BYTES + 2 * u64::from(self.queue.size()))?;
        Ok(new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
    }

    /// The set-up that a ring in use does not take.
    fn must_be_stopped(&self) -> Result<(), SetupError> {
        if self.is_started() { Err(SetupError::InUse) } else { Ok(()) }
    }

    /// Puts the three parts into the queue, each checked to lie in guest memory as a whole.
    fn resolve(&mut self, ram: &GuestRam) -> Result<(), RingFault> {
        let Some(at) = self.addresses else { return Ok(()) };
        let entries = usize::from(self.queue.size());
        let table = part(ram, "descriptor table", at.descriptors, table_bytes(entries))?;
        let available = part(ram, "available ring", at.available, available_bytes(entries))?;
        let used = part(ram, "used ring", at.used, used_bytes(entries))?;
        self.queue.try_set_desc_table_address(table)?;
        self.queue.try_set_avail_ring_address(available)?;
        self.queue.try_set_used_ring_address(used)?;
        Ok(())
    }
}

/// Flags and index before the entries of an available ring.
const AVAILABLE_HEADER_BYTES: u64 = 4;
/// Flags and index before the entries of a used ring.
const USED_HEADER_BYTES: u64 = 4;
/// Head, and the bytes written in the upper half.
const USED_ENTRY_BYTES: u64 = 8;
/// Where the index lies in either ring.
const INDEX_OFFSET: u64 = 2;

/// An address in a ring.
fn at(ring: u64, offset: u64) -> Result<GuestAddress, RingFault> {
    ring.checked_add(offset).map(GuestAddress).ok_or(virtio_queue::Error::AddressOverflow.into())
}

/// Guest memory that is not there.
fn memory(error: GuestMemoryError) -> RingFault {
    virtio_queue::Error::GuestMemory(error).into()
}

/// Length of a descriptor table: 16 bytes an entry (virtio 1.4, 2.7).
const fn table_bytes(entries: usize) -> usize {
    16 * entries
}

/// Length of an available ring: 2 bytes an entry, flags, index and `used_event` around them.
const fn available_bytes(entries: usize) -> usize {
    6 + 2 * entries
}

/// Length of a used ring: 8 bytes an entry, flags, index and `avail_event` around them.
const fn used_bytes(entries: usize) -> usize {
    6 + 8 * entries
}

/// The guest's address of one part of a ring, all of whose bytes are guest memory.
fn part(
    ram: &GuestRam,
    part: &'static str,
    user: u64,
    bytes: usize,
) -> Result<GuestAddress, RingFault> {
    ram.guest_address(user)
        .filter(|start| GuestMemoryBackend::check_range(ram.mapped(), *start, bytes))
        .ok_or(RingFault::Unreachable { part, user })
}

/// Raises an eventfd of the front-end. One that is full has been raised already.
fn signal(target: Option<&File>) {
    if let Some(target) = target {
        let _ = rustix::io::write(target, &1_u64.to_ne_bytes());
    }
}

/// Makes sure that a descriptor from the front-end cannot make us wait.
pub(super) fn never_block(file: &File) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(file)?;
    Ok(rustix::fs::fcntl_setfl(file, flags | OFlags::NONBLOCK)?)
}

//! One virtqueue: its set-up by the front-end, and the two halves of serving it.
//!
//! The parts of a ring are found in guest memory once for each turn of serving ([`Ring::open`]), not for
//! each access: looking an address up costs more than what is done there.

mod parts;

use std::fs::File;
use std::io;

use rustix::fs::OFlags;
use vm_memory::{GuestAddress, GuestMemoryMmap};

pub(super) use self::parts::{Parts, Table};
use super::memory::{GuestRam, View};
use super::poll::Watched;

/// Largest queue that is served: what vhost-user front-ends use at most (QEMU's limit for split rings).
pub(super) const MAX_QUEUE_SIZE: u16 = 1024;

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
    /// A part that does not lie in one region of the memory table.
    #[error("the {part} at {user:#x} of the front-end is not usable")]
    Unreachable {
        /// Which of the three.
        part: &'static str,
        /// The front-end's address.
        user: u64,
    },
    /// A part whose address is no multiple of what virtio 1.4, 2.7 wants.
    #[error("the {part} at {at:#x} is not aligned")]
    Misaligned {
        /// Which of the three.
        part: &'static str,
        /// The guest's address.
        at: u64,
    },
    /// A head that names no descriptor.
    #[error("head {head} in a queue of {size}")]
    Head {
        /// What the driver put into the ring.
        head: u16,
        /// The queue's size.
        size: u16,
    },
    /// More new entries than the queue is long.
    #[error("the available index jumped from {from} to {to} in a queue of {size}")]
    Jump {
        /// The next entry to take.
        from: u16,
        /// The driver's index.
        to: u16,
        /// The queue's size.
        size: u16,
    },
    /// The ring was not placed, or the memory table is another one since.
    #[error("the ring is not where it was placed")]
    Gone,
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

/// Where the three parts of a ring lie in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placed {
    descriptors: GuestAddress,
    used: GuestAddress,
    available: GuestAddress,
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
    size: u16,
    next_available: u16,
    next_used: u16,
    event_idx: bool,
    addresses: Option<RingAddresses>,
    placed: Option<Placed>,
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
            size: MAX_QUEUE_SIZE,
            next_available: 0,
            next_used: 0,
            event_idx: false,
            addresses: None,
            placed: None,
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
        let small = u16::try_from(size).ok();
        let fits = small.filter(|size| size.is_power_of_two() && *size <= MAX_QUEUE_SIZE);
        self.size = fits.ok_or(SetupError::Size(size))?;
        Ok(())
    }

    /// SET_VRING_BASE: where the next available entry will be.
    pub(super) fn set_base(&mut self, base: u32) -> Result<(), SetupError> {
        self.must_be_stopped()?;
        let base = u16::try_from(base).map_err(|_| SetupError::Base(base))?;
        self.next_available = base;
        self.next_used = base;
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
        self.next_available
    }

    /// Whether the used ring, in the place it is set up for, holds anything but zeros.
    pub(super) fn was_used(&self, ram: &GuestRam) -> bool {
        let bytes = parts::used_bytes(self.size);
        let Some(at) = self.addresses else { return false };
        let Ok(start) = part(ram, "used ring", at.used, bytes) else { return false };
        let mut bytes = vec![0; bytes];
        View::new(ram.mapped()).read(start, &mut bytes) && bytes.iter().any(|byte| *byte != 0)
    }

    /// Begins to serve. [`place`](Self::place) comes next.
    pub(super) fn start(&mut self, event_idx: bool) {
        self.event_idx = event_idx;
        self.state = State::Started;
    }

    /// Finds the parts of a ring in use in guest memory, after a start or a change of the memory table.
    ///
    /// # Errors
    /// [`RingFault::Unreachable`] or [`RingFault::Misaligned`].
    pub(super) fn place(&mut self, ram: &GuestRam) -> Result<(), RingFault> {
        if self.state == State::Started
            && let Some(addresses) = self.addresses
        {
            self.placed = None;
            self.placed = Some(Placed::find(ram, addresses, self.size)?);
        }
        Ok(())
    }

    /// GET_VRING_BASE: ends serving, forgets the descriptors, and says where it stopped. Nothing is in
    /// flight then: what was popped has been answered.
    pub(super) fn stop(&mut self) -> u16 {
        self.state = State::Stopped;
        self.placed = None;
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

    /// The parts of a ring that was placed, to serve it.
    ///
    /// # Errors
    /// [`RingFault::Gone`].
    pub(super) fn open<'m>(&self, ram: &'m GuestMemoryMmap) -> Result<Parts<'m>, RingFault> {
        let placed = self.placed.ok_or(RingFault::Gone)?;
        let (size, view) = (self.size, View::new(ram));
        let slice = |at, bytes| view.slice(at, bytes).ok_or(RingFault::Gone);
        Ok(Parts {
            table: Table::new(slice(placed.descriptors, parts::table_bytes(size))?),
            available: slice(placed.available, parts::available_bytes(size))?,
            used: slice(placed.used, parts::used_bytes(size))?,
            view,
            size,
            event_idx: self.event_idx,
        })
    }

    /// Asks the driver for no kick while the ring is looked at.
    pub(super) fn quiet(&self, parts: &Parts<'_>) -> Result<(), RingFault> {
        parts.quiet()
    }

    /// Asks for kicks again; says whether something came in the meantime.
    pub(super) fn listen(&self, parts: &Parts<'_>) -> Result<bool, RingFault> {
        parts.listen(self.next_available)
    }

    /// How many chains are available now: at most as many as the queue is long.
    ///
    /// # Errors
    /// [`RingFault::Jump`].
    pub(super) fn available(&self, parts: &Parts<'_>) -> Result<u16, RingFault> {
        let (from, to, size) = (self.next_available, parts.available_index()?, self.size);
        let count = to.wrapping_sub(from);
        if count > size { Err(RingFault::Jump { from, to, size }) } else { Ok(count) }
    }

    /// Takes the next of the chains that [`available`](Self::available) has counted: its head.
    ///
    /// # Errors
    /// [`RingFault::Head`]; the entry counts as taken.
    pub(super) fn take(&mut self, parts: &Parts<'_>) -> Result<u16, RingFault> {
        let (head, size) = (parts.head(self.next_available)?, self.size);
        self.next_available = self.next_available.wrapping_add(1);
        if head < size { Ok(head) } else { Err(RingFault::Head { head, size }) }
    }

    /// Gives buffers back: `used` are heads and the bytes written for each. The driver sees all of them
    /// or none: one store shows them. Then one interrupt, if it wants that.
    pub(super) fn publish(
        &mut self,
        parts: &Parts<'_>,
        used: &[(u16, u32)],
    ) -> Result<(), RingFault> {
        if used.is_empty() {
            return Ok(());
        }
        let old = self.next_used;
        let mut new = old;
        for (head, bytes) in used {
            parts.put_used(new, *head, *bytes)?;
            new = new.wrapping_add(1);
        }
        parts.show_used(new)?;
        self.next_used = new;
        if parts.wants_interrupt(old, new)? {
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

    /// The set-up that a ring in use does not take.
    fn must_be_stopped(&self) -> Result<(), SetupError> {
        if self.is_started() { Err(SetupError::InUse) } else { Ok(()) }
    }
}

impl Placed {
    /// The guest's addresses of the parts, all of whose bytes are guest memory.
    fn find(ram: &GuestRam, user: RingAddresses, size: u16) -> Result<Self, RingFault> {
        let aligned = |name, at: GuestAddress, bytes: u64| match at.0 % bytes {
            0 => Ok(at),
            _ => Err(RingFault::Misaligned { part: name, at: at.0 }),
        };
        let (table, available, used) = ("descriptor table", "available ring", "used ring");
        let descriptors = part(ram, table, user.descriptors, parts::table_bytes(size))?;
        let ring = part(ram, available, user.available, parts::available_bytes(size))?;
        let answers = part(ram, used, user.used, parts::used_bytes(size))?;
        Ok(Self {
            descriptors: aligned(table, descriptors, parts::TABLE_ALIGN)?,
            available: aligned(available, ring, parts::AVAILABLE_ALIGN)?,
            used: aligned(used, answers, parts::USED_ALIGN)?,
        })
    }
}

/// The guest's address of one part of a ring, all of which lies in one region of guest memory: a driver
/// allocates it in one piece, and a machine's regions begin where its pieces do.
fn part(
    ram: &GuestRam,
    part: &'static str,
    user: u64,
    bytes: usize,
) -> Result<GuestAddress, RingFault> {
    ram.guest_address(user)
        .filter(|start| View::new(ram.mapped()).slice(*start, bytes).is_some())
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

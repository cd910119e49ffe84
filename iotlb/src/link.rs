//! What the handle of a device and its readers share: one connection to a daemon.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::RecvFlags;
use rustix::thread::futex;
use viommu_pasid::smmuv3::StreamRoot;
use viommu_pasid::{EndpointId, Structures};
use viommu_pgtable::PhysAddr;

use crate::abi::{Arch, READER_SLOTS, ReaderLine, SlotMemory, State};
use crate::fault::{self, FaultRecord};
use crate::message::{self, Message, Received};
use crate::shm::Shared;
use crate::sync::{Ordering, Word};
use crate::view::View;

/// How long a waiting reader sleeps before it looks whether the daemon is still there.
const LOOK_UP: Duration = Duration::from_millis(100);

/// What came through the socket and nobody has asked for yet.
#[derive(Debug, Default)]
struct Inbox {
    /// The last function message that was answered.
    done: u32,
    /// The last function message that was sent.
    asked: u32,
    revoked: bool,
}

/// One connection; it lasts until the device's handle, all readers and all pins are gone.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) view: View,
    pub(crate) slot: Shared<SlotMemory>,
    pub(crate) socket: OwnedFd,
    pub(crate) doorbell: OwnedFd,
    pub(crate) endpoint: EndpointId,
    pub(crate) structures: Structures,
    pub(crate) pasid_bits: u8,
    lost: AtomicBool,
    inbox: Mutex<Inbox>,
    /// One thread at a time puts faults.
    faults: Mutex<()>,
}

/// What a device learns about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) revoked: bool,
    pub(crate) connected: bool,
}

impl Link {
    pub(crate) fn new(
        view: View,
        slot: Shared<SlotMemory>,
        (socket, doorbell): (OwnedFd, OwnedFd),
        welcome: &message::Welcome,
    ) -> io::Result<Self> {
        let root = PhysAddr::new(welcome.root);
        let structures = match view.arch() {
            Arch::Vtd => Some(Structures::Vtd { root }),
            Arch::SmmuV3 => {
                StreamRoot::from_registers(root, welcome.root_config).map(Structures::SmmuV3)
            }
        };
        let unknown = || io::Error::new(io::ErrorKind::InvalidData, "unknown stream table layout");
        Ok(Self {
            view,
            slot,
            socket,
            doorbell,
            endpoint: EndpointId::new(welcome.endpoint),
            structures: structures.ok_or_else(unknown)?,
            pasid_bits: u8::try_from(welcome.pasid_bits).unwrap_or(u8::MAX),
            lost: AtomicBool::new(false),
            inbox: Mutex::default(),
            faults: Mutex::default(),
        })
    }

    /// False once the daemon was seen to be gone.
    #[inline]
    pub(crate) fn is_connected(&self) -> bool {
        // Relaxed: a hint, nothing is ordered by it
        !self.lost.load(Ordering::Relaxed)
    }

    /// What the daemon told the readers.
    pub(crate) fn state(&self) -> State {
        // Acquire: pairs with the Release in `Connection::set_state`
        State::from_raw(self.slot.control.state.load(Ordering::Acquire))
    }

    /// Waits until accesses run. False if they are refused for good, or still wait after `timeout`.
    pub(crate) fn wait_running(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        loop {
            match self.state() {
                State::Running => return self.is_connected(),
                State::CutOff => return false,
                State::Parked => {}
            }
            let left = until.map_or(LOOK_UP, |t| t.saturating_duration_since(Instant::now()));
            if left.is_zero() || self.has_hung_up() {
                return false;
            }
            let nap = timespec(left.min(LOOK_UP));
            let word = &self.slot.control.state;
            // woken, interrupted, changed meanwhile, timed out: each time we look again
            let _why = futex::wait(word, futex::Flags::empty(), State::Parked.raw(), Some(&nap));
        }
    }

    /// Puts a fault into the ring and rings the daemon; false if there was no room.
    pub(crate) fn report(&self, record: &FaultRecord) -> bool {
        let one_at_a_time = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
        let put = fault::put(&self.slot, record);
        drop(one_at_a_time);
        // full means that it rings
        let _ringing = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
        put
    }

    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks whether the daemon is gone; leaves its messages to [`hear`](Self::hear).
    pub(crate) fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let ends = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        // nothing is set if the call is interrupted
        let _at_once = rustix::event::poll(&mut fds, Some(&timespec(Duration::ZERO)));
        if fds.iter().any(|fd| fd.revents().intersects(ends)) {
            // Relaxed: see `is_connected`
            self.lost.store(true, Ordering::Relaxed);
        }
        !self.is_connected()
    }

    /// Takes what the daemon has sent, without waiting.
    pub(crate) fn hear(&self) -> Heard {
        let mut inbox = self.inbox();
        self.empty_socket(&mut inbox);
        Heard { revoked: std::mem::take(&mut inbox.revoked), connected: self.is_connected() }
    }

    fn empty_socket(&self, inbox: &mut Inbox) {
        loop {
            match message::receive(&self.socket, RecvFlags::DONTWAIT) {
                Received::Message(Message::Done { sequence }, _) => inbox.done = sequence,
                Received::Message(Message::Revoke, _) => inbox.revoked = true,
                // a later daemon may tell more than we know
                Received::Message(..) | Received::Garbage => {}
                Received::Empty => return,
                // Relaxed: see `is_connected`
                Received::Closed => return self.lost.store(true, Ordering::Relaxed),
            }
        }
    }

    /// Sends what `message` makes of a sequence number and waits for its answer.
    pub(crate) fn ask(&self, message: fn(u32) -> Message, timeout: Duration) -> io::Result<()> {
        let until = Instant::now() + timeout;
        let mut inbox = self.inbox();
        inbox.asked = inbox.asked.wrapping_add(1);
        let sequence = inbox.asked;
        message(sequence).send(&self.socket, &[])?;
        drop(inbox);
        loop {
            let mut inbox = self.inbox();
            self.empty_socket(&mut inbox);
            if sequence.wrapping_sub(inbox.done).cast_signed() <= 0 {
                return Ok(());
            }
            drop(inbox);
            let left = until.saturating_duration_since(Instant::now());
            if !self.is_connected() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            // another thread may take our answer out of the socket: look again soon
            let mut fds = [PollFd::new(&self.socket, PollFlags::IN)];
            let _why = rustix::event::poll(&mut fds, Some(&timespec(left.min(LOOK_UP))));
        }
    }
}

/// A reader's place in the slot memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Lane(usize);

impl Lane {
    /// Takes a free place.
    pub(crate) fn take(slot: &SlotMemory) -> Option<Self> {
        take_bit(&slot.device.slots_used).map(Self)
    }

    /// Gives it back; its reader is outside.
    pub(crate) fn give(self, slot: &SlotMemory) {
        give_bit(&slot.device.slots_used, self.0);
    }

    #[inline]
    #[expect(
        clippy::indexing_slicing,
        reason = "the mask keeps the index below the array's length"
    )]
    pub(crate) fn line(self, slot: &SlotMemory) -> &ReaderLine {
        const { assert!(READER_SLOTS.is_power_of_two()) };
        &slot.readers[self.0 & (READER_SLOTS - 1)]
    }
}

/// Sets a bit of `word` that was clear; `None` if all are set.
pub(crate) fn take_bit<W: Word>(word: &W) -> Option<usize> {
    loop {
        let free = word.load(Ordering::Relaxed).trailing_ones();
        let bit = 1u64.checked_shl(free)?;
        // AcqRel: pairs with `give_bit`, what the last owner stored comes first; and with the loads
        // in `Connection::is_clear`
        if word.fetch_or(bit, Ordering::AcqRel) & bit == 0 {
            return usize::try_from(free).ok();
        }
    }
}

/// Clears a bit that [`take_bit`] set.
pub(crate) fn give_bit<W: Word>(word: &W, index: usize) {
    // Release: pairs with `take_bit` and with the loads in `Connection::is_clear`
    word.fetch_and(!(1 << (index % 64)), Ordering::Release);
}

fn timespec(duration: Duration) -> Timespec {
    let tv_sec = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() }
}

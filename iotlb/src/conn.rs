//! The daemon's end of one device process: its socket, its slot memory, its doorbell.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::event::EventfdFlags;
use viommu_pasid::{EndpointId, Requester};

use crate::abi::{PinLine, READER_SLOTS, SlotMemory, State};
use crate::fault::{FaultRecord, Taken, Taker};
use crate::message::Message;
use crate::section;
use crate::shm::{self, Mapping, Rights, Shared};
use crate::sync::Ordering;
use crate::sys::Peer;
use crate::withdrawn::WithdrawnSet;

/// Bytes of the slot memory.
pub(crate) const SLOT_LEN: usize = size_of::<SlotMemory>();

/// Answers that one device may have outstanding: an honest one waits for each.
const MAX_OWED: usize = 8;

const _: () = assert!(READER_SLOTS == 64, "one bit of `slots_used` each");

/// One device process, connected and greeted.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) socket: OwnedFd,
    pub(crate) doorbell: OwnedFd,
    endpoint: EndpointId,
    pub(crate) peer: Peer,
    slot: Shared<SlotMemory>,
    faults: Taker,
    /// Sequence numbers of function messages that wait for their DONE.
    owed: Vec<u32>,
    /// What we told its readers; the shared word is never read back.
    state: State,
    /// It broke the protocol: nothing that it says is heard.
    pub(crate) is_expelled: bool,
    /// A REVOKE was sent since it last kept a drain waiting.
    pub(crate) revoked: bool,
}

/// Translations that the readers of a connection, or of all, report; claims of device processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReaderCounters {
    /// Answered by private TLBs.
    pub hits: u64,
    /// Walked.
    pub misses: u64,
    /// Flushes of private TLBs.
    pub flushes: u64,
    /// Faults that found no room in the ring.
    pub faults_dropped: u64,
}

impl ReaderCounters {
    /// The sums. They wrap: what devices say may be anything.
    pub(crate) const fn plus(self, other: Self) -> Self {
        Self {
            hits: self.hits.wrapping_add(other.hits),
            misses: self.misses.wrapping_add(other.misses),
            flushes: self.flushes.wrapping_add(other.flushes),
            faults_dropped: self.faults_dropped.wrapping_add(other.faults_dropped),
        }
    }
}

impl Connection {
    /// Makes the slot memory and the doorbell for the device behind `socket`.
    ///
    /// Also returns the slot memory's descriptor, which is the device's to have and not ours to
    /// keep.
    pub(crate) fn new(
        socket: OwnedFd,
        endpoint: EndpointId,
        state: State,
    ) -> io::Result<(Self, OwnedFd)> {
        let slot_fd = shm::create("viommu-slot", SLOT_LEN)?;
        let mapping = Mapping::map(&slot_fd, SLOT_LEN, Rights::ReadWrite)?;
        shm::seal(&slot_fd, false)?;
        let slot = Shared::new(Arc::new(mapping)).ok_or(io::ErrorKind::InvalidData)?;
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let doorbell = rustix::event::eventfd(0, flags)?;
        let peer = Peer::of(&socket);
        let mut connection = Self {
            socket,
            doorbell,
            endpoint,
            peer,
            slot,
            faults: Taker::default(),
            owed: Vec::new(),
            state,
            is_expelled: false,
            revoked: false,
        };
        connection.set_state(state);
        Ok((connection, slot_fd))
    }

    /// Who does DMA through this connection.
    pub(crate) const fn endpoint(&self) -> EndpointId {
        self.endpoint
    }

    /// What its readers were told last.
    pub(crate) const fn state(&self) -> State {
        self.state
    }

    /// Tells the readers; it is in force for all of them after the next drain.
    pub(crate) fn set_state(&mut self, state: State) {
        self.state = state;
        let word = &self.slot.control.state;
        // Release: pairs with the Acquire of `Link::state`. Readers that see the next epoch see it.
        word.store(state.raw(), Ordering::Release);
        // a wake-up that fails would mean that the word is not mapped, which it is
        let woken = rustix::thread::futex::wake(
            word,
            rustix::thread::futex::Flags::empty(),
            i32::MAX as u32,
        );
        debug_assert!(woken.is_ok(), "futex: {woken:?}");
    }

    /// True if no reader uses anything older than `epoch`, and no pin covers what was withdrawn.
    ///
    /// All words are the device's: each is loaded once and believed only as far as it makes us
    /// wait.
    pub(crate) fn is_clear(&self, epoch: u64, withdrawn: &WithdrawnSet) -> bool {
        self.readers_have_passed(epoch) && !self.has_pin(epoch, withdrawn)
    }

    fn readers_have_passed(&self, epoch: u64) -> bool {
        let slot = |index: usize| self.slot.readers.get(index).map(|line| &line.epoch);
        section::all_have_passed(&self.slot.device.slots_used, slot, epoch)
    }

    /// True if it says that it holds any pin.
    pub(crate) fn has_pins(&self) -> bool {
        // Acquire: pairs with `give_bit`; what is no longer pinned is no longer used
        self.slot.device.pins_used.iter().any(|word| word.load(Ordering::Acquire) != 0)
    }

    fn has_pin(&self, epoch: u64, withdrawn: &WithdrawnSet) -> bool {
        // Acquire: pairs with the RMWs in `pin`. A pin is taken inside a section, and the sections
        // that matter were seen to end before this load.
        let maps = self.slot.device.pins_used.each_ref().map(|word| word.load(Ordering::Acquire));
        let in_use =
            |index: usize| maps.get(index / 64).is_some_and(|map| map & (1 << (index % 64)) != 0);
        maps != [0; 4]
            && self
                .slot
                .pins
                .iter()
                .enumerate()
                .any(|(index, pin)| in_use(index) && self.pin_matches(pin, epoch, withdrawn))
    }

    fn pin_matches(&self, pin: &PinLine, epoch: u64, withdrawn: &WithdrawnSet) -> bool {
        let load = |word: &crate::sync::AtomicU64| word.load(Ordering::Relaxed);
        let (tag, first, last) = (load(&pin.pasid), load(&pin.first), load(&pin.last));
        let pasid = u32::try_from(tag).ok().and_then(viommu_pasid::Pasid::new);
        let requester = Requester { endpoint: self.endpoint(), pasid };
        load(&pin.epoch) < epoch && withdrawn.covers(requester, first, last)
    }

    /// Empties the fault ring: at most a ring's worth of records.
    ///
    /// The doorbell is watched edge-triggered and never read: its file is the device's as well,
    /// which may make it blocking at any moment.
    pub(crate) fn take_faults(&mut self, on: &mut dyn FnMut(FaultRecord)) -> Taken {
        self.faults.take(&self.slot, on)
    }

    /// Notes that function message `sequence` waits for its answer; false if there are too many.
    pub(crate) fn owe(&mut self, sequence: u32) -> bool {
        let room = self.owed.len() < MAX_OWED;
        if room {
            self.owed.push(sequence);
        }
        room
    }

    /// Sends the answers owed; false if the device does not read.
    pub(crate) fn answer(&mut self) -> bool {
        let socket = &self.socket;
        self.owed.drain(..).all(|sequence| Message::Done { sequence }.send(socket, &[]).is_ok())
    }

    /// What the readers say they did.
    pub(crate) fn counters(&self) -> ReaderCounters {
        let load = |word: &crate::sync::AtomicU64| word.load(Ordering::Relaxed);
        let faults_dropped = load(&self.slot.device.dropped);
        let start = ReaderCounters { faults_dropped, ..ReaderCounters::default() };
        self.slot.readers.iter().fold(start, |sum, line| {
            let (hits, misses) = (load(&line.hits), load(&line.misses));
            let flushes = load(&line.flushes);
            sum.plus(ReaderCounters { hits, misses, flushes, faults_dropped: 0 })
        })
    }
}

//! The event queue: faults on their way to the guest.

use std::collections::VecDeque;

use vm_memory::GuestMemoryMmap;

use super::chain::Buffer;
use super::ring::{Parts, Ring, RingFault};
use super::{ROUNDS_PER_TURN, Turn};
use crate::protocol::Event;

/// Faults that wait for a buffer of the guest's. Linux posts a whole queue of buffers; more than this
/// many faults at once are one fault repeated, and the first ones tell it.
const MAX_WAITING: usize = 256;

/// Faults that the guest has not been told yet, oldest first.
#[derive(Debug)]
pub(super) struct Waiting {
    events: VecDeque<Event>,
    buffer: Buffer,
    used: Vec<(u16, u32)>,
}

/// What became of the faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Delivered {
    /// Reports that were written.
    pub(super) reports: u64,
    /// Whether to come back without waiting for a kick.
    pub(super) turn: Turn,
}

impl Waiting {
    /// None.
    pub(super) fn new() -> Self {
        Self { events: VecDeque::new(), buffer: Buffer::new(), used: Vec::new() }
    }

    /// Adds a fault; false if there is no room: the newest is dropped, the first ones tell the cause.
    pub(super) fn push(&mut self, event: Event) -> bool {
        let room = self.events.len() < MAX_WAITING;
        if room {
            self.events.push_back(event);
        }
        room
    }

    /// Forgets all, and says how many there were.
    pub(super) fn clear(&mut self) -> u64 {
        let count = self.events.len();
        self.events.clear();
        u64::try_from(count).unwrap_or(u64::MAX)
    }

    /// Writes reports into the buffers that the guest has posted, until one of both is used up. While
    /// faults wait for buffers, the guest's next kick is asked for; nothing else wakes us for them.
    ///
    /// A buffer too small for a report goes back empty (E3), as does a chain that leads nowhere.
    pub(super) fn deliver(
        &mut self,
        ring: &mut Ring,
        ram: &GuestMemoryMmap,
    ) -> Result<Delivered, RingFault> {
        let mut reports = 0;
        let parts = ring.open(ram)?;
        for _ in 0..ROUNDS_PER_TURN {
            if self.events.is_empty() {
                return Ok(Delivered { reports, turn: Turn::Done });
            }
            ring.quiet(&parts)?;
            reports += self.fill(ring, &parts)?;
            if !self.events.is_empty() && !ring.listen(&parts)? {
                return Ok(Delivered { reports, turn: Turn::Done });
            }
        }
        Ok(Delivered { reports, turn: Turn::Again })
    }

    /// One round: fills what is there, and gives it back with one interrupt.
    fn fill(&mut self, ring: &mut Ring, parts: &Parts<'_>) -> Result<u64, RingFault> {
        self.used.clear();
        let taken = self.take(ring, parts);
        ring.publish(parts, &self.used)?;
        taken
    }

    /// Takes buffers and fills them; how many reports were written.
    fn take(&mut self, ring: &mut Ring, parts: &Parts<'_>) -> Result<u64, RingFault> {
        let mut reports = 0;
        for _ in 0..ring.available(parts)? {
            if self.events.is_empty() {
                break;
            }
            let head = ring.take(parts)?;
            let fits = self.buffer.load(head, parts).is_ok();
            let report = (fits && self.buffer.writable_bytes() >= Event::BYTES)
                .then(|| self.events.pop_front())
                .flatten();
            let written = report.map_or(0, |event| {
                self.buffer.write(&parts.view, &event.encode());
                reports += 1;
                REPORT_BYTES
            });
            self.used.push((head, written));
        }
        Ok(reports)
    }
}

/// [`Event::BYTES`] as the used ring takes it.
const REPORT_BYTES: u32 = 24;
const _: () = assert!(Event::BYTES == 24);

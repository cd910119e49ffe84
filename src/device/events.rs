//! The event queue: faults on their way to the guest.

use std::collections::{BTreeMap, VecDeque};

use viommu_pasid::EndpointId;
use vm_memory::GuestMemoryMmap;

use super::chain::Buffer;
use super::ring::{Parts, Ring, RingFault};
use super::{ROUNDS_PER_TURN, Turn};
use crate::protocol::Event;

/// Faults that wait for a buffer of the guest's. Linux posts a whole queue of buffers; more than this
/// many faults at once are one fault repeated, and the first ones tell it. Endpoints share the room: a
/// device process that reports without end costs the others none of theirs.
const MAX_WAITING: usize = 256;

/// Faults that the guest has not been told yet, oldest first.
#[derive(Debug)]
pub(super) struct Waiting {
    events: VecDeque<Event>,
    /// How many of them each endpoint has; none has 0.
    shares: BTreeMap<EndpointId, usize>,
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
        let (events, shares) = (VecDeque::new(), BTreeMap::new());
        Self { events, shares, buffer: Buffer::new(), used: Vec::new() }
    }

    /// Adds a fault. False if one is dropped for want of room: the newest of the endpoint that has
    /// most, which may be this one; the first ones tell the cause.
    pub(super) fn push(&mut self, event: Event) -> bool {
        let has_room = self.events.len() < MAX_WAITING;
        if has_room || self.make_room_for(event.endpoint) {
            *self.shares.entry(event.endpoint).or_default() += 1;
            self.events.push_back(event);
        }
        has_room
    }

    /// Drops the newest fault of the endpoint with most, unless `endpoint` would then have as many.
    fn make_room_for(&mut self, endpoint: EndpointId) -> bool {
        let share = self.shares.get(&endpoint).copied().unwrap_or(0);
        let most = self.shares.iter().max_by_key(|(_, share)| **share);
        let Some((greedy, _)) = most.filter(|(_, most)| **most > share + 1) else { return false };
        let greedy = *greedy;
        let newest = self.events.iter().rposition(|event| event.endpoint == greedy);
        let dropped = newest.and_then(|at| self.events.remove(at));
        dropped.inspect(|event| self.give_back(event.endpoint)).is_some()
    }

    /// The oldest fault.
    fn pop(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.give_back(event.endpoint);
        Some(event)
    }

    /// `endpoint` has one fault less.
    fn give_back(&mut self, endpoint: EndpointId) {
        if let Some(share) = self.shares.get_mut(&endpoint) {
            *share -= 1;
            if *share == 0 {
                self.shares.remove(&endpoint);
            }
        }
    }

    /// Forgets all, and says how many there were.
    pub(super) fn clear(&mut self) -> u64 {
        let count = self.events.len();
        self.events.clear();
        self.shares.clear();
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
                .then(|| self.pop())
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

#[cfg(test)]
mod tests {
    use viommu_pgtable::{Access, Iova};

    use super::*;
    use crate::protocol::FaultReason;

    fn fault(endpoint: u32, nth: u64) -> Event {
        Event {
            reason: FaultReason::Mapping,
            access: Access::READ,
            endpoint: EndpointId::new(endpoint),
            pasid: None,
            address: Some(Iova::new(nth)),
            second_level: false,
        }
    }

    /// Takes all that wait, in order.
    fn drain(waiting: &mut Waiting) -> Vec<Event> {
        let all = std::iter::from_fn(|| waiting.pop()).collect();
        assert!(waiting.shares.is_empty(), "{:?}", waiting.shares);
        all
    }

    #[test]
    fn one_endpoint_may_take_all_the_room_and_its_first_faults_stay() {
        let mut waiting = Waiting::new();
        let limit = MAX_WAITING as u64;
        for nth in 0..limit + 10 {
            assert_eq!(waiting.push(fault(1, nth)), nth < limit);
        }
        let first: Vec<_> = (0..limit).map(|nth| fault(1, nth)).collect();
        assert_eq!(drain(&mut waiting), first);
    }

    #[test]
    fn who_reports_without_end_leaves_the_others_their_share() {
        let mut waiting = Waiting::new();
        for nth in 0..1000 {
            let full = nth >= MAX_WAITING as u64;
            assert_eq!(waiting.push(fault(1, nth)), !full);
        }
        for nth in 0..50 {
            for endpoint in [2, 3] {
                assert!(!waiting.push(fault(endpoint, nth)), "a fault of the first one is dropped");
            }
            assert!(!waiting.push(fault(1, 1000 + nth)), "it is dropped itself");
        }
        let told = drain(&mut waiting);
        let of = |endpoint| {
            let theirs = |event: &&Event| event.endpoint == EndpointId::new(endpoint);
            told.iter().filter(theirs).copied().collect::<Vec<_>>()
        };
        let expected = |endpoint, count| (0..count).map(|nth| fault(endpoint, nth)).collect();
        let [first, second, third]: [Vec<_>; 3] =
            [expected(1, MAX_WAITING as u64 - 100), expected(2, 50), expected(3, 50)];
        assert_eq!((of(1), of(2), of(3)), (first, second, third));
    }

    #[test]
    fn endpoints_that_all_report_without_end_have_equal_shares() {
        let mut waiting = Waiting::new();
        for nth in 0..1000 {
            (1..=4).for_each(|endpoint| _ = waiting.push(fault(endpoint, nth)));
        }
        assert!(waiting.shares.values().all(|share| *share == MAX_WAITING / 4));
        assert_eq!(drain(&mut waiting).len(), MAX_WAITING);
    }
}

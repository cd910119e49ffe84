//! The registers and the ring of a work queue, as the device's documentation lists them.

use viommu_pasid::Pasid;

use super::descriptor::{self, Raw};
use super::job::Outcome;
use super::support::{merge_register, read_register};

/// Work queues of the device.
pub(crate) const QUEUES: u16 = 8;

/// Descriptors of a ring; one fewer can be outstanding.
const DESCRIPTORS: u32 = 32;

/// Bytes of a ring.
pub(crate) const RING_BYTES: u64 = DESCRIPTORS as u64 * descriptor::BYTES as u64;

const PASID_TAGGED: u32 = 1 << 31;
const PASID_MASK: u32 = Pasid::MAX.raw();
const CONTROL_ENABLE: u32 = 1 << 0;
const STATUS_REFUSED: u32 = 1 << 0;

/// One work queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pasid: u32,
    enabled: bool,
    refused: bool,
    /// The next descriptor to be done, below [`DESCRIPTORS`].
    head: u32,
    /// Where there is none yet, below [`DESCRIPTORS`].
    tail: u32,
    ring: [Raw; DESCRIPTORS as usize],
}

/// What a write to a register asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Begin to do descriptors, with DMA tagged so.
    Start(Option<Pasid>),
    /// Do no more.
    Stop,
    /// There is more to do.
    Work,
}

impl Default for Queue {
    fn default() -> Self {
        let ring = [[0; descriptor::BYTES]; DESCRIPTORS as usize];
        Self { pasid: 0, enabled: false, refused: false, head: 0, tail: 0, ring }
    }
}

impl Queue {
    /// Fills `data` from the register that holds `offset`.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let (value, start) = match offset {
            0x00..0x04 => (self.pasid, 0x00),
            0x04..0x08 => (if self.enabled { CONTROL_ENABLE } else { 0 }, 0x04),
            0x08..0x0c => (self.tail, 0x08),
            0x0c..0x10 => (self.head, 0x0c),
            0x10..0x14 => (if self.refused { STATUS_REFUSED } else { 0 }, 0x10),
            0x14..0x18 => (DESCRIPTORS, 0x14),
            _ => (0, offset),
        };
        read_register(value.into(), offset - start, data);
    }

    /// Writes `data` to the register at `offset`. `tags` says whether DMA may be tagged.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8], tags: bool) -> Option<Change> {
        let value = u32::try_from(merge_register(0, 0, data)).unwrap_or(u32::MAX);
        match offset {
            0x00 if !self.enabled => self.pasid = value & (PASID_TAGGED | PASID_MASK),
            0x04 if value == CONTROL_ENABLE && !self.enabled => return self.start(tags),
            0x04 if value == 0 && self.enabled => return Some(Change::Stop),
            0x08 if self.enabled && value < DESCRIPTORS => {
                self.tail = value;
                return Some(Change::Work);
            }
            0x08 => self.refused = true,
            0x10 => self.refused &= value & STATUS_REFUSED == 0,
            _ => {}
        }
        None
    }

    fn start(&mut self, tags: bool) -> Option<Change> {
        let tagged = self.pasid & PASID_TAGGED != 0;
        let pasid = Pasid::new(self.pasid & PASID_MASK);
        if tagged && (pasid.is_none() || !tags) {
            self.refused = true;
            return None;
        }
        (self.enabled, self.refused, self.head, self.tail) = (true, false, 0, 0);
        Some(Change::Start(pasid.filter(|_| tagged)))
    }

    /// The queue does nothing any more; its ring stays for the driver to look at.
    pub(crate) fn stopped(&mut self) {
        self.enabled = false;
    }

    /// The queue cannot be started.
    pub(crate) fn refuse(&mut self) {
        (self.enabled, self.refused) = (false, true);
    }

    /// True if its DMA is tagged.
    pub(crate) fn is_tagged(&self) -> bool {
        self.pasid & PASID_TAGGED != 0
    }

    /// The next descriptor to be done, if there is one.
    pub(crate) fn next(&self) -> Option<Raw> {
        let at = usize::try_from(self.head).ok()?;
        self.ring.get(at).filter(|_| self.head != self.tail).copied()
    }

    /// The next descriptor has come to its end: what [`descriptor::finish`] takes. The next one is
    /// next.
    pub(crate) fn finish(&mut self, outcome: Option<Outcome>, done: u64) {
        let at = usize::try_from(self.head).unwrap_or(usize::MAX);
        if let Some(raw) = self.ring.get_mut(at) {
            descriptor::finish(raw, outcome, done);
        }
        self.head = (self.head + 1) % DESCRIPTORS;
    }

    /// Fills `data` from the ring's byte `offset` on.
    pub(crate) fn read_ring(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        data.fill(0);
        for (byte, value) in data.iter_mut().zip(self.ring.as_flattened().iter().skip(start)) {
            *byte = *value;
        }
    }

    /// Writes `data` to the ring's byte `offset` and behind it.
    pub(crate) fn write_ring(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.ring.as_flattened_mut().iter_mut().skip(start);
        for (byte, value) in bytes.zip(data) {
            *byte = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASID: u64 = 0x00;
    const CONTROL: u64 = 0x04;
    const TAIL: u64 = 0x08;
    const HEAD: u64 = 0x0c;
    const STATUS: u64 = 0x10;

    fn get(queue: &Queue, offset: u64) -> u32 {
        let mut data = [0; 4];
        queue.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn set(queue: &mut Queue, offset: u64, value: u32) -> Option<Change> {
        queue.write(offset, &value.to_le_bytes(), true)
    }

    fn tag(raw: u32) -> Option<Change> {
        Some(Change::Start(Pasid::new(raw)))
    }

    #[test]
    fn a_queue_starts_untagged_or_with_its_pasid_and_keeps_it_while_enabled() {
        let mut queue = Queue::default();
        set(&mut queue, PASID, 7);
        assert_eq!(set(&mut queue, CONTROL, 1), tag(0), "without the bit the number is nothing");
        assert_eq!(set(&mut queue, PASID, u32::MAX), None);
        assert_eq!((get(&queue, PASID), get(&queue, CONTROL)), (7, 1));
        assert_eq!(set(&mut queue, CONTROL, 1), None, "once");
        assert_eq!(set(&mut queue, CONTROL, 0), Some(Change::Stop));
        queue.stopped();
        set(&mut queue, PASID, u32::MAX);
        assert_eq!(get(&queue, PASID), PASID_TAGGED | PASID_MASK);
        assert_eq!(set(&mut queue, CONTROL, 1), tag(0xf_ffff));
    }

    #[test]
    fn pasid_0_and_tags_that_are_not_allowed_are_refused() {
        let mut queue = Queue::default();
        set(&mut queue, PASID, PASID_TAGGED);
        assert_eq!(set(&mut queue, CONTROL, 1), None);
        assert_eq!((get(&queue, CONTROL), get(&queue, STATUS)), (0, STATUS_REFUSED));
        set(&mut queue, STATUS, STATUS_REFUSED);
        assert_eq!(get(&queue, STATUS), 0);
        set(&mut queue, PASID, PASID_TAGGED | 1);
        assert_eq!(queue.write(CONTROL, &[1, 0, 0, 0], false), None);
        assert_eq!((get(&queue, CONTROL), get(&queue, STATUS)), (0, STATUS_REFUSED));
        assert_eq!(set(&mut queue, CONTROL, 1), tag(1));
        assert_eq!(get(&queue, STATUS), 0);
    }

    #[test]
    fn descriptors_are_done_in_turn_around_the_ring() {
        let mut queue = Queue::default();
        set(&mut queue, CONTROL, 1);
        for round in 0..40u32 {
            let slot = round % DESCRIPTORS;
            assert_eq!(queue.next(), None);
            queue.write_ring(64 * u64::from(slot), &[1, 0, 0, 0, 9, 0, 0, 0]);
            assert_eq!(set(&mut queue, TAIL, (slot + 1) % DESCRIPTORS), Some(Change::Work));
            assert_eq!(queue.next().unwrap()[..8], [1, 0, 0, 0, 9, 0, 0, 0]);
            queue.finish(Some(Outcome::Done), 9);
            let mut result = [0; 12];
            queue.read_ring(64 * u64::from(slot) + 0x20, &mut result);
            assert_eq!(result, [1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0]);
        }
        assert_eq!((get(&queue, HEAD), get(&queue, TAIL)), (8, 8));
    }

    #[test]
    fn a_tail_outside_the_ring_or_of_a_queue_that_is_off_is_refused() {
        for (enabled, tail) in [(true, DESCRIPTORS), (true, u32::MAX), (false, 1)] {
            let mut queue = Queue::default();
            if enabled {
                set(&mut queue, CONTROL, 1);
            }
            assert_eq!(set(&mut queue, TAIL, tail), None);
            assert_eq!((get(&queue, TAIL), get(&queue, STATUS)), (0, STATUS_REFUSED));
        }
    }

    #[test]
    fn offsets_without_a_register_and_past_the_ring_read_zero_and_keep_nothing() {
        let mut queue = Queue::default();
        for offset in [0x0c, 0x14, 0x18, 0x3c, u64::MAX] {
            assert_eq!(queue.write(offset, &[0xff; 8], true), None);
        }
        assert_eq!((get(&queue, HEAD), get(&queue, 0x14), get(&queue, 0x18)), (0, 32, 0));
        queue.write_ring(RING_BYTES - 2, &[7; 8]);
        queue.write_ring(u64::MAX, &[7; 8]);
        let mut data = [9; 4];
        queue.read_ring(RING_BYTES - 2, &mut data);
        assert_eq!(data, [7, 7, 0, 0]);
        queue.read_ring(u64::MAX, &mut data);
        assert_eq!(data, [0; 4]);
    }
}

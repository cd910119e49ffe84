//! The driver's side of a split virtqueue (virtio 1.4, 2.7).

use std::io;

use crate::memory::Memory;

/// Descriptors of a queue: the table then fills a page, and each ring lies in one.
pub const QUEUE_SIZE: u16 = 256;

const DESCRIPTOR_BYTES: u64 = 16;
const FLAG_NEXT: u16 = 1;
const FLAG_WRITE: u16 = 2;
/// `avail.flags`: the driver looks by itself, no interrupt is needed.
const NO_INTERRUPT: u16 = 1;
/// Where the index is in either ring, and the entries behind it.
const INDEX: u64 = 2;
const ENTRIES: u64 = 4;

/// Where the parts of a queue lie: guest-physical addresses of a page each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlaces {
    /// The table of descriptors.
    pub descriptors: u64,
    /// The driver's ring.
    pub available: u64,
    /// The device's ring.
    pub used: u64,
}

/// A part of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Buffer {
    /// Its guest-physical address.
    pub at: u64,
    /// Its length.
    pub bytes: u32,
    /// Whether the device writes it; else it reads it.
    pub writable: bool,
}

/// A chain that the device has done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// Its first descriptor.
    pub head: u32,
    /// Bytes that the device says it wrote.
    pub bytes: u32,
}

/// A queue of [`QUEUE_SIZE`] descriptors in three pages. Who uses it knows which descriptors are free.
#[derive(Debug)]
pub struct Ring<M> {
    memory: M,
    places: QueuePlaces,
    next_available: u16,
    next_used: u16,
}

impl<M: Memory> Ring<M> {
    /// An empty queue.
    ///
    /// # Errors
    /// There are no three pages left.
    pub fn new(memory: M) -> io::Result<Self> {
        let places = QueuePlaces {
            descriptors: memory.page()?,
            available: memory.page()?,
            used: memory.page()?,
        };
        memory.write(places.available, &NO_INTERRUPT.to_le_bytes())?;
        Ok(Self { memory, places, next_available: 0, next_used: 0 })
    }

    /// Where it lies.
    #[must_use]
    pub const fn places(&self) -> QueuePlaces {
        self.places
    }

    /// Makes a chain available: descriptors `first`, `first + 1` and so on, around the table. The
    /// device has to be told.
    ///
    /// # Errors
    /// The queue's memory is gone.
    pub fn publish(&mut self, first: u16, chain: &[Buffer]) -> io::Result<()> {
        let mut index = first % QUEUE_SIZE;
        for (left, part) in (0..chain.len()).rev().zip(chain) {
            let next = (index + 1) % QUEUE_SIZE;
            let more = if left == 0 { 0 } else { FLAG_NEXT };
            let flags = more | if part.writable { FLAG_WRITE } else { 0 };
            let raw = u128::from(part.at)
                | u128::from(part.bytes) << 64
                | u128::from(flags) << 96
                | u128::from(if left == 0 { 0 } else { next }) << 112;
            let at = self.places.descriptors + DESCRIPTOR_BYTES * u64::from(index);
            self.memory.write(at, &raw.to_le_bytes())?;
            index = next;
        }
        let entry = ENTRIES + 2 * u64::from(self.next_available % QUEUE_SIZE);
        let first = (first % QUEUE_SIZE).to_le_bytes();
        self.memory.write(self.places.available + entry, &first)?;
        self.next_available = self.next_available.wrapping_add(1);
        self.memory.store_index(self.places.available + INDEX, self.next_available)
    }

    /// The next chain that the device has done with, if there is one.
    ///
    /// # Errors
    /// The queue's memory is gone.
    pub fn take_used(&mut self) -> io::Result<Option<Used>> {
        if self.memory.load_index(self.places.used + INDEX)? == self.next_used {
            return Ok(None);
        }
        let entry = ENTRIES + 8 * u64::from(self.next_used % QUEUE_SIZE);
        let mut raw = [0; 8];
        self.memory.read(self.places.used + entry, &mut raw)?;
        self.next_used = self.next_used.wrapping_add(1);
        let [a, b, c, d, bytes @ ..] = raw;
        let head = u32::from_le_bytes([a, b, c, d]);
        Ok(Some(Used { head, bytes: u32::from_le_bytes(bytes) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE_BYTES;
    use crate::memory::testing::Heap;

    fn raw(memory: &Heap, at: u64, bytes: usize) -> Vec<u8> {
        let mut raw = vec![0; bytes];
        memory.read(at, &mut raw).unwrap();
        raw
    }

    #[test]
    fn a_chain_is_linked_and_its_head_is_in_the_ring_before_the_index() {
        let memory = Heap::default();
        let mut ring = Ring::new(memory.clone()).unwrap();
        let places = ring.places();
        let chain = [
            Buffer { at: 0x1_0000_0000, bytes: 20, writable: false },
            Buffer { at: 0x2000, bytes: 4, writable: true },
        ];
        ring.publish(255, &chain).unwrap();
        let mut last = vec![0, 0, 0, 0, 1, 0, 0, 0, 20, 0, 0, 0, 1, 0, 0, 0];
        assert_eq!(raw(&memory, places.descriptors + 255 * 16, 16), last);
        last = vec![0, 0x20, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0, 0];
        assert_eq!(raw(&memory, places.descriptors, 16), last);
        assert_eq!(raw(&memory, places.available, 8), [1, 0, 1, 0, 255, 0, 0, 0]);
        ring.publish(7, &chain).unwrap();
        assert_eq!(raw(&memory, places.available, 8), [1, 0, 2, 0, 255, 0, 7, 0]);
    }

    #[test]
    fn used_chains_come_in_the_devices_order_around_the_ring() {
        let memory = Heap::default();
        let mut ring = Ring::new(memory.clone()).unwrap();
        let used = ring.places().used;
        for round in 0..300u16 {
            assert_eq!(ring.take_used().unwrap(), None);
            let head = u32::from(round);
            let entry = [head.to_le_bytes(), (head + 1).to_le_bytes()].concat();
            memory.write(used + 4 + 8 * u64::from(round % 256), &entry).unwrap();
            memory.store_index(used + 2, round.wrapping_add(1)).unwrap();
            assert_eq!(ring.take_used().unwrap(), Some(Used { head, bytes: head + 1 }));
        }
    }

    #[test]
    fn all_parts_of_the_largest_queue_lie_in_a_page() {
        assert_eq!(usize::from(QUEUE_SIZE) * 16, PAGE_BYTES);
        let used = 4 + 8 * usize::from(QUEUE_SIZE) + 2;
        assert!(used <= PAGE_BYTES);
    }
}

//! One descriptor's work: pieces as long as the IOMMU's mappings allow, exact about where it stops.

use vm_memory::{GuestAddress, GuestMemory, Permissions};

/// Most bytes of one look at memory: what an unmap may have to wait for.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// The longest order: long enough for any test, short enough that a reset never waits for long.
pub(crate) const LEN_MAX: u64 = 64 << 20;

/// Room for a chunk.
pub(crate) type Buffer = [u8; CHUNK_BYTES];

/// What is to be done with memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Source to destination.
    Copy,
    /// These eight bytes, again and again, to the destination; there is no source.
    Fill([u8; 8]),
    /// Source and destination are read.
    Compare,
}

/// Work that was asked for. Holding one proves that its length is in bounds and its ranges do not
/// wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Order {
    kind: Kind,
    source: u64,
    destination: u64,
    bytes: u64,
}

/// How an order ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// All was done.
    Done,
    /// The two ranges differ, at the first byte that is not counted as done.
    Different,
    /// The read of this address was refused.
    ReadFault(u64),
    /// The write of this address was refused.
    WriteFault(u64),
    /// There is no IOMMU that could translate any more.
    NoIommu,
}

impl Order {
    /// `bytes` bytes at `source` and at `destination`; `None` for 0 bytes, more than [`LEN_MAX`], or
    /// past the last address.
    pub(crate) fn new(kind: Kind, source: u64, destination: u64, bytes: u64) -> Option<Self> {
        let source = if matches!(kind, Kind::Fill(_)) { 0 } else { source };
        let fits = |start: u64| start.checked_add(bytes).is_some();
        let possible = (1..=LEN_MAX).contains(&bytes) && fits(source) && fits(destination);
        possible.then_some(Self { kind, source, destination, bytes })
    }

    /// Where it begins to access memory.
    pub(crate) fn first_address(&self) -> u64 {
        if matches!(self.kind, Kind::Fill(_)) { self.destination } else { self.source }
    }
}

/// An order on its way.
#[derive(Debug)]
pub(crate) struct Progress {
    order: Order,
    done: u64,
}

impl Progress {
    /// Nothing done yet.
    pub(crate) fn new(order: Order) -> Self {
        Self { order, done: 0 }
    }

    /// Bytes written, or found equal, so far.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// Does the next chunk through `buffer`; `Some` at the end.
    pub(crate) fn step<M: GuestMemory>(
        &mut self,
        memory: &M,
        buffer: &mut Buffer,
    ) -> Option<Outcome> {
        let outcome = match self.order.kind {
            Kind::Copy => self.copy(memory, buffer),
            Kind::Fill(pattern) => self.fill(memory, pattern, buffer),
            Kind::Compare => self.compare(memory, buffer),
        };
        outcome.or_else(|| (self.done == self.order.bytes).then_some(Outcome::Done))
    }

    /// Where the next chunk begins on either side, and how long it is at most.
    fn next(&self, most: usize) -> (u64, u64, usize) {
        let Order { source, destination, bytes, .. } = self.order;
        let left = usize::try_from(bytes - self.done).unwrap_or(usize::MAX);
        (source + self.done, destination + self.done, left.min(most))
    }

    fn copy<M: GuestMemory>(&mut self, memory: &M, buffer: &mut Buffer) -> Option<Outcome> {
        let (source, destination, bytes) = self.next(CHUNK_BYTES);
        let chunk = buffer.get_mut(..bytes)?;
        let read = read(memory, source, chunk);
        let written = write(memory, destination, chunk.get(..read)?);
        self.done += written as u64;
        if written < read {
            Some(Outcome::WriteFault(destination + written as u64))
        } else if read < bytes {
            Some(Outcome::ReadFault(source + read as u64))
        } else {
            None
        }
    }

    fn fill<M: GuestMemory>(
        &mut self,
        memory: &M,
        pattern: [u8; 8],
        buffer: &mut Buffer,
    ) -> Option<Outcome> {
        let (_, destination, bytes) = self.next(CHUNK_BYTES);
        let chunk = buffer.get_mut(..bytes)?;
        for (byte, value) in chunk.iter_mut().zip(pattern.iter().cycle()) {
            *byte = *value;
        }
        let written = write(memory, destination, chunk);
        self.done += written as u64;
        (written < bytes).then_some(Outcome::WriteFault(destination + written as u64))
    }

    fn compare<M: GuestMemory>(&mut self, memory: &M, buffer: &mut Buffer) -> Option<Outcome> {
        let (first, second, bytes) = self.next(CHUNK_BYTES / 2);
        let (left, right) = buffer.split_at_mut(CHUNK_BYTES / 2);
        let (left, right) = (left.get_mut(..bytes)?, right.get_mut(..bytes)?);
        let read_first = read(memory, first, left);
        let read_second = read(memory, second, right.get_mut(..read_first)?);
        let pairs = left.iter().zip(right.iter()).take(read_second);
        let equal = pairs.take_while(|(one, other)| one == other).count();
        self.done += equal as u64;
        if equal < read_second {
            Some(Outcome::Different)
        } else if read_second < read_first {
            Some(Outcome::ReadFault(second + read_second as u64))
        } else if read_first < bytes {
            Some(Outcome::ReadFault(first + read_first as u64))
        } else {
            None
        }
    }
}

/// Fills `to` from `address` on; returns how many bytes could be read.
fn read<M: GuestMemory>(memory: &M, address: u64, to: &mut [u8]) -> usize {
    let bytes = to.len();
    let mut rest = to;
    if let Ok(slices) = memory.get_slices(GuestAddress(address), bytes, Permissions::Read) {
        for slice in slices.map_while(Result::ok) {
            let (part, behind) = rest.split_at_mut(slice.len().min(rest.len()));
            slice.copy_to(part);
            rest = behind;
        }
    }
    bytes - rest.len()
}

/// Writes `from` to `address`; returns how many bytes could be written.
fn write<M: GuestMemory>(memory: &M, address: u64, from: &[u8]) -> usize {
    let mut rest = from;
    if let Ok(slices) = memory.get_slices(GuestAddress(address), from.len(), Permissions::Write) {
        for slice in slices.map_while(Result::ok) {
            let (part, behind) = rest.split_at(slice.len().min(rest.len()));
            slice.copy_from(part);
            rest = behind;
        }
    }
    from.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestMemoryMmap};

    use super::*;

    const PAGE: usize = 4096;

    /// Pages at 0..0x4_0000 and one at 0x5_0000, with a hole between.
    fn memory() -> GuestMemoryMmap {
        let ranges = [(GuestAddress(0), 64 * PAGE), (GuestAddress(0x5_0000), PAGE)];
        let memory = GuestMemoryMmap::from_ranges(&ranges).unwrap();
        let pattern: Vec<u8> = (0..=250).cycle().take(64 * PAGE).collect();
        memory.write_slice(&pattern, GuestAddress(0)).unwrap();
        memory
    }

    fn run(memory: &GuestMemoryMmap, order: Option<Order>) -> (Outcome, u64) {
        let mut progress = Progress::new(order.unwrap());
        let mut buffer = [0; CHUNK_BYTES];
        loop {
            if let Some(outcome) = progress.step(memory, &mut buffer) {
                return (outcome, progress.done());
            }
        }
    }

    fn copy(source: u64, destination: u64, bytes: u64) -> Option<Order> {
        Order::new(Kind::Copy, source, destination, bytes)
    }

    fn compare(source: u64, destination: u64, bytes: u64) -> Option<Order> {
        Order::new(Kind::Compare, source, destination, bytes)
    }

    fn bytes(memory: &GuestMemoryMmap, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        memory.read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    #[test]
    fn a_copy_of_several_chunks_is_exact() {
        let memory = memory();
        let length = CHUNK_BYTES + 0x123;
        let before = bytes(&memory, 0x2_0003 + length as u64, 16);
        let order = copy(0x11, 0x2_0003, length as u64);
        assert_eq!(run(&memory, order), (Outcome::Done, length as u64));
        assert_eq!(bytes(&memory, 0x2_0003, length), bytes(&memory, 0x11, length));
        assert_eq!(bytes(&memory, 0x2_0003 + length as u64, 16), before);
    }

    #[test]
    fn a_read_fault_stops_at_the_first_missing_byte() {
        let memory = memory();
        let order = copy(0x4_0000 - 0x30, 0x5_0000, 0x100);
        assert_eq!(run(&memory, order), (Outcome::ReadFault(0x4_0000), 0x30));
        assert_eq!(bytes(&memory, 0x5_0000, 0x30), bytes(&memory, 0x4_0000 - 0x30, 0x30));
        assert_eq!(bytes(&memory, 0x5_0030, 0x10), [0; 0x10]);
    }

    #[test]
    fn a_write_fault_stops_at_the_first_byte_that_cannot_be_written() {
        let memory = memory();
        let order = copy(0, 0x5_0ff0, 0x100);
        assert_eq!(run(&memory, order), (Outcome::WriteFault(0x5_1000), 0x10));
        assert_eq!(run(&memory, copy(0, 0x9_0000, 1)), (Outcome::WriteFault(0x9_0000), 0));
    }

    #[test]
    fn when_both_sides_end_the_write_that_comes_first_is_reported() {
        let memory = memory();
        let order = copy(0x4_0000 - 0x20, 0x5_0ff0, 0x100);
        assert_eq!(run(&memory, order), (Outcome::WriteFault(0x5_1000), 0x10));
    }

    #[test]
    fn a_fill_repeats_its_pattern_from_the_first_byte_on() {
        let memory = memory();
        let length = CHUNK_BYTES as u64 + 5;
        let order = Order::new(Kind::Fill(*b"pattern."), u64::MAX, 0x1003, length);
        assert_eq!(run(&memory, order), (Outcome::Done, length));
        let filled = bytes(&memory, 0x1003, CHUNK_BYTES + 5);
        assert!(filled.iter().zip(b"pattern.".iter().cycle()).all(|(is, be)| is == be));
        let order = Order::new(Kind::Fill([7; 8]), 0, 0x5_0ffc, 16);
        assert_eq!(run(&memory, order), (Outcome::WriteFault(0x5_1000), 4));
    }

    #[test]
    fn a_comparison_ends_at_the_first_difference_or_missing_byte() {
        let memory = memory();
        memory.write_slice(&[0x55; 0x8000], GuestAddress(0x1_0000)).unwrap();
        memory.write_slice(&[0x55; 0x8000], GuestAddress(0x2_0000)).unwrap();
        assert_eq!(run(&memory, compare(0x1_0000, 0x2_0000, 0x8000)), (Outcome::Done, 0x8000));
        memory.write_slice(&[1], GuestAddress(0x2_7ffe)).unwrap();
        let order = compare(0x1_0000, 0x2_0000, 0x8000);
        assert_eq!(run(&memory, order), (Outcome::Different, 0x7ffe));
        let order = compare(0x5_0ff0, 0x3_0000, 0x20);
        memory.write_slice(&[0; 16], GuestAddress(0x3_0000)).unwrap();
        assert_eq!(run(&memory, order), (Outcome::ReadFault(0x5_1000), 16));
        let order = compare(0x3_0000, 0x5_0ff0, 0x20);
        assert_eq!(run(&memory, order), (Outcome::ReadFault(0x5_1000), 16));
    }

    #[test]
    fn orders_that_cannot_be_are_none() {
        assert_eq!(copy(0, 0, 0), None);
        assert_eq!(copy(0, 0, LEN_MAX + 1), None);
        assert_eq!(copy(u64::MAX, 0, 1), None);
        assert_eq!(compare(0, u64::MAX - 1, 2), None);
        assert!(copy(0, u64::MAX - LEN_MAX, LEN_MAX).is_some());
        assert!(Order::new(Kind::Fill([0; 8]), u64::MAX, 0, 1).is_some(), "no source");
    }
}

//! The copy itself: pieces as long as the IOMMU's mappings allow, exact about where it stops.

use vm_memory::{GuestAddress, GuestMemory, Permissions};

use super::registers::{Order, Outcome};

/// Most bytes of one look at memory: what an unmap may have to wait for.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;

/// A copy on its way.
#[derive(Debug)]
pub(crate) struct Progress {
    order: Order,
    copied: u64,
}

impl Progress {
    /// Nothing copied yet.
    pub(crate) fn new(order: Order) -> Self {
        Self { order, copied: 0 }
    }

    /// Bytes written so far.
    pub(crate) fn copied(&self) -> u64 {
        self.copied
    }

    /// Copies the next chunk through `buffer`; `Some` at the end.
    pub(crate) fn step<M: GuestMemory>(
        &mut self,
        memory: &M,
        buffer: &mut [u8; CHUNK_BYTES],
    ) -> Option<Outcome> {
        let source = self.order.source + self.copied;
        let destination = self.order.destination + self.copied;
        let left = usize::try_from(self.order.bytes - self.copied).unwrap_or(usize::MAX);
        let chunk = buffer.get_mut(..left.min(CHUNK_BYTES))?;

        let read = read(memory, source, chunk);
        let written = write(memory, destination, chunk.get(..read)?);
        self.copied += written as u64;
        if written < read {
            Some(Outcome::WriteFault(destination + written as u64))
        } else if read < chunk.len() {
            Some(Outcome::ReadFault(source + read as u64))
        } else {
            (self.copied == self.order.bytes).then_some(Outcome::Done)
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

    fn run(memory: &GuestMemoryMmap, order: Order) -> (Outcome, u64) {
        let mut progress = Progress::new(order);
        let mut buffer = [0; CHUNK_BYTES];
        loop {
            if let Some(outcome) = progress.step(memory, &mut buffer) {
                return (outcome, progress.copied());
            }
        }
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
        let order = Order { source: 0x11, destination: 0x2_0003, bytes: length as u64 };
        let before = bytes(&memory, 0x2_0003 + length as u64, 16);
        assert_eq!(run(&memory, order), (Outcome::Done, length as u64));
        assert_eq!(bytes(&memory, 0x2_0003, length), bytes(&memory, 0x11, length));
        assert_eq!(bytes(&memory, 0x2_0003 + length as u64, 16), before);
    }

    #[test]
    fn a_read_fault_stops_at_the_first_missing_byte() {
        let memory = memory();
        let order = Order { source: 0x4_0000 - 0x30, destination: 0x5_0000, bytes: 0x100 };
        assert_eq!(run(&memory, order), (Outcome::ReadFault(0x4_0000), 0x30));
        assert_eq!(bytes(&memory, 0x5_0000, 0x30), bytes(&memory, 0x4_0000 - 0x30, 0x30));
        assert_eq!(bytes(&memory, 0x5_0030, 0x10), [0; 0x10]);
    }

    #[test]
    fn a_write_fault_stops_at_the_first_byte_that_cannot_be_written() {
        let memory = memory();
        let order = Order { source: 0, destination: 0x5_0ff0, bytes: 0x100 };
        assert_eq!(run(&memory, order), (Outcome::WriteFault(0x5_1000), 0x10));
        let order = Order { source: 0, destination: 0x9_0000, bytes: 1 };
        assert_eq!(run(&memory, order), (Outcome::WriteFault(0x9_0000), 0));
    }

    #[test]
    fn when_both_sides_end_the_write_that_comes_first_is_reported() {
        let memory = memory();
        let order = Order { source: 0x4_0000 - 0x20, destination: 0x5_0ff0, bytes: 0x100 };
        assert_eq!(run(&memory, order), (Outcome::WriteFault(0x5_1000), 0x10));
    }
}

//! The registers of the whole device and of its one untagged copy, as the device's documentation lists
//! them.

use super::job::{Kind, LEN_MAX, Order, Outcome};
use super::queue::QUEUES;
use super::support::{merge_register, read_register};

const ID: u32 = u32::from_le_bytes(*b"VDMA");
const VERSION: u32 = 2;

const COMMAND_COPY: u32 = 1;

const STATUS_BUSY: u32 = 1 << 0;
const STATUS_DONE: u32 = 1 << 1;
const STATUS_FAULT: u32 = 1 << 2;
const STATUS_REFUSED: u32 = 1 << 3;

const INFO_WRITE: u32 = 1 << 0;
const INFO_NO_IOMMU: u32 = 1 << 1;

/// The registers' values.
#[derive(Debug, Default)]
pub(crate) struct Registers {
    source: u64,
    destination: u64,
    bytes: u64,
    status: u32,
    fault_address: u64,
    fault_info: u32,
    copied: u64,
}

impl Registers {
    /// Fills `data` from the register that holds `offset`.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let (value, start) = match offset {
            0x00..0x04 => (u64::from(ID), 0x00),
            0x04..0x08 => (u64::from(VERSION), 0x04),
            0x08..0x10 => (self.source, 0x08),
            0x10..0x18 => (self.destination, 0x10),
            0x18..0x20 => (self.bytes, 0x18),
            0x24..0x28 => (u64::from(self.status), 0x24),
            0x28..0x30 => (self.fault_address, 0x28),
            0x30..0x34 => (u64::from(self.fault_info), 0x30),
            0x38..0x40 => (self.copied, 0x38),
            0x40..0x48 => (LEN_MAX, 0x40),
            0x48..0x4c => (QUEUES.into(), 0x48),
            _ => (0, offset),
        };
        read_register(value, offset - start, data);
    }

    /// Writes `data` to the register that holds `offset`. Returns the copy that this begins.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) -> Option<Order> {
        let busy = self.status & STATUS_BUSY != 0;
        match offset {
            0x08..0x10 if !busy => self.source = merge_register(self.source, offset - 0x08, data),
            0x10..0x18 if !busy => {
                self.destination = merge_register(self.destination, offset - 0x10, data);
            }
            0x18..0x20 if !busy => self.bytes = merge_register(self.bytes, offset - 0x18, data),
            0x20 if merge_register(0, 0, data) == u64::from(COMMAND_COPY) => return self.begin(),
            0x24..0x28 => {
                let cleared = merge_register(0, offset - 0x24, data);
                let clearable = STATUS_DONE | STATUS_FAULT | STATUS_REFUSED;
                self.status &= !(clearable & u32::try_from(cleared).unwrap_or(u32::MAX));
            }
            _ => {}
        }
        None
    }

    /// A copy has come to its end after `copied` bytes.
    pub(crate) fn finish(&mut self, outcome: Outcome, copied: u64) {
        self.copied = copied;
        (self.status, self.fault_address, self.fault_info) = match outcome {
            // copies compare nothing
            Outcome::Done | Outcome::Different => (STATUS_DONE, 0, 0),
            Outcome::ReadFault(address) => (STATUS_FAULT, address, 0),
            Outcome::WriteFault(address) => (STATUS_FAULT, address, INFO_WRITE),
            Outcome::NoIommu => (STATUS_FAULT, self.source.wrapping_add(copied), INFO_NO_IOMMU),
        };
    }

    fn begin(&mut self) -> Option<Order> {
        let Self { source, destination, bytes, status, .. } = *self;
        let order = Order::new(Kind::Copy, source, destination, bytes);
        if status & STATUS_BUSY != 0 || order.is_none() {
            self.status |= STATUS_REFUSED;
            return None;
        }
        *self = Self { source, destination, bytes, status: STATUS_BUSY, ..Self::default() };
        order
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read64(registers: &Registers, offset: u64) -> u64 {
        let mut data = [0; 8];
        registers.read(offset, &mut data);
        u64::from_le_bytes(data)
    }

    fn set(registers: &mut Registers, source: u64, destination: u64, bytes: u64) {
        for (offset, value) in [(0x08, source), (0x10, destination), (0x18, bytes)] {
            assert_eq!(registers.write(offset, &value.to_le_bytes()), None);
        }
    }

    fn copy(registers: &mut Registers) -> Option<Order> {
        registers.write(0x20, &1u32.to_le_bytes())
    }

    #[test]
    fn reset_values_are_those_of_the_table() {
        let registers = Registers::default();
        let mut all = [0; 0x50];
        for (offset, chunk) in (0..).step_by(4).zip(all.chunks_mut(4)) {
            registers.read(offset, chunk);
        }
        let mut expected = [0; 0x50];
        expected[..4].copy_from_slice(b"VDMA");
        expected[4] = 2;
        expected[0x43] = 4;
        expected[0x48] = 8;
        assert_eq!(all, expected);
    }

    #[test]
    fn a_copy_is_busy_then_done_and_write_one_clears() {
        let mut registers = Registers::default();
        set(&mut registers, 0x1000, 0x2000, 0x30);
        let order = Order::new(Kind::Copy, 0x1000, 0x2000, 0x30);
        assert!(order.is_some());
        assert_eq!(copy(&mut registers), order);
        assert_eq!(read64(&registers, 0x24), u64::from(STATUS_BUSY));
        registers.finish(Outcome::Done, 0x30);
        assert_eq!((read64(&registers, 0x24), read64(&registers, 0x38)), (2, 0x30));
        registers.write(0x24, &[0xfd]);
        assert_eq!(read64(&registers, 0x24), 2);
        registers.write(0x24, &[2]);
        assert_eq!(read64(&registers, 0x24), 0);
    }

    #[test]
    fn a_fault_says_where_and_which_and_the_next_copy_forgets_it() {
        let mut registers = Registers::default();
        set(&mut registers, 0x1000, 0x2000, 0x30);
        copy(&mut registers);
        registers.finish(Outcome::WriteFault(0x2010), 0x10);
        let fault = [0x24, 0x28, 0x30, 0x38].map(|offset| read64(&registers, offset));
        assert_eq!(fault, [4, 0x2010, 1, 0x10]);
        copy(&mut registers);
        registers.finish(Outcome::ReadFault(0x1000), 0);
        let fault = [0x24, 0x28, 0x30, 0x38].map(|offset| read64(&registers, offset));
        assert_eq!(fault, [4, 0x1000, 0, 0]);
    }

    #[test]
    fn impossible_copies_are_refused_and_keep_what_was() {
        let bad = [
            (0, 0, 0),
            (0, 0, LEN_MAX + 1),
            (u64::MAX, 0, 1),
            (0, u64::MAX - 1, 2),
            (0, 0, u64::MAX),
        ];
        for (source, destination, bytes) in bad {
            let mut registers = Registers::default();
            set(&mut registers, source, destination, bytes);
            assert_eq!(copy(&mut registers), None);
            assert_eq!(read64(&registers, 0x24), u64::from(STATUS_REFUSED), "{bytes:#x}");
        }
        let mut registers = Registers::default();
        set(&mut registers, 0, 0, LEN_MAX);
        assert!(copy(&mut registers).is_some());
    }

    #[test]
    fn a_busy_engine_refuses_commands_and_keeps_its_registers() {
        let mut registers = Registers::default();
        set(&mut registers, 0x1000, 0x2000, 0x30);
        copy(&mut registers);
        set(&mut registers, 1, 2, 3);
        assert_eq!(copy(&mut registers), None);
        assert_eq!(read64(&registers, 0x24), u64::from(STATUS_BUSY | STATUS_REFUSED));
        assert_eq!(read64(&registers, 0x08), 0x1000);
    }

    #[test]
    fn offsets_without_a_register_read_zero_and_halves_are_writable() {
        let mut registers = Registers::default();
        for offset in [0x20, 0x34, 0x4c, 0x100, 0xffc, u64::MAX] {
            assert_eq!(registers.write(offset, &[0xff; 8]), None);
            assert_eq!(read64(&registers, offset) & 0xffff_ffff, 0, "{offset:#x}");
        }
        registers.write(0x0c, &[0x11, 0, 0, 0]);
        assert_eq!(read64(&registers, 0x08), 0x11_0000_0000);
    }
}

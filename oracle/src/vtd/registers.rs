//! VT-d's registers and its invalidation queue (VT-d 5.0, 11.4 and 6.5.2).

use viommu_pgtable::PhysAddr;

use super::mode::Mode;
use crate::emulator::Emulator;
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::qtest::Batch;

/// Where q35 puts the unit.
const BASE: u64 = 0xfed9_0000;
const CAPABILITY: u64 = BASE + 0x08;
const GLOBAL_COMMAND: u64 = BASE + 0x18;
const GLOBAL_STATUS: u64 = BASE + 0x1c;
const ROOT_TABLE: u64 = BASE + 0x20;
const FAULT_STATUS: u64 = BASE + 0x34;
const QUEUE_TAIL: u64 = BASE + 0x88;
const QUEUE_ADDRESS: u64 = BASE + 0x90;

/// Global command and status: translation, root table pointer, queued invalidation.
const TRANSLATION: u32 = 1 << 31;
const SET_ROOT: u32 = 1 << 30;
const QUEUE: u32 = 1 << 26;

/// Root table address, bits 11:10: scalable mode.
const ROOT_SCALABLE: u64 = 1 << 10;
/// Queue address, bit 11: descriptors of 256 bits, as scalable mode wants them.
const QUEUE_WIDE: u64 = 1 << 11;

/// Fault status: overflow, which is cleared by writing 1.
const FAULT_OVERFLOW: u32 = 1;
/// Fault record, high word: F (cleared by writing 1 to the record's last 32 bits), T1.
const RECORD_FAULT: u64 = 1 << 63;
const RECORD_READ: u64 = 1 << 62;
const RECORD_CLEAR: u32 = 1 << 31;

/// Bytes of the queue: 256 narrow or 128 wide descriptors.
const QUEUE_BYTES: u64 = 4096;

/// The first words of invalidation descriptors (6.5.2): type at 3:0, granularity at 5:4.
mod descriptor {
    /// Context cache, global.
    pub(super) const CONTEXT: u64 = 0x1 | 1 << 4;
    /// IOTLB, global.
    pub(super) const IOTLB: u64 = 0x2 | 1 << 4;
    /// PASID cache, global.
    pub(super) const PASID: u64 = 0x7 | 3 << 4;
    /// Wait, with a status write; the status is at 63:32.
    pub(super) const WAIT: u64 = 0x5 | 1 << 5;

    /// Context cache, of one function: domain at 31:16, function at 47:32.
    pub(super) const CONTEXT_OF_FUNCTION: u64 = 0x1 | 3 << 4;
    /// IOTLB, of one domain, which is at 31:16.
    pub(super) const IOTLB_OF_DOMAIN: u64 = 0x2 | 2 << 4;
    /// PASID cache, of one PASID: domain at 31:16, PASID at 51:32.
    pub(super) const PASID_OF_DOMAIN: u64 = 0x7 | 1 << 4;
    /// IOTLB, of a first level and one PASID: domain at 31:16, PASID at 51:32.
    pub(super) const IOTLB_OF_PASID: u64 = 0x6 | 2 << 4;
}

/// A fault record (11.4.7.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The fault reason.
    pub reason: u8,
    /// Who asked.
    pub source: u16,
    /// The page that was asked for.
    pub page: u64,
    /// The request was a read.
    pub read: bool,
}

/// The unit, programmed.
#[derive(Debug)]
pub(super) struct Registers {
    fault_record: u64,
    scalable: bool,
    queue: PhysAddr,
    tail: u64,
    status: u32,
}

impl Registers {
    /// Gives the unit its root table and its queue (a page of memory at `queue` and a word behind
    /// it), and switches translation on.
    ///
    /// # Errors
    /// If the unit does not do what it is told.
    pub(super) fn set_up(
        machine: &mut Emulator,
        root: PhysAddr,
        queue: PhysAddr,
        scalable: bool,
    ) -> Result<Self> {
        let capability = machine.ask(Batch::new().read64(CAPABILITY))?;
        // FRO: where fault records are, in units of 16 bytes
        let fault_record = BASE + ((capability >> 24) & 0x3ff) * 16;
        let registers = Self { fault_record, scalable, queue, tail: 0, status: 0 };
        let (mode, wide) = if scalable { (ROOT_SCALABLE, QUEUE_WIDE) } else { (0, 0) };
        let mut batch = Batch::new();
        batch.write64(ROOT_TABLE, root.raw() | mode).write32(GLOBAL_COMMAND, SET_ROOT);
        batch.write64(QUEUE_TAIL, 0).write64(QUEUE_ADDRESS, queue.raw() | wide);
        batch.write32(GLOBAL_COMMAND, QUEUE).write32(GLOBAL_COMMAND, QUEUE | TRANSLATION);
        let found = machine.ask(batch.read32(GLOBAL_STATUS))?;
        let wanted = u64::from(TRANSLATION | SET_ROOT | QUEUE);
        if found & wanted != wanted {
            return Err(Error::Machine { what: "VT-d's global status", found });
        }
        Ok(registers)
    }

    /// Drops everything that the unit has cached, and waits until that is done.
    ///
    /// # Errors
    /// If the unit does not say that it is done.
    pub(super) fn invalidate(&mut self, machine: &mut Emulator, ram: &GuestRam) -> Result<()> {
        let pasids = self.scalable.then_some(descriptor::PASID);
        let work = [Some(descriptor::CONTEXT), pasids, Some(descriptor::IOTLB)];
        self.carry_out(machine, ram, &work.into_iter().flatten().collect::<Vec<_>>())
    }

    /// Drops what the unit has cached of `bdf` without a PASID, which is in domain `tag`: what the
    /// manual asks for when the entry that leads it there is not present any more (6.5.3.3).
    ///
    /// # Errors
    /// As [`invalidate`](Self::invalidate).
    pub(super) fn invalidate_one(
        &mut self,
        machine: &mut Emulator,
        ram: &GuestRam,
        (mode, bdf, tag): (Mode, u16, u16),
    ) -> Result<()> {
        let work = match mode {
            Mode::Legacy(_) => [
                descriptor::CONTEXT_OF_FUNCTION | u64::from(bdf) << 32,
                descriptor::IOTLB_OF_DOMAIN,
            ],
            Mode::ScalableSecond(_) => [descriptor::PASID_OF_DOMAIN, descriptor::IOTLB_OF_DOMAIN],
            Mode::ScalableFirst => [descriptor::PASID_OF_DOMAIN, descriptor::IOTLB_OF_PASID],
        };
        self.carry_out(machine, ram, &work.map(|word| word | u64::from(tag) << 16))
    }

    /// Has the unit carry out the descriptors with these first words, and waits.
    fn carry_out(&mut self, machine: &mut Emulator, ram: &GuestRam, work: &[u64]) -> Result<()> {
        self.status = self.status.wrapping_add(1);
        let wait = descriptor::WAIT | u64::from(self.status) << 32;
        let status_at = PhysAddr::new(self.queue.raw() + QUEUE_BYTES);
        for word in work {
            self.push(ram, [*word, 0])?;
        }
        self.push(ram, [wait, status_at.raw()])?;
        machine.run(Batch::new().write64(QUEUE_TAIL, self.tail))?;
        let mut status = [0; 4];
        ram.read(status_at, &mut status).ok_or(Error::TableMemory { at: status_at })?;
        if u32::from_le_bytes(status) == self.status {
            return Ok(());
        }
        let found = machine.ask(Batch::new().read32(FAULT_STATUS))?;
        Err(Error::Machine { what: "VT-d's fault status after an invalidation", found })
    }

    fn push(&mut self, ram: &GuestRam, words: [u64; 2]) -> Result<()> {
        let bytes = if self.scalable { 32 } else { 16 };
        let at = self.queue.raw() + self.tail;
        for (word, offset) in words.into_iter().chain([0, 0]).zip((0..bytes).step_by(8)) {
            let at = PhysAddr::new(at + offset);
            ram.store(at, word).ok_or(Error::TableMemory { at })?;
        }
        self.tail = (self.tail + bytes) % QUEUE_BYTES;
        Ok(())
    }

    /// Takes the fault record, if there is one: the next fault finds the unit as it was.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub(super) fn take_fault(&self, machine: &mut Emulator) -> Result<Option<Record>> {
        let mut batch = Batch::new();
        let answers = machine.run(batch.read64(self.fault_record).read64(self.fault_record + 8))?;
        let [low, high] = answers.as_slice() else { return Ok(None) };
        if high & RECORD_FAULT == 0 {
            return Ok(None);
        }
        let mut batch = Batch::new();
        batch.write32(self.fault_record + 12, RECORD_CLEAR).write32(FAULT_STATUS, FAULT_OVERFLOW);
        machine.run(&batch)?;
        let [source0, source1, _, _, reason, ..] = high.to_le_bytes();
        Ok(Some(Record {
            reason,
            source: u16::from_le_bytes([source0, source1]),
            page: *low,
            read: high & RECORD_READ != 0,
        }))
    }

    /// Switches translation off, or on again: off, devices reach memory as it is.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub(super) fn translate(&self, machine: &mut Emulator, on: bool) -> Result<()> {
        let command = if on { QUEUE | TRANSLATION } else { QUEUE };
        machine.run(Batch::new().write32(GLOBAL_COMMAND, command))?;
        Ok(())
    }
}

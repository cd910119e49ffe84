//! The SMMU's registers and queues (IHI 0070, 6.3, 3.5 and 4).

use viommu_pasid::smmuv3::StreamRoot;
use viommu_pgtable::{PhysAddr, TableMemory};

use super::event::{EVENT_BYTES, Record};
use crate::emulator::Emulator;
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::qtest::Batch;

/// Where `virt` puts the SMMU.
const BASE: u64 = 0x0905_0000;
const CONTROL: u64 = BASE + 0x20;
const CONTROL_ACK: u64 = BASE + 0x24;
const GLOBAL_ERROR: u64 = BASE + 0x60;
const STREAM_BASE: u64 = BASE + 0x80;
const STREAM_CONFIG: u64 = BASE + 0x88;
const COMMAND_BASE: u64 = BASE + 0x90;
const COMMAND_PRODUCER: u64 = BASE + 0x98;
const COMMAND_CONSUMER: u64 = BASE + 0x9c;
const EVENT_BASE: u64 = BASE + 0xa0;
const EVENT_PRODUCER: u64 = BASE + 0x1_00a8;
const EVENT_CONSUMER: u64 = BASE + 0x1_00ac;

/// CR0: SMMUEN, EVENTQEN, CMDQEN.
const TRANSLATE: u32 = 1 << 0;
const QUEUES: u32 = 1 << 2 | 1 << 3;

/// Both queues have 2^5 entries; indices have one bit more, which tells full from empty.
const QUEUE_LG2: u32 = 5;
const INDEX_MASK: u32 = (1 << (QUEUE_LG2 + 1)) - 1;
const SLOT_MASK: u32 = (1 << QUEUE_LG2) - 1;
/// Bytes of a command.
const COMMAND_BYTES: u64 = 16;

/// CMD_CFGI_ALL: all configuration; CMD_TLBI_NSNH_ALL: all translations; CMD_SYNC.
const COMMANDS: [[u64; 2]; 3] = [[0x04, 31], [0x30, 0], [0x46, 0]];

/// The SMMU, programmed.
#[derive(Debug)]
pub(super) struct Registers {
    commands: PhysAddr,
    events: PhysAddr,
    producer: u32,
    consumer: u32,
}

impl Registers {
    /// Gives the SMMU its stream table and its queues, a page each at `queues`, and switches it on.
    ///
    /// # Errors
    /// If it does not do what it is told.
    pub(super) fn set_up(
        machine: &mut Emulator,
        root: &StreamRoot,
        queues: PhysAddr,
    ) -> Result<Self> {
        let (commands, events) = (queues, PhysAddr::new(queues.raw() + 0x1000));
        let size = u64::from(QUEUE_LG2);
        let mut batch = Batch::new();
        batch.write64(STREAM_BASE, root.base().raw());
        batch.write32(STREAM_CONFIG, root.base_config());
        batch.write64(COMMAND_BASE, commands.raw() | size).write32(COMMAND_PRODUCER, 0);
        batch.write64(EVENT_BASE, events.raw() | size).write32(EVENT_CONSUMER, 0);
        batch.write32(CONTROL, QUEUES).write32(CONTROL, QUEUES | TRANSLATE);
        let found = machine.ask(batch.read32(CONTROL_ACK))?;
        if found != u64::from(QUEUES | TRANSLATE) {
            return Err(Error::Machine { what: "the SMMU's CR0ACK", found });
        }
        Ok(Self { commands, events, producer: 0, consumer: 0 })
    }

    /// Drops everything that the SMMU has cached.
    ///
    /// # Errors
    /// If it does not take the commands.
    pub(super) fn invalidate(&mut self, machine: &mut Emulator, ram: &GuestRam) -> Result<()> {
        for command in COMMANDS {
            let slot = u64::from(self.producer & SLOT_MASK);
            for (word, offset) in command.into_iter().zip([0, 8]) {
                let at = PhysAddr::new(self.commands.raw() + slot * COMMAND_BYTES + offset);
                ram.store(at, word).ok_or(Error::TableMemory { at })?;
            }
            self.producer = (self.producer + 1) & INDEX_MASK;
        }
        let mut batch = Batch::new();
        batch.write32(COMMAND_PRODUCER, self.producer).read32(COMMAND_CONSUMER);
        let consumed = machine.ask(&batch)?;
        if consumed == u64::from(self.producer) {
            return Ok(());
        }
        let found = machine.ask(Batch::new().read32(GLOBAL_ERROR))?;
        Err(Error::Machine { what: "the SMMU's GERROR after an invalidation", found })
    }

    /// Takes the oldest event record; younger ones of the same access are dropped.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub(super) fn take_event(
        &mut self,
        machine: &mut Emulator,
        ram: &GuestRam,
    ) -> Result<Option<Record>> {
        let found = machine.ask(Batch::new().read32(EVENT_PRODUCER))?;
        let producer = u32::try_from(found).unwrap_or(0) & INDEX_MASK;
        if producer == self.consumer {
            return Ok(None);
        }
        let slot = u64::from(self.consumer & SLOT_MASK);
        let at = self.events.raw() + slot * EVENT_BYTES;
        let word = |index: u64| ram.load(PhysAddr::new(at + index * 8)).unwrap_or(0);
        let record = Record::decode([word(0), word(1), word(2), word(3)]);
        self.consumer = producer;
        machine.run(Batch::new().write32(EVENT_CONSUMER, producer))?;
        Ok(Some(record))
    }

    /// Switches translation off, or on again: off, devices reach memory as it is.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub(super) fn translate(&self, machine: &mut Emulator, on: bool) -> Result<()> {
        let control = if on { QUEUES | TRANSLATE } else { QUEUES };
        machine.run(Batch::new().write32(CONTROL, control))?;
        Ok(())
    }
}

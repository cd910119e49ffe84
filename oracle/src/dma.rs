//! Devices that do one DMA when told to: QEMU's `iommu-testdev` writes, its `edu` reads.

use viommu_pgtable::{Iova, PhysAddr};

use crate::emulator::Emulator;
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::pci::{Config, Function};
use crate::qtest::Batch;
use crate::subject::Probe;

/// The writer's registers.
mod testdev {
    pub(super) const ID: u32 = 0x0005_1b36;
    pub(super) const TRIGGER: u64 = 0x00;
    pub(super) const IOVA_LOW: u64 = 0x04;
    pub(super) const IOVA_HIGH: u64 = 0x08;
    pub(super) const LENGTH: u64 = 0x0c;
    pub(super) const RESULT: u64 = 0x10;
    pub(super) const DOORBELL: u64 = 0x14;
    pub(super) const ATTRIBUTES: u64 = 0x18;

    /// Arms the engine.
    pub(super) const ARM: u32 = 1;
    /// Not secure; says so.
    pub(super) const NON_SECURE: u32 = 0x0a;
    /// The write itself failed.
    pub(super) const WRITE_FAILED: u64 = 0xdead_0002;
    /// What it writes, as often as the length says.
    pub(super) const PATTERN: u32 = 0x1234_5678;
}

/// The reader's registers.
mod edu {
    pub(super) const ID: u32 = 0x11e8_1234;
    pub(super) const SOURCE: u64 = 0x80;
    pub(super) const DESTINATION: u64 = 0x88;
    pub(super) const COUNT: u64 = 0x90;
    pub(super) const COMMAND: u64 = 0x98;

    /// The device's own buffer, in its addresses.
    pub(super) const BUFFER: u64 = 0x40000;
    /// Start, from memory to the buffer.
    pub(super) const FETCH: u64 = 1;
    /// Start, from the buffer to memory.
    pub(super) const DELIVER: u64 = 1 | 1 << 1;
    /// A transfer takes 100 ms of the machine's time; one more to be past it.
    pub(super) const TRANSFER_NS: u64 = 101_000_000;
}

/// Bytes of one DMA.
pub const DMA_BYTES: u64 = 4;

/// What came of a DMA, as memory shows it. Whether the IOMMU reported a fault is asked elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// The bytes moved to or from here, one of the places where they were expected to.
    Moved(PhysAddr),
    /// The device could do its access, but the bytes are not where they were expected.
    Elsewhere,
    /// The device could not do its access, as far as it can tell.
    Nothing,
}

/// The two engines of a machine.
#[derive(Debug, Clone, Copy)]
pub struct Engines {
    /// Writes: `iommu-testdev`.
    pub writer: Function,
    /// Reads: `edu`.
    pub reader: Function,
}

impl Engines {
    /// The engines with their BARs at `bars` and 1 MiB above, in slots 4 and 5.
    #[must_use]
    pub const fn at(bars: u32) -> Self {
        Self {
            writer: Function { device: 4, id: testdev::ID, bar0: bars },
            reader: Function { device: 5, id: edu::ID, bar0: bars + 0x10_0000 },
        }
    }

    /// What makes QEMU have them in these slots.
    #[must_use]
    pub const fn arguments() -> [&'static str; 4] {
        ["-device", "iommu-testdev,addr=4", "-device", "edu,addr=5,dma_mask=0xffffffffffffffff"]
    }

    /// Makes both answer.
    ///
    /// # Errors
    /// If they are not where they should be.
    pub fn enable(&self, machine: &mut Emulator, config: Config) -> Result<()> {
        self.writer.enable(machine, config)?;
        self.reader.enable(machine, config)
    }

    /// Does what `probe` says. `targets` are where its bytes may move to or come from. What a read
    /// has moved is asked with [`delivered`](Self::delivered), if no fault was recorded.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub fn access(
        &self,
        machine: &mut Emulator,
        ram: &GuestRam,
        probe: &Probe,
        targets: &[PhysAddr],
    ) -> Result<Effect> {
        if probe.write {
            return self.write(machine, ram, probe.iova, targets);
        }
        for (target, token) in targets.iter().zip(tokens(probe)) {
            put(ram, *target, token)?;
        }
        self.transfer(machine, [probe.iova.raw(), edu::BUFFER, edu::FETCH])?;
        Ok(Effect::Nothing)
    }

    fn write(
        &self,
        machine: &mut Emulator,
        ram: &GuestRam,
        iova: Iova,
        targets: &[PhysAddr],
    ) -> Result<Effect> {
        for target in targets {
            put(ram, *target, 0)?;
        }
        let bar = u64::from(self.writer.bar0);
        let mut batch = Batch::new();
        for (register, value) in [
            (testdev::IOVA_LOW, low(iova.raw())),
            (testdev::IOVA_HIGH, low(iova.raw() >> 32)),
            (testdev::LENGTH, low(DMA_BYTES)),
            (testdev::ATTRIBUTES, testdev::NON_SECURE),
            (testdev::DOORBELL, testdev::ARM),
        ] {
            batch.write32(bar + register, value);
        }
        batch.read32(bar + testdev::TRIGGER).read32(bar + testdev::RESULT);
        if machine.ask(&batch)? == testdev::WRITE_FAILED {
            return Ok(Effect::Nothing);
        }
        for target in targets {
            if get(ram, *target)? == testdev::PATTERN {
                return Ok(Effect::Moved(*target));
            }
        }
        Ok(Effect::Elsewhere)
    }

    /// Where the bytes that `probe` read came from: the device writes them to `scratch`,
    /// untranslated.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub fn delivered(
        &self,
        machine: &mut Emulator,
        ram: &GuestRam,
        scratch: PhysAddr,
        (probe, targets): (&Probe, &[PhysAddr]),
    ) -> Result<Effect> {
        put(ram, scratch, 0)?;
        self.transfer(machine, [edu::BUFFER, scratch.raw(), edu::DELIVER])?;
        let read = get(ram, scratch)?;
        let source = targets.iter().zip(tokens(probe)).find(|(_, token)| *token == read);
        Ok(source.map_or(Effect::Elsewhere, |(target, _)| Effect::Moved(*target)))
    }

    fn transfer(&self, machine: &mut Emulator, how: [u64; 3]) -> Result<()> {
        let [source, destination, command] = how;
        let bar = u64::from(self.reader.bar0);
        let mut batch = Batch::new();
        batch.write64(bar + edu::SOURCE, source).write64(bar + edu::DESTINATION, destination);
        batch.write64(bar + edu::COUNT, DMA_BYTES).write64(bar + edu::COMMAND, command);
        batch.step_clock(edu::TRANSFER_NS);
        machine.run(&batch)?;
        Ok(())
    }
}

/// The low half of a register pair.
fn low(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(u32::MAX)
}

/// What a read finds at each of its targets: odd numbers, none of them what the writer writes.
fn tokens(probe: &Probe) -> impl Iterator<Item = u32> {
    let token = probe.token;
    (0..).map(move |number| token.wrapping_add(2 * number))
}

fn put(ram: &GuestRam, at: PhysAddr, word: u32) -> Result<()> {
    ram.write(at, &word.to_le_bytes()).ok_or(Error::TableMemory { at })
}

fn get(ram: &GuestRam, at: PhysAddr) -> Result<u32> {
    let mut word = [0; 4];
    ram.read(at, &mut word).ok_or(Error::TableMemory { at })?;
    Ok(u32::from_le_bytes(word))
}

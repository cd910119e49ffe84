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
    pub(super) const GPA_LOW: u64 = 0x1c;
    pub(super) const GPA_HIGH: u64 = 0x20;

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
    /// The bytes moved where they were expected to.
    Moved,
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

    /// Does what `probe` says. `target` is where its bytes should move to or come from. What a read has
    /// moved is asked with [`delivered`](Self::delivered), if no fault was recorded.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub fn access(
        &self,
        machine: &mut Emulator,
        ram: &GuestRam,
        probe: &Probe,
        target: Option<PhysAddr>,
    ) -> Result<Effect> {
        if probe.write {
            return self.write(machine, ram, probe.iova, target);
        }
        self.fetch(machine, ram, probe.iova, target.map(|target| (target, probe.token)))?;
        Ok(Effect::Nothing)
    }

    /// Writes [`DMA_BYTES`] at `iova`. `target` is where they should land, and is cleared before.
    ///
    /// # Errors
    /// If the emulator is gone.
    fn write(
        &self,
        machine: &mut Emulator,
        ram: &GuestRam,
        iova: Iova,
        target: Option<PhysAddr>,
    ) -> Result<Effect> {
        put(ram, target, 0)?;
        let bar = u64::from(self.writer.bar0);
        let mut batch = Batch::new();
        for (register, value) in [
            (testdev::IOVA_LOW, low(iova.raw())),
            (testdev::IOVA_HIGH, low(iova.raw() >> 32)),
            (testdev::GPA_LOW, low(target.map_or(0, PhysAddr::raw))),
            (testdev::GPA_HIGH, low(target.map_or(0, PhysAddr::raw) >> 32)),
            (testdev::LENGTH, low(DMA_BYTES)),
            (testdev::ATTRIBUTES, testdev::NON_SECURE),
            (testdev::DOORBELL, testdev::ARM),
        ] {
            batch.write32(bar + register, value);
        }
        batch.read32(bar + testdev::TRIGGER).read32(bar + testdev::RESULT);
        let result = machine.ask(&batch)?;
        let landed = get(ram, target)? == Some(testdev::PATTERN);
        Ok(match (result == testdev::WRITE_FAILED, landed) {
            (true, _) => Effect::Nothing,
            (false, true) => Effect::Moved,
            (false, false) => Effect::Elsewhere,
        })
    }

    /// Reads [`DMA_BYTES`] at `iova` into the device. `source` is where they should come from, and gets
    /// a `token` before. Follow it with [`delivered`](Self::delivered).
    ///
    /// # Errors
    /// If the emulator is gone.
    fn fetch(
        &self,
        machine: &mut Emulator,
        ram: &GuestRam,
        iova: Iova,
        source: Option<(PhysAddr, u32)>,
    ) -> Result<()> {
        if let Some((source, token)) = source {
            put(ram, Some(source), token)?;
        }
        self.transfer(machine, [iova.raw(), edu::BUFFER, edu::FETCH])
    }

    /// True if what was last read is `token`: the device writes it to `scratch`, untranslated.
    ///
    /// # Errors
    /// If the emulator is gone.
    pub fn delivered(
        &self,
        machine: &mut Emulator,
        ram: &GuestRam,
        scratch: PhysAddr,
        token: u32,
    ) -> Result<Effect> {
        put(ram, Some(scratch), !token)?;
        self.transfer(machine, [edu::BUFFER, scratch.raw(), edu::DELIVER])?;
        let same = get(ram, Some(scratch))? == Some(token);
        Ok(if same { Effect::Moved } else { Effect::Elsewhere })
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

fn put(ram: &GuestRam, at: Option<PhysAddr>, word: u32) -> Result<()> {
    match at {
        Some(at) => ram.write(at, &word.to_le_bytes()).ok_or(Error::TableMemory { at }),
        None => Ok(()),
    }
}

fn get(ram: &GuestRam, at: Option<PhysAddr>) -> Result<Option<u32>> {
    let Some(at) = at else { return Ok(None) };
    let mut word = [0; 4];
    ram.read(at, &mut word).ok_or(Error::TableMemory { at })?;
    Ok(Some(u32::from_le_bytes(word)))
}

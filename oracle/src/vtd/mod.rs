//! QEMU's intel-iommu against our VT-d structures and walks.

mod condition;
mod exceptions;
mod levels;
mod lookup;
mod mode;
mod registers;
mod replacement;
mod tables;
mod verdict;

use std::rc::Rc;

use viommu_pgtable::{Iova, PhysAddr, TableMemory};

pub use mode::Mode;
pub use registers::Record;
pub use replacement::{Reached, Replacement};

use self::registers::Registers;
use self::tables::Tables;
use crate::dma::{Effect, Engines};
use crate::emulator::{Emulator, Program};
use crate::error::{Error, Result};
use crate::memory::{GuestRam, Window};
use crate::pci::Config;
use crate::random::Random;
use crate::region::Region;
use crate::subject::{Observed, Probe, Subject, Verdict, Words};
use crate::tables::Landing;

/// q35's memory: below the hole for devices, and from 4 GiB on.
const WINDOWS: [Window; 2] = [
    Window { start: 0, bytes: 2 << 30, offset: 0 },
    Window { start: 4 << 30, bytes: 4 << 30, offset: 2 << 30 },
];
/// The invalidation queue's page, and its status word in the next.
const QUEUE: PhysAddr = PhysAddr::new(0x1_0000_0000);
/// Where the reader shows what it has read.
const SCRATCH: PhysAddr = PhysAddr::new(0x1_0000_2000);
/// Our tables. One flipped address bit leads from here to other memory or to none, never to a
/// device.
const TABLES: PhysAddr = PhysAddr::new(0x1_4000_0000);
const TABLE_PAGES: u64 = 16384;
/// What mappings lead to.
const LANDING: Landing = Landing { start: 0x1_8000_0000, bytes: 2 << 30 };
/// Devices' BARs.
const BARS: u32 = 0xe000_0000;
/// Requests to these addresses are interrupts and are not translated (3.14).
const INTERRUPTS: std::ops::RangeInclusive<u64> = 0xfee0_0000..=0xfeef_ffff;

/// An emulated VT-d unit in one mode.
#[derive(Debug)]
pub struct Vtd {
    machine: Emulator,
    engines: Engines,
    registers: Registers,
    region: Region,
    tables: Tables,
}

impl Vtd {
    /// Starts a machine whose unit is in `mode`.
    ///
    /// # Errors
    /// If the emulator does not start or is not what it should be.
    pub fn start(program: &Program, mode: Mode) -> Result<Self> {
        let ram = Rc::new(GuestRam::new(&WINDOWS)?);
        let unit = mode.device();
        let mut args = vec!["-M", "q35,memory-backend=ram", "-device", &unit];
        args.extend(Engines::arguments());
        let mut machine = Emulator::start(program, &ram, &args)?;
        let engines = Engines::at(BARS);
        engines.enable(&mut machine, Config::Ports)?;
        let mut region = Region::new(ram, TABLES, TABLE_PAGES);
        let tables = Tables::new(mode, &mut region)?;
        let registers =
            Registers::set_up(&mut machine, tables.lookup().root, QUEUE, mode.is_scalable())?;
        Ok(Self { machine, engines, registers, region, tables })
    }

    fn source(&self, probe: &Probe) -> u16 {
        if probe.write { self.engines.writer.bdf() } else { self.engines.reader.bdf() }
    }

    /// What a read without a fault has read.
    fn delivered(&mut self, probe: &Probe, targets: &[PhysAddr]) -> Result<Effect> {
        let (machine, ram) = (&mut self.machine, self.region.ram());
        self.registers.translate(machine, false)?;
        let effect = self.engines.delivered(machine, ram, SCRATCH, (probe, targets))?;
        self.registers.translate(machine, true)?;
        Ok(effect)
    }
}

impl Subject for Vtd {
    type Reason = u8;
    type Record = Record;

    fn title(&self) -> (&'static str, String) {
        ("intel-iommu", self.tables.lookup().mode.to_string())
    }

    fn rebuild(&mut self, random: &mut Random) -> Result<()> {
        self.region.reset();
        let bdfs = [self.engines.writer.bdf(), self.engines.reader.bdf()];
        self.tables = Tables::new(self.tables.lookup().mode, &mut self.region)?;
        self.tables.fill(&mut self.region, LANDING, bdfs, random)
    }

    fn probe(&mut self, random: &mut Random) -> Probe {
        let iova = Iova::new(self.tables.address(random) & !3);
        Probe::new(iova, random)
    }

    fn words(&self, probe: &Probe) -> Words {
        self.tables.lookup().words(self.region.ram(), self.source(probe), probe.iova)
    }

    fn load(&self, at: PhysAddr) -> u64 {
        self.region.load(at).unwrap_or(0)
    }

    fn poke(&self, at: PhysAddr, word: u64) -> Result<()> {
        self.region.ram().store(at, word).ok_or(Error::TableMemory { at })
    }

    fn expect(&self, probe: &Probe) -> Verdict<u8> {
        self.tables.lookup().verdict(self.region.ram(), self.source(probe), probe)
    }

    fn can_observe(&self, probe: &Probe, verdict: &Verdict<u8>) -> bool {
        let lands = verdict.targets().iter().all(|at| LANDING.contains(*at));
        lands && !INTERRUPTS.contains(&probe.iova.raw())
    }

    fn observe(&mut self, probe: &Probe, verdict: &Verdict<u8>) -> Result<Observed<Record>> {
        let (machine, ram) = (&mut self.machine, self.region.ram());
        self.registers.invalidate(machine, ram)?;
        let mut effect = self.engines.access(machine, ram, probe, &verdict.targets())?;
        let fault = self.registers.take_fault(machine)?;
        if !probe.write && fault.is_none() {
            effect = self.delivered(probe, &verdict.targets())?;
        }
        Ok(Observed { effect, fault })
    }

    fn record(&self, probe: &Probe, reason: u8) -> Option<Record> {
        let (source, page) = (self.source(probe), probe.iova.raw() & !0xfff);
        Some(Record { reason, source, page, read: !probe.write })
    }
}

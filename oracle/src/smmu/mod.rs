//! QEMU's SMMUv3 against our stream tables, context descriptors and walks.

mod event;
mod exceptions;
mod mode;
mod predict;
mod registers;
mod route;
mod seen;
mod structures;
mod tables;

use std::rc::Rc;

use viommu_pgtable::{Iova, PhysAddr, TableMemory};

pub use event::{Class, Reason, Record, Walk};
pub use mode::Mode;

use self::registers::Registers;
use self::tables::{LANDING, Tables};
use crate::dma::{Effect, Engines};
use crate::emulator::{Emulator, Program};
use crate::error::{Error, Result};
use crate::memory::{GuestRam, Window};
use crate::pci::Config;
use crate::random::Random;
use crate::subject::{Excepted, Marks, Observed, Probe, Subject, Verdict, Words};

/// `virt`'s memory.
const WINDOWS: [Window; 1] = [Window { start: 1 << 30, bytes: 6 << 30, offset: 0 }];
/// `virt`'s devices and flash memory: below its memory, and here.
const DEVICES_END: u64 = 1 << 30;
const DEVICES: std::ops::Range<u64> = 0x40_0000_0000..0x100_0000_0000;
/// `virt`'s configuration space.
const CONFIG: Config = Config::Memory(0x40_1000_0000);
/// Devices' BARs.
const BARS: u32 = 0x1000_0000;
/// The queues' pages.
const QUEUES: PhysAddr = PhysAddr::new(0x1_0000_0000);
/// Where the reader shows what it has read.
const SCRATCH: PhysAddr = PhysAddr::new(0x1_0000_2000);

/// An emulated SMMU in one mode.
#[derive(Debug)]
pub struct Smmu {
    machine: Emulator,
    engines: Engines,
    registers: Registers,
    tables: Tables,
}

impl Smmu {
    /// Starts a machine whose SMMU has both stages.
    ///
    /// # Errors
    /// If the emulator does not start or is not what it should be.
    pub fn start(program: &Program, mode: Mode) -> Result<Self> {
        let ram = Rc::new(GuestRam::new(&WINDOWS)?);
        let mut args = vec!["-M", "virt,iommu=smmuv3,memory-backend=ram", "-cpu", "cortex-a57"];
        args.extend(["-global", "arm-smmuv3.stage=nested"]);
        args.extend(Engines::arguments());
        let mut machine = Emulator::start(program, &ram, &args)?;
        let engines = Engines::at(BARS);
        engines.enable(&mut machine, CONFIG)?;
        let tables = Tables::new(mode, ram)?;
        let registers = Registers::set_up(&mut machine, &tables.root(), QUEUES)?;
        Ok(Self { machine, engines, registers, tables })
    }

    const fn stream(&self, probe: &Probe) -> u32 {
        let engine = if probe.write { self.engines.writer } else { self.engines.reader };
        engine.bdf() as u32
    }

    /// What a read without an event has read.
    fn delivered(&mut self, probe: &Probe, targets: &[PhysAddr]) -> Result<Effect> {
        let (machine, ram) = (&mut self.machine, self.tables.ram());
        self.registers.translate(machine, false)?;
        let effect = self.engines.delivered(machine, ram, SCRATCH, (probe, targets))?;
        self.registers.translate(machine, true)?;
        Ok(effect)
    }

    /// True if a lookup or walk may follow an address to a device, whose memory is not ours to
    /// read.
    fn meets_devices(&self, probe: &Probe) -> bool {
        let (ram, root) = (self.tables.ram(), self.tables.root());
        let followed = structures::followed(ram, &root, self.stream(probe), probe.iova);
        followed.iter().any(|at| {
            let address = at & 0xffff_ffff_ffff;
            address < DEVICES_END || DEVICES.contains(&address)
        })
    }
}

impl Subject for Smmu {
    type Reason = Reason;
    type Record = Record;

    fn title(&self) -> (&'static str, String) {
        ("SMMUv3", self.tables.mode().to_string())
    }

    fn rebuild(&mut self, random: &mut Random) -> Result<()> {
        let bdfs = [self.engines.writer.bdf(), self.engines.reader.bdf()];
        self.tables.rebuild(bdfs, random)
    }

    fn probe(&mut self, random: &mut Random) -> Probe {
        let iova = Iova::new(self.tables.address(random) & !3);
        Probe::new(iova, random)
    }

    fn words(&self, probe: &Probe) -> Words {
        let (ram, root) = (self.tables.ram(), self.tables.root());
        let mut words = Words {
            structures: structures::words(ram, &root, self.stream(probe)),
            entries: Vec::new(),
        };
        let path = route::path(ram, &root, self.stream(probe), probe.iova);
        words.entries = path.iter().map(|step| step.at).collect();
        words.structures.retain(|at| ram.load(*at).is_some());
        words.entries.retain(|at| ram.load(*at).is_some());
        words
    }

    fn load(&self, at: PhysAddr) -> u64 {
        self.tables.ram().load(at).unwrap_or(0)
    }

    fn poke(&self, at: PhysAddr, word: u64) -> Result<()> {
        self.tables.ram().store(at, word).ok_or(Error::TableMemory { at })
    }

    fn expect(&self, probe: &Probe) -> Verdict<Reason> {
        let (ram, root) = (self.tables.ram(), self.tables.root());
        let request = (self.stream(probe), probe);
        // Arm's walks leave no marks here
        let marks = Marks::new();
        let end = route::end(ram, &root, request, false);
        let silent = structures::is_silent(ram, &root, self.stream(probe));
        let excepted = predict::predict(ram, &root, request, end);
        let excepted =
            excepted.map(|(exception, end)| Excepted { exception, end, marks: Marks::new() });
        Verdict { end, marks, silent, excepted }
    }

    fn can_observe(&self, probe: &Probe, verdict: &Verdict<Reason>) -> bool {
        let lands = verdict.targets().iter().all(|at| LANDING.contains(*at));
        let (ram, root) = (self.tables.ram(), self.tables.root());
        let survives = !predict::ends_qemu(ram, &root, (self.stream(probe), probe));
        lands && survives && !self.meets_devices(probe)
    }

    fn observe(&mut self, probe: &Probe, verdict: &Verdict<Reason>) -> Result<Observed<Record>> {
        let (machine, ram) = (&mut self.machine, self.tables.ram());
        self.registers.invalidate(machine, ram)?;
        let mut effect = self.engines.access(machine, ram, probe, &verdict.targets())?;
        let fault = self.registers.take_event(machine, ram)?;
        if !probe.write && fault.is_none() {
            effect = self.delivered(probe, &verdict.targets())?;
        }
        Ok(Observed { effect, fault })
    }

    fn record(&self, probe: &Probe, reason: Reason) -> Option<Record> {
        let walk = reason.walk.map(|walk| {
            // whether the request reads is told where its own address is at fault
            let read = matches!(walk.class, Some(Class::Input)).then_some(!probe.write);
            (walk, probe.iova.raw(), read)
        });
        Some(Record { event: reason.event?, stream: self.stream(probe), walk })
    }
}

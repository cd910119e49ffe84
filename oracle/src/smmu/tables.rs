//! Our SMMU tables in the machine's memory.

use std::rc::Rc;

use viommu_pasid::smmuv3::{
    ContextControls, ContextDescriptor, ContextLayout, Stage1, Stage1Table, Stage1Tables, Stage2,
    StreamConfig, StreamEntry, StreamRoot, StreamTable, Untagged,
};
use viommu_pgtable::{
    Access, ArmStage1, ArmStage2, Format, Granule, Iova, IovaRange, Mapping, PhysAddr, Table,
    TableStore,
};

use super::mode::{Mode, SYSTEM_BITS};
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::random::Random;
use crate::region::Region;
use crate::tables::{self, Filled, Landing};

/// Our stream table and stage 2 tables, and in front of them stage 1's: each 64 MiB. One flipped
/// address bit leads from here to other memory or to none, never to a device.
const TABLES: PhysAddr = PhysAddr::new(0x1_4000_0000);
const FIRST_TABLES: PhysAddr = PhysAddr::new(0x1_4400_0000);
const TABLE_PAGES: u64 = 16384;
/// Where stage 2 shows stage 1's tables, and what stage 1 leads to, in nested modes.
const SEEN_TABLES: PhysAddr = PhysAddr::new(0x2400_0000);
const SEEN_LANDING: Landing = Landing { start: 0x4000_0000, bytes: 1 << 30 };
/// What stage 2 needs to show both.
const NESTED_INPUT_BITS: u8 = 31;

/// What mappings lead to.
pub(super) const LANDING: Landing = Landing { start: 0x1_8000_0000, bytes: 1 << 30 };

/// One stream in so many is not translated.
const UNTRANSLATED: u64 = 16;
/// Inputs of stage 1, bits.
const FIRST_WIDTHS: [u8; 8] = [25, 31, 32, 36, 39, 42, 47, 48];
/// Inputs of stage 2, bits: at most what the system has.
const SECOND_WIDTHS: [u8; 7] = [25, 31, 32, 36, 39, 42, 44];

/// The tables of one mode.
#[derive(Debug)]
pub(super) struct Tables {
    mode: Mode,
    stream: StreamTable,
    region: Region,
    first: Region,
    inputs: Vec<Mapping>,
    /// The upper half of stage 1's input is used, too.
    halves: bool,
    input_bits: u8,
}

impl Tables {
    /// An empty stream table, at the start of the region.
    pub(super) fn new(mode: Mode, ram: Rc<GuestRam>) -> Result<Self> {
        let seen = if matches!(mode, Mode::Nested(_)) { SEEN_TABLES } else { FIRST_TABLES };
        let first = Region::seen_at(Rc::clone(&ram), FIRST_TABLES, TABLE_PAGES, seen);
        let mut region = Region::new(ram, TABLES, TABLE_PAGES);
        let stream = StreamTable::new(&mut region).map_err(Error::build)?;
        let inputs = Vec::new();
        Ok(Self { mode, stream, region, first, inputs, halves: false, input_bits: 0 })
    }

    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) const fn root(&self) -> StreamRoot {
        self.stream.root()
    }

    pub(super) fn ram(&self) -> &GuestRam {
        self.region.ram()
    }

    /// Replaces everything by new random tables, and leads the functions `bdfs` to them.
    pub(super) fn rebuild(&mut self, bdfs: [u16; 2], random: &mut Random) -> Result<()> {
        self.region.reset();
        self.first.reset();
        self.stream = StreamTable::new(&mut self.region).map_err(Error::build)?;
        let config = match self.mode {
            _ if random.once_in(UNTRANSLATED) => {
                self.inputs = vec![LANDING.identity()?];
                self.halves = false;
                if random.once_in(4) { StreamConfig::Abort } else { StreamConfig::Bypass }
            }
            Mode::Stage1(granule) => {
                StreamConfig::Stage1(self.fill_first(granule, LANDING, random)?)
            }
            Mode::Stage2(granule) => StreamConfig::Stage2(self.fill_second(granule, random)?),
            Mode::Nested(granule) => {
                let first = self.fill_first(granule, SEEN_LANDING, random)?;
                let second = self.show_first(random)?;
                StreamConfig::Nested { first, second }
            }
        };
        for bdf in bdfs {
            let entry = StreamEntry { vmid: 3, config };
            self.stream.set(&mut self.region, bdf, &entry).map_err(Error::build)?;
        }
        self.region.check()?;
        self.first.check()
    }

    /// A random stage 1 with its context descriptor.
    fn fill_first(
        &mut self,
        granule: Granule,
        landing: Landing,
        random: &mut Random,
    ) -> Result<Stage1> {
        let bits = random.pick(&FIRST_WIDTHS).unwrap_or(48);
        let format = ArmStage1::new(granule, bits, SYSTEM_BITS).map_err(Error::build)?;
        let filled = tables::fill(format, &mut self.first, landing, random)?;
        let table =
            Stage1Table::new(filled.root, format).ok_or_else(|| Error::build("no table"))?;
        self.halves = random.once_in(2);
        let upper = self.halves.then_some(table);
        let tables =
            Stage1Tables::new(Some(table), upper).ok_or_else(|| Error::build("no half"))?;
        let controls = ContextControls::empty();
        let descriptor = ContextDescriptor { tables, asid: 9, mair: 0xff, controls };
        let at = self.first.alloc_pages(1).map_err(Error::build)?;
        for (word, offset) in descriptor.pack().into_iter().zip((0..).step_by(8)) {
            self.first.store(PhysAddr::new(at.raw() + offset), word);
        }
        self.remember(bits, filled);
        // QEMU's SMMU has no substreams: one descriptor
        Stage1::new(at, ContextLayout::Linear, 0, Untagged::Context0)
            .ok_or_else(|| Error::build("no context pointer"))
    }

    fn fill_second(&mut self, granule: Granule, random: &mut Random) -> Result<Stage2> {
        let (bits, format) = second_format(granule, None, random)?;
        let filled = tables::fill(format, &mut self.region, LANDING, random)?;
        let stage2 = Stage2::new(filled.root, format).ok_or_else(|| Error::build("no stage 2"))?;
        self.halves = false;
        self.remember(bits, filled);
        Ok(stage2)
    }

    /// A stage 2 that shows stage 1's tables, and in pieces what stage 1 leads to.
    fn show_first(&mut self, random: &mut Random) -> Result<Stage2> {
        let granule =
            random.pick(&[Granule::K4, Granule::K16, Granule::K64]).unwrap_or(Granule::K4);
        let (_, format) = second_format(granule, Some(NESTED_INPUT_BITS), random)?;
        let mut table = Table::new(format, &mut self.region).map_err(Error::build)?;
        let mut map = |start: u64, bytes: u64, oa: u64, access| {
            let range = IovaRange::with_len(Iova::new(start), bytes);
            let range = range.ok_or_else(|| Error::build("no range"))?;
            let mapping = Mapping::new(range, PhysAddr::new(oa), access).map_err(Error::build)?;
            table.map(&mut self.region, &mapping).map_err(Error::build)
        };
        map(SEEN_TABLES.raw(), TABLE_PAGES * 4096, FIRST_TABLES.raw(), Access::RW)?;
        let piece = 1u64 << 26;
        for index in 0..SEEN_LANDING.bytes / piece {
            let access = random.pick(&[Access::RW, Access::RW, Access::READ, Access::WRITE]);
            let to = random.below(LANDING.bytes / piece) * piece;
            if !random.once_in(8) {
                let (start, oa) = (SEEN_LANDING.start + index * piece, LANDING.start + to);
                map(start, piece, oa, access.unwrap_or(Access::RW))?;
            }
        }
        Stage2::new(table.root(), format).ok_or_else(|| Error::build("no stage 2"))
    }

    fn remember(&mut self, input_bits: u8, filled: Filled) {
        self.input_bits = input_bits;
        self.inputs = filled.mappings;
    }

    /// A random address, mostly a mapped one.
    pub(super) fn address(&self, random: &mut Random) -> u64 {
        let lower = match (random.below(20), random.pick(&self.inputs)) {
            (0, _) | (_, None) => random.bits() & ((1 << self.input_bits) - 1),
            (1, _) => return random.bits(),
            (_, Some(mapping)) => {
                let range = mapping.iova();
                range.start().raw() + random.below(range.len_minus_one() + 1)
            }
        };
        let upper = self.halves && random.once_in(2);
        if upper { lower | !((1 << self.input_bits) - 1) } else { lower }
    }
}

/// A random stage 2 format, of `input_bits` if they are given.
fn second_format(
    granule: Granule,
    input_bits: Option<u8>,
    random: &mut Random,
) -> Result<(u8, ArmStage2)> {
    // QEMU uses the first of concatenated tables only, which would leave little to compare
    let concatenated = random.once_in(8);
    let formats: Vec<_> = SECOND_WIDTHS
        .into_iter()
        .filter(|bits| input_bits.is_none_or(|wanted| wanted == *bits))
        .flat_map(|bits| (1..=4).map(move |levels| (bits, levels)))
        .filter_map(|(bits, levels)| {
            let format = ArmStage2::new(granule, levels, bits, SYSTEM_BITS).ok()?;
            // not every start level can be said
            let said = ArmStage2::from_vtcr(format.vtcr(), SYSTEM_BITS) == Ok(format);
            said.then_some((bits, format))
        })
        .collect();
    let several = |format: &ArmStage2| {
        let geometry = format.geometry();
        geometry.root_bytes_lg2() > geometry.granule_lg2
    };
    let wanted: Vec<_> =
        formats.iter().filter(|(_, format)| several(format) == concatenated).copied().collect();
    let chosen = random.pick(&wanted).or_else(|| random.pick(&formats));
    chosen.ok_or_else(|| Error::build("no stage 2 format"))
}

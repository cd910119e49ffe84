//! Our VT-d tables in the machine's memory, from the root table to the pages, and what they say.

use viommu_pasid::vtd::legacy::{self, LegacyContext, LegacyTranslation};
use viommu_pasid::vtd::{
    AddressWidth, FirstControls, FirstLevel, LookupFault, LookupFaultKind, PasidEntry, PasidTable,
    RootTable, Translation, lookup,
};
use viommu_pgtable::{Iova, Mapping, PhysAddr, TableMemory, TableStore};

use super::condition::Condition;
use super::exceptions::{self, Entries, Structure};
use super::levels::Levels;
use super::mode::Mode;
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::overlay::Overlay;
use crate::random::Random;
use crate::region::Region;
use crate::subject::{End, Excepted, Exception, Marks, Probe, Verdict, Words};
use crate::tables::{Landing, Step};

/// The domain id in all entries: everything cached is dropped before each access.
const DOMAIN_TAG: u16 = 5;
/// Bit 1 of context, PASID directory and PASID entries: FPD, faults are not recorded.
const FAULTS_OFF: u64 = 2;

/// What a request is translated through.
#[derive(Debug, Clone, Copy)]
enum Found {
    /// Nothing: its address is the output.
    PassThrough,
    /// A page table.
    Table(Levels, PhysAddr),
}

/// Where the structures lie that lead to a page table, as far as they lead.
#[derive(Debug, Clone, Copy, Default)]
struct Structures {
    root: Option<PhysAddr>,
    context: Option<PhysAddr>,
    directory: Option<PhysAddr>,
    entry: Option<PhysAddr>,
}

/// The tables of one mode.
#[derive(Debug)]
pub(super) struct Tables {
    mode: Mode,
    levels: Levels,
    table: RootTable,
    root: PhysAddr,
    mappings: Vec<Mapping>,
}

impl Tables {
    /// An empty root table, in the first page of the region.
    pub(super) fn new(mode: Mode, region: &mut Region) -> Result<Self> {
        let levels = Levels::of(mode).ok_or_else(|| Error::build("no such format"))?;
        // the one page of a root table is the same in both modes
        let table = RootTable::new(region).map_err(Error::build)?;
        Ok(Self { mode, levels, table, root: table.root(), mappings: Vec::new() })
    }

    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) const fn root(&self) -> PhysAddr {
        self.root
    }

    /// Maps at random, and leads the functions `bdfs` to the result.
    pub(super) fn fill(
        &mut self,
        region: &mut Region,
        landing: Landing,
        bdfs: [u16; 2],
        random: &mut Random,
    ) -> Result<()> {
        let filled = self.levels.fill(region, landing, random)?;
        self.mappings = filled.mappings;
        let root = filled.root;
        let width =
            AddressWidth::from_bits(self.mode.bits()).ok_or_else(|| Error::build("no width"))?;
        let first = FirstLevel { root, five_levels: false, controls: FirstControls::empty() };
        match self.mode {
            Mode::Legacy(_) => {
                let translation = LegacyTranslation::SecondLevel { root };
                let context = LegacyContext { domain_tag: DOMAIN_TAG, width, translation };
                for bdf in bdfs {
                    legacy::set_context(region, self.root, bdf, &context).map_err(Error::build)?;
                }
            }
            Mode::ScalableSecond(_) => {
                self.lead_scalable(region, bdfs, Translation::SecondLevel { root, width })?;
            }
            Mode::ScalableFirst => {
                self.lead_scalable(region, bdfs, Translation::FirstLevel(first))?;
            }
        }
        region.check()
    }

    fn lead_scalable(
        &self,
        region: &mut Region,
        bdfs: [u16; 2],
        translation: Translation,
    ) -> Result<()> {
        for bdf in bdfs {
            let table = PasidTable::new(region, 0).map_err(Error::build)?;
            let entry = PasidEntry { domain_tag: DOMAIN_TAG, translation };
            table.set(region, 0, &entry).map_err(Error::build)?;
            self.widen(region, &table)?;
            self.table.set_context(region, bdf, &table.context()).map_err(Error::build)?;
        }
        Ok(())
    }

    /// Sets AW of a first level's entry to 48 bits. It means nothing there, but QEMU looks at it.
    fn widen(&self, region: &mut Region, table: &PasidTable) -> Result<()> {
        if self.mode == Mode::ScalableFirst {
            let leaf = region.load(table.context().directory).unwrap_or(0);
            let entry = PhysAddr::new(leaf & !0xfff);
            let word = region.load(entry).ok_or(Error::TableMemory { at: entry })?;
            region.store(entry, word | 2 << 2);
        }
        Ok(())
    }

    /// A random address, mostly a mapped one.
    pub(super) fn address(&self, random: &mut Random) -> u64 {
        match (random.below(20), random.pick(&self.mappings)) {
            (0, _) | (_, None) => self.levels.input(random),
            (1, _) => random.bits(),
            (_, Some(mapping)) => {
                let range = mapping.iova();
                range.start().raw() + random.below(range.len_minus_one() + 1)
            }
        }
    }

    /// The words that lead requests of `bdf` to `iova`.
    pub(super) fn words(&self, ram: &GuestRam, bdf: u16, iova: Iova) -> Words {
        let found = self.structures(ram, bdf);
        let (root, context) = if self.mode.is_scalable() { (1, 4) } else { (2, 2) };
        let mut words = Words::default();
        for (start, count) in
            [(found.root, root), (found.context, context), (found.directory, 1), (found.entry, 8)]
        {
            let Some(start) = start else { continue };
            words.structures.extend((0..count).map(|word| offset(start, word * 8)));
        }
        words.structures.retain(|at| ram.load(*at).is_some());
        words.entries = self.path(ram, bdf, iova).iter().map(|step| step.at).collect();
        words
    }

    /// The page-table entries that lead requests of `bdf` to `iova`, as far as they lead.
    fn path<M: TableMemory>(&self, memory: &M, bdf: u16, iova: Iova) -> Vec<Step> {
        match self.find(memory, bdf) {
            Ok(Found::Table(levels, root)) => levels.path(memory, root, iova),
            Ok(Found::PassThrough) | Err(_) => Vec::new(),
        }
    }

    /// What our code says about a request of `bdf`.
    pub(super) fn verdict(&self, ram: &GuestRam, bdf: u16, probe: &Probe) -> Verdict<u8> {
        let memory = Overlay::new(ram);
        let end = self.end(&memory, bdf, probe);
        let excepted = match self.blind_spot(ram, bdf) {
            Some((exception, seen)) => {
                let end = self.emulated(&seen, bdf, probe);
                Some(Excepted { exception, end, marks: seen.into_writes() })
            }
            None => self.predict(&memory, bdf, probe, end),
        };
        Verdict {
            end: end.map_err(|condition| self.mode.reason(condition)),
            marks: memory.into_writes(),
            silent: self.is_silent(ram, bdf),
            excepted,
        }
    }

    fn end(
        &self,
        memory: &Overlay<'_>,
        bdf: u16,
        probe: &Probe,
    ) -> std::result::Result<PhysAddr, Condition> {
        match self.find(memory, bdf)? {
            Found::PassThrough => Ok(PhysAddr::new(probe.iova.raw())),
            Found::Table(levels, root) => levels.walk(memory, root, probe),
        }
    }

    /// What an exception in one entry makes of a request that ends in `end`; `memory` is as our walk
    /// left it.
    fn predict(
        &self,
        memory: &Overlay<'_>,
        bdf: u16,
        probe: &Probe,
        end: std::result::Result<PhysAddr, Condition>,
    ) -> Option<Excepted<u8>> {
        let fresh = memory.fresh();
        let entries = self.entries(&fresh, bdf, probe);
        if let Ok(Found::Table(Levels::First(_), _)) = self.find(&fresh, bdf) {
            if let Some((exception, end)) = exceptions::predict_width(&entries, probe.iova) {
                return Some(Excepted { exception, end, marks: Marks::new() });
            }
            if let (Ok(at), Some(exception)) = (end, exceptions::keeps_flags(&entries)) {
                let mut marks = memory.writes();
                marks.retain(|at, _| entries.last.is_none_or(|last| last.at != *at));
                return Some(Excepted { exception, end: Ok(at), marks });
            }
        }
        let (exception, end) = exceptions::predict(&entries, end.err()?)?;
        Some(Excepted { exception, end, marks: memory.writes() })
    }

    /// What QEMU makes of a request whose structures it sees as in `memory`.
    fn emulated(&self, memory: &Overlay<'_>, bdf: u16, probe: &Probe) -> End<u8> {
        let end = self.end(memory, bdf, probe);
        match self.predict(memory, bdf, probe, end) {
            Some(excepted) => excepted.end,
            None => end.map_err(|condition| self.mode.reason(condition)),
        }
    }

    fn entries<M: TableMemory>(&self, memory: &M, bdf: u16, probe: &Probe) -> Entries {
        let last = self.path(memory, bdf, probe.iova).last().copied();
        let entry = self.structures(memory, bdf).entry;
        let pasid_entry = entry.and_then(|at| memory.load(at));
        let first = entry.and_then(|at| memory.load(offset(at, 16)));
        let paging_mode = first.map(|word| (word >> 2) & 3);
        Entries { mode: self.mode, last, pasid_entry, paging_mode, write: probe.write }
    }

    /// The structures of `bdf` as QEMU sees them, if it does not look at something that is set.
    fn blind_spot<'r>(
        &self,
        ram: &'r GuestRam,
        bdf: u16,
    ) -> Option<(&'static Exception, Overlay<'r>)> {
        if !self.mode.is_scalable() {
            return None;
        }
        let (mut memory, mut exception) = (Overlay::new(ram), None);
        for (structure, blind) in exceptions::BLIND {
            // each in the light of those before: RID_PASID decides which PASID entry is meant
            let found = self.structures(&memory, bdf);
            let start = match structure {
                Structure::Context => found.context,
                Structure::Directory => found.directory,
                Structure::Entry => found.entry,
            };
            let Some(start) = start else { continue };
            for (index, seen) in (0..).zip(blind.seen) {
                let at = offset(start, index * 8);
                let word = memory.load(at).unwrap_or(0);
                if word & !seen != 0 {
                    exception = exception.or(Some(blind.exception));
                    memory = memory.with(at, word & seen);
                }
            }
        }
        Some((exception?, memory))
    }

    /// True if an entry on the way of `bdf` switches fault records off.
    fn is_silent(&self, ram: &GuestRam, bdf: u16) -> bool {
        let Structures { context, directory, entry, .. } = self.structures(ram, bdf);
        let mut entries = [context, directory, entry].into_iter().flatten();
        entries.any(|at| ram.load(at).is_some_and(|word| word & FAULTS_OFF != 0))
    }

    fn find<M: TableMemory>(&self, memory: &M, bdf: u16) -> std::result::Result<Found, Condition> {
        if self.mode.is_scalable() {
            self.find_scalable(memory, bdf)
        } else {
            self.find_legacy(memory, bdf)
        }
    }

    fn find_legacy<M: TableMemory>(
        &self,
        memory: &M,
        bdf: u16,
    ) -> std::result::Result<Found, Condition> {
        let context = legacy::lookup(memory, self.root, bdf, self.mode.bits())
            .map_err(|fault| Condition::from_legacy(fault.kind))?;
        let levels = Levels::second(self.mode, context.width.bits());
        let levels = levels.ok_or(Condition::ContextInvalid)?;
        Ok(match context.translation {
            LegacyTranslation::SecondLevel { root } => Found::Table(levels, root),
            LegacyTranslation::PassThrough => Found::PassThrough,
        })
    }

    fn find_scalable<M: TableMemory>(
        &self,
        memory: &M,
        bdf: u16,
    ) -> std::result::Result<Found, Condition> {
        let entry = lookup(memory, self.root, bdf, None)
            .map_err(|fault| self.scalable_condition(memory, bdf, &fault))?;
        let found = match entry.translation {
            Translation::SecondLevel { root, width } => {
                Levels::second(self.mode, width.bits()).map(|levels| Found::Table(levels, root))
            }
            Translation::FirstLevel(first) => Levels::first(self.mode, first.five_levels)
                .map(|levels| Found::Table(levels, first.root)),
            Translation::PassThrough => Some(Found::PassThrough),
            Translation::Nested { .. } => None,
        };
        found.ok_or(Condition::EntryInvalid)
    }

    fn scalable_condition<M: TableMemory>(
        &self,
        memory: &M,
        bdf: u16,
        fault: &LookupFault,
    ) -> Condition {
        match fault.kind {
            LookupFaultKind::RootNotPresent => Condition::RootAbsent,
            LookupFaultKind::RootMalformed => Condition::RootReserved,
            LookupFaultKind::ContextNotPresent => Condition::ContextAbsent,
            LookupFaultKind::ContextMalformed => Condition::ContextReserved,
            LookupFaultKind::PasidNotEnabled => Condition::Impossible,
            LookupFaultKind::PasidTooWide => Condition::PasidTooWide,
            LookupFaultKind::DirectoryNotPresent => Condition::DirectoryAbsent,
            LookupFaultKind::DirectoryMalformed => Condition::DirectoryReserved,
            LookupFaultKind::EntryNotPresent => Condition::EntryAbsent,
            LookupFaultKind::EntryMalformed => {
                let word = |index: u64| memory.load(offset(fault.entry_at, index * 8)).unwrap_or(0);
                let clean = exceptions::PASID_ENTRY_SEEN.iter().zip(0..);
                let clean =
                    clean.fold(true, |clean, (seen, index)| clean && word(index) & !seen == 0);
                if clean { Condition::EntryInvalid } else { Condition::EntryReserved }
            }
            LookupFaultKind::NoMemory => self.no_memory(memory, bdf, fault.entry_at),
        }
    }

    /// Which structure is not there. Our lookup knows no host address width: a pointer beyond it, whose
    /// upper bits are reserved, finds no memory.
    fn no_memory<M: TableMemory>(&self, memory: &M, bdf: u16, entry_at: PhysAddr) -> Condition {
        let Structures { context, directory, entry, .. } = self.structures(memory, bdf);
        let missing =
            |at: Option<PhysAddr>| at.is_some_and(|at| entry_at.raw() >> 6 == at.raw() >> 6);
        let too_wide = entry_at.raw() >> self.mode.bits() != 0;
        match (missing(entry), missing(directory), missing(context)) {
            (true, ..) => Condition::EntryAccess,
            (_, true, _) if too_wide => Condition::ContextReserved,
            (_, true, _) => Condition::DirectoryAccess,
            (.., true) if too_wide => Condition::RootReserved,
            (.., true) => Condition::ContextAccess,
            _ => Condition::RootAccess,
        }
    }

    /// Follows the structures' pointers only, whatever else they say.
    fn structures<M: TableMemory>(&self, memory: &M, bdf: u16) -> Structures {
        let [devfn, bus] = bdf.to_le_bytes().map(u64::from);
        let pointer = |at: PhysAddr| {
            let word = memory.load(at)?;
            (word & 1 != 0).then(|| PhysAddr::new(word & !0xfff))
        };
        let mut found = Structures::default();
        if !self.mode.is_scalable() {
            found.root = Some(legacy::root_entry_at(self.root, bdf));
            found.context =
                found.root.and_then(pointer).map(|table| legacy::context_entry_at(table, bdf));
            return found;
        }
        found.root = Some(offset(self.root, bus * 16 + (devfn >> 7) * 8));
        found.context =
            found.root.and_then(pointer).map(|table| offset(table, (devfn & 0x7f) * 32));
        let pasid = found
            .context
            .and_then(|at| memory.load(offset(at, 8)))
            .map_or(0, |word| word & 0xf_ffff);
        found.directory =
            found.context.and_then(pointer).map(|table| offset(table, (pasid >> 6) * 8));
        found.entry =
            found.directory.and_then(pointer).map(|table| offset(table, (pasid & 63) * 64));
        found
    }
}

const fn offset(at: PhysAddr, bytes: u64) -> PhysAddr {
    PhysAddr::new(at.raw().wrapping_add(bytes))
}

//! Our lookups of VT-d's structures, and where these lie.

use viommu_pasid::vtd::legacy::{self, LegacyTranslation};
use viommu_pasid::vtd::{self, LookupFault, LookupFaultKind, Translation};
use viommu_pgtable::{PhysAddr, TableMemory};

use super::condition::Condition;
use super::exceptions;
use super::levels::Levels;
use super::mode::Mode;

/// What a request is translated through.
#[derive(Debug, Clone, Copy)]
pub(super) enum Found {
    /// Nothing: its address is the output.
    PassThrough,
    /// A page table.
    Table(Levels, PhysAddr),
}

/// Where the structures lie that lead to a page table, as far as they lead.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Structures {
    pub(super) root: Option<PhysAddr>,
    pub(super) context: Option<PhysAddr>,
    pub(super) directory: Option<PhysAddr>,
    pub(super) entry: Option<PhysAddr>,
}

/// A reader of the structures below a root table.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lookup {
    pub(super) mode: Mode,
    /// The root table.
    pub(super) root: PhysAddr,
}

impl Lookup {
    pub(super) fn find<M: TableMemory>(
        &self,
        memory: &M,
        bdf: u16,
    ) -> std::result::Result<Found, Condition> {
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
        let entry = vtd::lookup(memory, self.root, bdf, None)
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

    /// Which structure is not there. Our lookup knows no host address width: a pointer beyond it,
    /// whose upper bits are reserved, finds no memory.
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
    pub(super) fn structures<M: TableMemory>(&self, memory: &M, bdf: u16) -> Structures {
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

/// `bytes` bytes further.
pub(super) const fn offset(at: PhysAddr, bytes: u64) -> PhysAddr {
    PhysAddr::new(at.raw().wrapping_add(bytes))
}

//! What our code says about a request, and what QEMU is known to make of it instead.

use viommu_pgtable::{Iova, PhysAddr, TableMemory};

use super::condition::Condition;
use super::exceptions::{self, Entries, Structure};
use super::levels::Levels;
use super::lookup::{Found, Lookup, Structures, offset};
use crate::memory::GuestRam;
use crate::overlay::Overlay;
use crate::subject::{End, Excepted, Exception, Marks, Probe, Verdict, Words};
use crate::tables::Step;

/// Bit 1 of context, PASID directory and PASID entries: FPD, faults are not recorded.
const FAULTS_OFF: u64 = 2;

impl Lookup {
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

    /// What an exception in one entry makes of a request that ends in `end`; `memory` is as our
    /// walk left it.
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
}

//! From (function, PASID) to a PASID entry: at most 14 loads, whatever the bytes say.

use core::fmt;

use viommu_pgtable::{PhysAddr, TableMemory};

use super::entry::PasidEntry;
use super::table::slot_at;
use super::{ContextEntry, PRESENT, context, follow, root};
use crate::Pasid;
use crate::leaf::{WORDS, entry_at, within};

/// Root entry: bits 11:1 of each pointer.
const ROOT_RESERVED: u64 = 0xffe;
/// Directory entry: bits 11:2. Bit 1 (FPD) is about reporting faults.
const DIRECTORY_RESERVED: u64 = 0xffc;

/// Which structure ended a lookup (VT-d 5.0, 7.1.3: the scalable-mode fault reasons).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupFaultKind {
    /// No memory at the address.
    NoMemory,
    /// The root entry is not present (SRT.2).
    RootNotPresent,
    /// The root entry is present with reserved bits set (SRT.3).
    RootMalformed,
    /// The context entry is not present (SCT.2).
    ContextNotPresent,
    /// The context entry is present with reserved bits set (SCT.3).
    ContextMalformed,
    /// A tagged request of a function that may send none (SGN.5).
    PasidNotEnabled,
    /// The PASID is wider than the directory (SGN.5 as well).
    PasidTooWide,
    /// The directory entry is not present (SPD.2).
    DirectoryNotPresent,
    /// The directory entry is present with reserved bits set (SPD.3).
    DirectoryMalformed,
    /// The PASID entry is not present (SPT.2): nothing is attached.
    EntryNotPresent,
    /// The PASID entry is present and malformed (SPT.3).
    EntryMalformed,
}

/// A request that found no way to its page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookupFault {
    /// What was wrong.
    pub kind: LookupFaultKind,
    /// The address of the entry that was wrong.
    pub entry_at: PhysAddr,
}

impl LookupFault {
    const fn new(kind: LookupFaultKind, entry_at: PhysAddr) -> Self {
        Self { kind, entry_at }
    }
}

impl fmt::Display for LookupFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            LookupFaultKind::NoMemory => "no memory for the entry",
            LookupFaultKind::RootNotPresent => "root entry not present",
            LookupFaultKind::RootMalformed => "root entry malformed",
            LookupFaultKind::ContextNotPresent => "context entry not present",
            LookupFaultKind::ContextMalformed => "context entry malformed",
            LookupFaultKind::PasidNotEnabled => "function sends no PASIDs",
            LookupFaultKind::PasidTooWide => "PASID wider than the directory",
            LookupFaultKind::DirectoryNotPresent => "PASID directory entry not present",
            LookupFaultKind::DirectoryMalformed => "PASID directory entry malformed",
            LookupFaultKind::EntryNotPresent => "PASID entry not present",
            LookupFaultKind::EntryMalformed => "PASID entry malformed",
        };
        write!(f, "{what} at {}", self.entry_at)
    }
}

impl core::error::Error for LookupFault {}

/// Finds how requests of function `bdf`, tagged with `pasid` or untagged, are translated. `root` is
/// the root table of the function's segment; all structures lie in `memory`.
///
/// # Errors
/// The first entry on the way that is missing, not present or malformed.
pub fn lookup<M: TableMemory + ?Sized>(
    memory: &M,
    root: PhysAddr,
    bdf: u16,
    pasid: Option<Pasid>,
) -> Result<PasidEntry, LookupFault> {
    let (context, context_at) = find_context(memory, root, bdf)?;
    let index = match pasid {
        Some(_) if !context.pasid_enable => {
            return Err(LookupFault::new(LookupFaultKind::PasidNotEnabled, context_at));
        }
        Some(pasid) => pasid.raw(),
        None => context.rid_pasid,
    };
    if !context.covers(index) {
        return Err(LookupFault::new(LookupFaultKind::PasidTooWide, context_at));
    }
    let Some(slot) = slot_at(context.directory, index) else {
        return Err(LookupFault::new(LookupFaultKind::NoMemory, context.directory));
    };
    let word = load(memory, slot)?;
    let Some(leaf) = follow(word) else {
        return Err(LookupFault::new(LookupFaultKind::DirectoryNotPresent, slot));
    };
    if word & DIRECTORY_RESERVED != 0 {
        return Err(LookupFault::new(LookupFaultKind::DirectoryMalformed, slot));
    }
    entry(memory, entry_at(leaf, index))
}

fn find_context<M: TableMemory + ?Sized>(
    memory: &M,
    root: PhysAddr,
    bdf: u16,
) -> Result<(ContextEntry, PhysAddr), LookupFault> {
    let pointer_at = root::pointer_at(root, bdf);
    let word = load(memory, pointer_at)?;
    let Some(table) = follow(word) else {
        return Err(LookupFault::new(LookupFaultKind::RootNotPresent, pointer_at));
    };
    if word & ROOT_RESERVED != 0 {
        return Err(LookupFault::new(LookupFaultKind::RootMalformed, pointer_at));
    }
    let context_at = root::context_at(table, bdf);
    let word = |index: u64| load(memory, within(context_at, index * 8));
    let words = [word(0)?, word(1)?, word(2)?, word(3)?];
    let [word0, word1, ..] = words;
    match ContextEntry::unpack([word0, word1]) {
        Some(entry) if context::is_clean(words) => Ok((entry, context_at)),
        Some(_) => Err(LookupFault::new(LookupFaultKind::ContextMalformed, context_at)),
        None => Err(LookupFault::new(LookupFaultKind::ContextNotPresent, context_at)),
    }
}

fn entry<M: TableMemory + ?Sized>(
    memory: &M,
    entry_at: PhysAddr,
) -> Result<PasidEntry, LookupFault> {
    let mut words = [0; WORDS];
    for (word, offset) in words.iter_mut().zip((0u64..).step_by(8)) {
        *word = load(memory, within(entry_at, offset))?;
        if offset == 0 && *word & PRESENT == 0 {
            return Err(LookupFault::new(LookupFaultKind::EntryNotPresent, entry_at));
        }
    }
    PasidEntry::unpack(&words).ok_or(LookupFault::new(LookupFaultKind::EntryMalformed, entry_at))
}

fn load<M: TableMemory + ?Sized>(memory: &M, at: PhysAddr) -> Result<u64, LookupFault> {
    memory.load(at).ok_or(LookupFault::new(LookupFaultKind::NoMemory, at))
}

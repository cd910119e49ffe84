//! The walker: one for all formats.

use crate::format::{ENTRY_LG2, Entry, Format, Geometry, Mark};
use crate::{Access, Fault, FaultKind, Iova, PhysAddr, Purpose, TableMemory};

/// How often an entry is read again because somebody changed it while its accessed or dirty flag was
/// being set. Each time the other side made progress; a table that changes that fast is not one that a
/// driver uses, so the access faults instead of waiting.
pub const MARK_ATTEMPTS: u32 = 8;

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Translation {
    /// Where the address itself leads, not the start of its page.
    pub oa: PhysAddr,
    /// Size of the leaf, bytes: all addresses of the page lead on in the same way.
    pub size_lg2: u8,
    /// What the path grants to accesses with the same [`Access::PRIVILEGED`] as the one asked for; at
    /// least what was asked for. What caches translations keeps the two kinds apart.
    pub access: Access,
}

/// Follows `iova` through the table at `root`.
///
/// Takes at most as many steps as the format has levels. An access that a level does not allow ends
/// there. In formats with accessed and dirty flags these are set before the access is granted.
///
/// # Errors
/// The [`Fault`] at the first entry that does not lead on.
#[inline]
pub fn walk<F: Format, M: TableMemory + ?Sized>(
    format: &F,
    memory: &M,
    root: PhysAddr,
    iova: Iova,
    access: Access,
) -> Result<Translation, Fault> {
    walk_noting(format, memory, root, iova, access).map(|(page, _)| page)
}

/// [`walk`], which also yields the table of level 0 that it ended in, if it did.
///
/// # Errors
/// As [`walk`].
#[inline]
pub fn walk_noting<F: Format, M: TableMemory + ?Sized>(
    format: &F,
    memory: &M,
    root: PhysAddr,
    iova: Iova,
    access: Access,
) -> Result<(Translation, Option<LowTable>), Fault> {
    let geometry = format.geometry();
    let mut at = Position { input: iova.raw(), level: geometry.root_level(), entry_at: root };
    let Some(input) = format.input(iova) else {
        return Err(at.fault::<F>(FaultKind::InputTooWide));
    };
    if !root.is_aligned(geometry.root_bytes_lg2()) {
        return Err(at.fault::<F>(FaultKind::RootMisaligned));
    }
    let (mut table, mut path) = (root, Access::all());
    for level in (0..geometry.levels).rev() {
        at.level = level;
        at.entry_at = geometry.entry_at(level, table, input);
        match step(format, memory, &at, path, access)? {
            Step::Down { next, rights } => (table, path) = (next, rights),
            Step::Page { oa, access } => {
                let page = page(&geometry, level, oa, input, access);
                let low = level == 0 && geometry.levels > 1;
                return Ok((page, low.then(|| LowTable::new(table, path))));
            }
        }
    }
    // a table entry at level 0: no format decodes one
    Err(at.fault::<F>(FaultKind::Malformed))
}

/// The address of `input` in the page at `oa`, a leaf of `level`.
#[inline]
fn page(geometry: &Geometry, level: u8, oa: PhysAddr, input: u64, access: Access) -> Translation {
    let size_lg2 = geometry.entry_lg2(level);
    let oa = PhysAddr::new(oa.raw() | (input & ((1 << size_lg2) - 1)));
    Translation { oa, size_lg2, access }
}

/// A table of level 0 below another, and what the entries that lead to it allow: a walk of any address that
/// goes through it can begin here.
///
/// It says nothing of whether anything leads there still. Who keeps one, forgets it when told to, and takes
/// a fault that is found this way for no fault until a whole walk has found it, too: the table may have been
/// replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LowTable {
    /// The address, a multiple of 4 KiB at least, and [`Access`] bits below. Small, because it is kept.
    table_and_rights: u64,
}

impl LowTable {
    const RIGHTS: u64 = Access::all().bits() as u64;

    #[inline]
    const fn new(table: PhysAddr, rights: Access) -> Self {
        Self { table_and_rights: table.raw() | rights.bits() as u64 }
    }

    /// The last step of a walk of `iova`, which goes through this table, in memory and in a format that are
    /// those of the walk that noted it.
    ///
    /// # Errors
    /// The [`Fault`] at the entry.
    #[inline]
    pub fn walk<F: Format, M: TableMemory + ?Sized>(
        &self,
        format: &F,
        memory: &M,
        iova: Iova,
        access: Access,
    ) -> Result<Translation, Fault> {
        let (geometry, input) = (format.geometry(), iova.raw());
        // below the root: a table of one granule
        let index = (input >> geometry.granule_lg2) & ((1 << geometry.index_bits()) - 1);
        let table = self.table_and_rights & !Self::RIGHTS;
        let [rights, ..] = (self.table_and_rights & Self::RIGHTS).to_le_bytes();
        let entry_at = PhysAddr::new(table | index << ENTRY_LG2);
        let at = Position { input, level: 0, entry_at };
        match step(format, memory, &at, Access::from_bits_truncate(rights), access)? {
            Step::Page { oa, access } => Ok(page(&geometry, 0, oa, input, access)),
            Step::Down { .. } => Err(at.fault::<F>(FaultKind::Malformed)),
        }
    }
}

/// Where a walk is.
struct Position {
    input: u64,
    level: u8,
    entry_at: PhysAddr,
}

impl Position {
    #[cold]
    fn fault<F: Format>(&self, kind: FaultKind) -> Fault {
        let Self { input, level, entry_at } = *self;
        Fault { stage: F::STAGE, purpose: Purpose::Access, input, level, entry_at, kind }
    }
}

enum Step {
    /// To the table at `next`; all entries so far have `rights` in common.
    Down { next: PhysAddr, rights: Access },
    /// Done: the page at `oa`, `access` granted.
    Page { oa: PhysAddr, access: Access },
}

/// Reads one entry and, if its flags must be set, comes back until they are.
#[inline(always)]
fn step<F: Format, M: TableMemory + ?Sized>(
    format: &F,
    memory: &M,
    at: &Position,
    path: Access,
    wanted: Access,
) -> Result<Step, Fault> {
    let fault = |kind| Err(at.fault::<F>(kind));
    let Some(mut raw) = memory.load(at.entry_at) else {
        return fault(FaultKind::Unreadable);
    };
    for _ in 0..MARK_ATTEMPTS {
        let (step, mark) = match judge(format, at.level, raw, path, wanted) {
            Ok(judged) => judged,
            Err(kind) => return fault(kind),
        };
        let Mark::Set(marked) = mark else {
            return Ok(step);
        };
        match memory.compare_exchange(at.entry_at, raw, marked) {
            Some(Ok(())) => return Ok(step),
            Some(Err(found)) => raw = found,
            None => break,
        }
    }
    fault(FaultKind::NotUpdated)
}

/// What the entry `raw` means for an access that does `wanted`, and the flags to set in it.
#[inline(always)]
fn judge<F: Format>(
    format: &F,
    level: u8,
    raw: u64,
    path: Access,
    wanted: Access,
) -> Result<(Step, Mark), FaultKind> {
    let (address, access, leaf) = match format.decode(level, raw) {
        Entry::Empty => return Err(FaultKind::NotPresent),
        Entry::Malformed => return Err(FaultKind::Malformed),
        Entry::Table { next, access } => (next, access, false),
        Entry::Leaf { oa, access } => (oa, access, true),
    };
    if !format.output_fits(address) {
        return Err(FaultKind::OutputTooWide);
    }
    let mark = format.mark(raw, leaf, wanted);
    if mark == Mark::Fault {
        return Err(FaultKind::AccessFlag);
    }
    let rights = path.intersection(access);
    let granted = format.granted(rights, wanted);
    if (leaf || F::TABLES_DENY) && !granted.permits(wanted) {
        return Err(FaultKind::Denied { granted, wanted });
    }
    let step = if leaf {
        Step::Page { oa: address, access: granted }
    } else {
        Step::Down { next: address, rights }
    };
    Ok((step, mark))
}

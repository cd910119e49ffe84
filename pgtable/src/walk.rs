//! The walker: one for all formats.

use crate::format::{Entry, Format, Mark};
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
                let size_lg2 = geometry.entry_lg2(level);
                let oa = PhysAddr::new(oa.raw() | (input & ((1 << size_lg2) - 1)));
                return Ok(Translation { oa, size_lg2, access });
            }
        }
    }
    // a table entry at level 0: no format decodes one
    Err(at.fault::<F>(FaultKind::Malformed))
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

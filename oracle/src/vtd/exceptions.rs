//! Where QEMU's intel-iommu is known to differ, and how exactly.

use viommu_pgtable::Iova;

use super::condition::Condition;
use super::mode::Mode;
use crate::subject::{End, Exception};
use crate::tables::Step;

/// Reserved bits and a missing right in one entry.
static RIGHTS_FIRST: Exception = Exception {
    name: "rights before reserved bits",
    manual: "VT-d 7.1.3 lists both conditions and orders neither",
    emulator: "looks at an entry's rights first and does not report its reserved bits then",
};

/// An entry of all ones.
static ALL_ONES: Exception = Exception {
    name: "all ones taken for no memory",
    manual: "VT-d 7.1.3: the entry is there, with reserved bits set",
    emulator: "takes the word of all ones for a read that failed",
};

/// Scalable-mode faults with the numbers of legacy mode.
static LEGACY_NUMBERS: Exception = Exception {
    name: "legacy mode's fault numbers",
    manual: "VT-d 7.1.3: scalable mode has numbers of its own, from 30h on",
    emulator: "reports root, context and second-level faults of scalable mode as legacy mode's",
};

/// An absent PASID entry.
static TYPE_FIRST: Exception = Exception {
    name: "PASID entry's type before its presence",
    manual: "VT-d 9.6, 7.1.3: nothing but FPD counts in an entry that is not present (SPT.2)",
    emulator: "finds fault with the type and width of an absent entry (SPT.4)",
};

/// Reserved bits of a PASID entry.
static PASID_RESERVED: Exception = Exception {
    name: "PASID entry's reserved bits",
    manual: "VT-d 9.6, 7.1.3: a present entry with reserved bits set is a fault (SPT.3)",
    emulator: "translates as if they were clear",
};

/// Reserved bits of a PASID directory entry.
static DIRECTORY_RESERVED: Exception = Exception {
    name: "PASID directory entry's reserved bits",
    manual: "VT-d 9.5, 7.1.3: a present entry with reserved bits set is a fault (SPD.3)",
    emulator: "follows it as if they were clear",
};

/// The PASID of untagged requests.
static RID_PASID: Exception = Exception {
    name: "RID_PASID not offered",
    manual: "VT-d 9.4: units without it (ECAP.RPS clear) take PASID 0 whatever the field says",
    emulator: "is such a unit; our lookup is that of one with it",
};

/// The width field of a PASID entry with a first level.
static WIDTH_OF_FIRST: Exception = Exception {
    name: "AW bounds first-level addresses",
    manual: "VT-d 9.6, 3.6: AW is the second level's; the first level's width is FSPM's",
    emulator: "wants first-level addresses canonical in the width that AW names",
};

/// Accessed and dirty flags of one entry.
static FLAGS_TOGETHER: Exception = Exception {
    name: "A and D taken for one flag",
    manual: "VT-d 3.6.3: a write sets D in the leaf, and every access sets A in each entry",
    emulator: "sets neither of a leaf's two flags for a write if one of them is set",
};

/// A structure on the way to a page table.
#[derive(Debug, Clone, Copy)]
pub(super) enum Structure {
    /// The scalable-mode context entry.
    Context,
    /// The PASID directory's entry.
    Directory,
    /// The PASID entry.
    Entry,
}

/// The bits of a structure that QEMU looks at, although the others mean something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blind {
    /// Why it may.
    pub(super) exception: &'static Exception,
    /// The bits that it looks at, word by word.
    pub(super) seen: &'static [u64],
}

/// All bits but those that the manual reserves.
pub(super) static PASID_ENTRY_SEEN: [u64; 8] = [!0xc20, !0xf87f_0000, !0xf02, 0, 0, 0, 0, 0];

/// What QEMU does not look at in scalable mode, in the order of a lookup.
pub(super) static BLIND: [(Structure, Blind); 3] = [
    (Structure::Context, Blind { exception: &RID_PASID, seen: &[u64::MAX, !0xf_ffff] }),
    (Structure::Directory, Blind { exception: &DIRECTORY_RESERVED, seen: &[!0xffc] }),
    (Structure::Entry, Blind { exception: &PASID_RESERVED, seen: &PASID_ENTRY_SEEN }),
];

/// What a prediction depends on.
#[derive(Debug)]
pub(super) struct Entries {
    pub(super) mode: Mode,
    /// The last page-table entry that was read.
    pub(super) last: Option<Step>,
    /// The PASID entry's first word.
    pub(super) pasid_entry: Option<u64>,
    /// The PASID entry's paging mode of a first level (FSPM).
    pub(super) paging_mode: Option<u64>,
    /// The request writes.
    pub(super) write: bool,
}

/// What QEMU makes of a request that ends in `condition`, if that is known to be something else.
pub(super) fn predict(
    entries: &Entries,
    condition: Condition,
) -> Option<(&'static Exception, End<u8>)> {
    let special = entry_exception(entries, condition);
    let (exception, seen) = special.unwrap_or((&LEGACY_NUMBERS, condition));
    let exception = if is_early(entries, condition) { &TYPE_FIRST } else { exception };
    let predicted = reason(entries, seen);
    (predicted != entries.mode.reason(condition)).then_some((exception, Err(predicted)))
}

/// What QEMU makes of an address that is not canonical in the width of AW, in a PASID entry with a
/// first level.
pub(super) fn predict_width(
    entries: &Entries,
    iova: Iova,
) -> Option<(&'static Exception, End<u8>)> {
    let width = (entries.pasid_entry? >> 2) & 7;
    let bits = u32::try_from(30 + 9 * width).unwrap_or(0).min(48);
    let sign = iova.raw().cast_signed() >> (bits - 1);
    let canonical = sign == 0 || sign == -1;
    let reason = entries.mode.reason(Condition::NotCanonical);
    (!canonical).then_some((&WIDTH_OF_FIRST, Err(reason)))
}

/// True if QEMU leaves the flags of the last entry, a first level's leaf that is written through,
/// alone although one is to be set.
pub(super) fn keeps_flags(entries: &Entries) -> Option<&'static Exception> {
    const FLAGS: u64 = 1 << 5 | 1 << 6;
    let flags = entries.last?.raw & FLAGS;
    (entries.write && flags != 0 && flags != FLAGS).then_some(&FLAGS_TOGETHER)
}

/// QEMU's number for a condition: legacy mode's wherever there is one, in scalable mode too.
pub(super) fn reason(entries: &Entries, condition: Condition) -> u8 {
    if is_early(entries, condition) {
        return entries.mode.reason(Condition::EntryInvalid);
    }
    match condition.legacy() {
        0 => entries.mode.reason(condition),
        legacy => legacy,
    }
}

/// True for an absent PASID entry that names no type and width that are offered.
fn is_early(entries: &Entries, condition: Condition) -> bool {
    let word = entries.pasid_entry.unwrap_or(0);
    let (kind, width) = ((word >> 6) & 7, (word >> 2) & 7);
    let widest = u64::from((entries.mode.bits() - 30) / 9);
    let offered = match entries.mode {
        Mode::ScalableFirst => kind == 1 && entries.paging_mode == Some(0),
        _ => kind == 2 && (1..=widest).contains(&width),
    };
    let offered = offered || kind == 4;
    condition == Condition::EntryAbsent && !offered
}

/// Exceptions that lie in one page-table entry.
fn entry_exception(
    entries: &Entries,
    condition: Condition,
) -> Option<(&'static Exception, Condition)> {
    let Step { raw, level, .. } = entries.last?;
    let is_root = level + 1 == (entries.mode.bits() - 12) / 9;
    let second_right = if entries.write { 2 } else { 1 };
    let no_right = if entries.write { Condition::NoWrite } else { Condition::NoRead };
    match condition {
        Condition::SecondReserved if raw == u64::MAX && is_root => {
            Some((&ALL_ONES, Condition::SecondRootAccess))
        }
        Condition::SecondReserved if raw == u64::MAX => Some((&ALL_ONES, Condition::SecondAccess)),
        Condition::SecondReserved if raw & second_right == 0 => Some((&RIGHTS_FIRST, no_right)),
        Condition::FirstReserved if raw == u64::MAX && is_root => {
            Some((&ALL_ONES, Condition::FirstRootAccess))
        }
        Condition::FirstReserved if raw == u64::MAX => Some((&ALL_ONES, Condition::FirstAccess)),
        Condition::FirstReserved if raw & 4 == 0 => {
            Some((&RIGHTS_FIRST, Condition::FirstPrivileged))
        }
        Condition::FirstReserved if entries.write && raw & 2 == 0 => {
            Some((&RIGHTS_FIRST, Condition::FirstNoWrite))
        }
        _ => None,
    }
}

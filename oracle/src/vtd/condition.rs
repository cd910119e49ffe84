//! VT-d's fault conditions and their numbers (VT-d 5.0, 7.1.3).

use viommu_pasid::vtd::legacy::LegacyFaultKind;
use viommu_pgtable::{Fault, FaultKind, Stage};

/// Why a request goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// No memory for the root entry.
    RootAccess,
    /// Root entry not present.
    RootAbsent,
    /// Root entry with reserved bits.
    RootReserved,
    /// No memory for the context entry.
    ContextAccess,
    /// Context entry not present.
    ContextAbsent,
    /// Context entry with reserved bits.
    ContextReserved,
    /// Context entry with a width or type that is not offered.
    ContextInvalid,
    /// The PASID of untagged requests is wider than the directory.
    PasidTooWide,
    /// No memory for the PASID directory's entry.
    DirectoryAccess,
    /// PASID directory's entry not present.
    DirectoryAbsent,
    /// PASID directory's entry with reserved bits.
    DirectoryReserved,
    /// No memory for the PASID entry.
    EntryAccess,
    /// PASID entry not present.
    EntryAbsent,
    /// PASID entry with reserved bits.
    EntryReserved,
    /// PASID entry with a width or type that is not offered.
    EntryInvalid,
    /// The address is wider than the second level translates.
    TooWide,
    /// The second level does not let the request write.
    NoWrite,
    /// The second level does not let the request read.
    NoRead,
    /// No memory for the second level's root table.
    SecondRootAccess,
    /// No memory for a second-level table below.
    SecondAccess,
    /// Second-level entry with reserved bits.
    SecondReserved,
    /// The address is not canonical.
    NotCanonical,
    /// No memory for the first level's root table.
    FirstRootAccess,
    /// No memory for a first-level table below.
    FirstAccess,
    /// First-level entry not present.
    FirstAbsent,
    /// First-level entry with reserved bits.
    FirstReserved,
    /// First-level entry for privileged software only.
    FirstPrivileged,
    /// The first level does not let the request write.
    FirstNoWrite,
    /// An accessed or dirty flag could not be set.
    FirstFlag,
    /// Something that no lookup or walk in this mode can say.
    Impossible,
}

impl Condition {
    /// The fault reason in legacy mode, or 0.
    #[must_use]
    pub const fn legacy(self) -> u8 {
        match self {
            Self::RootAbsent => 0x1,
            Self::ContextAbsent => 0x2,
            // a context entry whose table is not there is invalid too
            Self::ContextInvalid | Self::SecondRootAccess => 0x3,
            Self::TooWide => 0x4,
            Self::NoWrite => 0x5,
            Self::NoRead => 0x6,
            Self::SecondAccess => 0x7,
            Self::RootAccess => 0x8,
            Self::ContextAccess => 0x9,
            Self::RootReserved => 0xa,
            Self::ContextReserved => 0xb,
            Self::SecondReserved => 0xc,
            _ => 0,
        }
    }

    /// The fault reason in scalable mode, or 0.
    #[must_use]
    pub const fn scalable(self) -> u8 {
        match self {
            Self::RootAccess => 0x38,
            Self::RootAbsent => 0x39,
            Self::RootReserved => 0x3a,
            Self::ContextAccess => 0x40,
            Self::ContextAbsent => 0x41,
            Self::ContextReserved => 0x42,
            Self::ContextInvalid => 0x43,
            Self::PasidTooWide => 0x48,
            Self::DirectoryAccess => 0x50,
            Self::DirectoryAbsent => 0x51,
            Self::DirectoryReserved => 0x52,
            Self::EntryAccess => 0x58,
            Self::EntryAbsent => 0x59,
            Self::EntryReserved => 0x5a,
            Self::EntryInvalid => 0x5b,
            Self::FirstAccess => 0x70,
            Self::FirstAbsent => 0x71,
            Self::FirstReserved => 0x72,
            Self::FirstRootAccess => 0x73,
            Self::SecondAccess => 0x78,
            Self::SecondReserved => 0x7a,
            Self::SecondRootAccess => 0x7b,
            Self::NotCanonical => 0x80,
            Self::FirstPrivileged => 0x81,
            Self::TooWide => 0x84,
            Self::NoWrite | Self::FirstNoWrite => 0x85,
            Self::NoRead => 0x86,
            Self::FirstFlag => 0x90,
            Self::Impossible => 0,
        }
    }

    /// From a lookup in legacy mode.
    #[must_use]
    pub const fn from_legacy(kind: LegacyFaultKind) -> Self {
        match kind {
            LegacyFaultKind::RootNoMemory => Self::RootAccess,
            LegacyFaultKind::RootNotPresent => Self::RootAbsent,
            LegacyFaultKind::RootMalformed => Self::RootReserved,
            LegacyFaultKind::ContextNoMemory => Self::ContextAccess,
            LegacyFaultKind::ContextNotPresent => Self::ContextAbsent,
            LegacyFaultKind::ContextMalformed => Self::ContextReserved,
            LegacyFaultKind::ContextInvalid => Self::ContextInvalid,
        }
    }

    /// From a walk, of a request that writes or reads.
    #[must_use]
    pub fn from_walk(fault: &Fault, root_level: u8, write: bool) -> Self {
        let at_root = fault.level == root_level;
        match (fault.stage, fault.kind) {
            (Stage::Second, kind) => Self::second(kind, at_root, write),
            (Stage::First, FaultKind::InputTooWide) => Self::NotCanonical,
            (Stage::First, FaultKind::Unreadable) if at_root => Self::FirstRootAccess,
            (Stage::First, FaultKind::Unreadable) => Self::FirstAccess,
            (Stage::First, FaultKind::NotPresent) => Self::FirstAbsent,
            (Stage::First, FaultKind::Malformed | FaultKind::OutputTooWide) => Self::FirstReserved,
            (Stage::First, FaultKind::NotUpdated) => Self::FirstFlag,
            (Stage::First, FaultKind::Denied { granted, .. }) if granted.is_empty() => {
                Self::FirstPrivileged
            }
            (Stage::First, FaultKind::Denied { .. }) => Self::FirstNoWrite,
            (Stage::First, _) => Self::Impossible,
        }
    }

    const fn second(kind: FaultKind, at_root: bool, write: bool) -> Self {
        match kind {
            FaultKind::InputTooWide => Self::TooWide,
            FaultKind::Unreadable if at_root => Self::SecondRootAccess,
            FaultKind::Unreadable => Self::SecondAccess,
            // an entry without any right is not present, and reported as the right that is missing
            FaultKind::NotPresent | FaultKind::Denied { .. } if write => Self::NoWrite,
            FaultKind::NotPresent | FaultKind::Denied { .. } => Self::NoRead,
            FaultKind::Malformed | FaultKind::OutputTooWide => Self::SecondReserved,
            _ => Self::Impossible,
        }
    }
}

#[cfg(test)]
mod tests {
    use viommu_pgtable::{Access, PhysAddr, Purpose};

    use super::*;

    fn fault(stage: Stage, level: u8, kind: FaultKind) -> Fault {
        let entry_at = PhysAddr::new(0);
        Fault { stage, purpose: Purpose::Access, input: 0, level, entry_at, kind }
    }

    #[test]
    fn a_missing_right_is_reported_as_what_was_tried() {
        let denied = FaultKind::Denied { granted: Access::empty(), wanted: Access::WRITE };
        for kind in [FaultKind::NotPresent, denied] {
            let fault = fault(Stage::Second, 0, kind);
            assert_eq!(Condition::from_walk(&fault, 3, true).legacy(), 5);
            assert_eq!(Condition::from_walk(&fault, 3, false).legacy(), 6);
        }
    }

    #[test]
    fn missing_memory_is_the_context_entrys_fault_at_the_root_only() {
        let at = |level| fault(Stage::Second, level, FaultKind::Unreadable);
        assert_eq!(Condition::from_walk(&at(3), 3, true).legacy(), 3);
        assert_eq!(Condition::from_walk(&at(2), 3, true).legacy(), 7);
    }

    #[test]
    fn first_level_denials_tell_privileged_pages_from_read_only_ones() {
        let denied = |granted| FaultKind::Denied { granted, wanted: Access::WRITE };
        let number = |granted| {
            Condition::from_walk(&fault(Stage::First, 0, denied(granted)), 3, true).scalable()
        };
        assert_eq!(number(Access::empty()), 0x81);
        assert_eq!(number(Access::READ), 0x85);
    }
}

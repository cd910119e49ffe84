//! Why a walk did not end at memory: enough for a hardware fault record.

use core::fmt;

use crate::{Access, PhysAddr};

/// Which of two stacked tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stage {
    /// First level, stage 1.
    First,
    /// Second level, stage 2.
    Second,
}

/// What the faulting stage was translating for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// The access itself.
    Access,
    /// An entry of the first-level table, on the way of an access.
    TableEntry,
}

/// What was wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The root table does not start at a multiple of its size; no entry was read.
    RootMisaligned,
    /// The input address is wider than the table translates, or not canonical; no entry was read.
    InputTooWide,
    /// There is no memory where the entry would be.
    Unreadable,
    /// The entry leads nowhere.
    NotPresent,
    /// The entry has reserved bits set.
    Malformed,
    /// The entry's address is wider than the format's output.
    OutputTooWide,
    /// The entry's access flag is clear and software must set it.
    AccessFlag,
    /// The entry's accessed or dirty flag could not be set.
    NotUpdated,
    /// The entries so far do not allow the access.
    Denied {
        /// What they allow to accesses of the same privilege.
        granted: Access,
        /// What was wanted.
        wanted: Access,
    },
}

/// A walk that did not end at memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fault {
    /// The stage whose table ended the walk.
    pub stage: Stage,
    /// What this stage was translating for.
    pub purpose: Purpose,
    /// The address that this stage was asked to translate.
    pub input: u64,
    /// Level of the entry that ended the walk; the root's if none was read.
    pub level: u8,
    /// Where that entry is, in the address space of this stage's table; the root if none was read.
    pub entry_at: PhysAddr,
    /// What was wrong.
    pub kind: FaultKind,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::First => "first level",
            Self::Second => "second level",
        })
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RootMisaligned => f.write_str("root table misaligned"),
            Self::InputTooWide => f.write_str("input address too wide"),
            Self::Unreadable => f.write_str("no memory at the entry"),
            Self::NotPresent => f.write_str("not present"),
            Self::Malformed => f.write_str("reserved bits set"),
            Self::OutputTooWide => f.write_str("output address too wide"),
            Self::AccessFlag => f.write_str("access flag clear"),
            Self::NotUpdated => f.write_str("accessed or dirty flag not set"),
            Self::Denied { granted, wanted } => {
                f.write_str("access ")?;
                bitflags::parser::to_writer(wanted, &mut *f)?;
                f.write_str(" denied, granted ")?;
                bitflags::parser::to_writer(granted, f)
            }
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { stage, input, level, entry_at, kind, .. } = self;
        write!(f, "{stage}, input {input:#x}")?;
        if self.purpose == Purpose::TableEntry {
            f.write_str(" (a first-level entry)")?;
        }
        write!(f, ", level {level}, entry at {entry_at}: {kind}")
    }
}

impl core::error::Error for Fault {}

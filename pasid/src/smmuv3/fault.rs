//! Why a lookup found no way, with the numbers of the events that hardware records (IHI 0070, 7.3).

use core::fmt;

use viommu_pgtable::{Fault, FaultKind, PhysAddr};

/// Which structure ended a lookup.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupFaultKind {
    /// The stream table has no such StreamID (C_BAD_STREAMID).
    UnknownStream,
    /// No memory at the stream table entry, or at the pointer to it (F_STE_FETCH).
    EntryFetch,
    /// The stream table entry is not valid, or illegal (C_BAD_STE).
    BadEntry,
    /// The stream table entry says abort: no event.
    Aborted,
    /// An untagged request where only tagged ones are served (F_STREAM_DISABLED).
    StreamDisabled,
    /// A tagged request without stage 1, or with more bits than there are (C_BAD_SUBSTREAMID).
    BadSubstream,
    /// No memory at the context descriptor, or at the pointer to it, be it behind stage 2
    /// (F_CD_FETCH).
    ContextFetch,
    /// The context descriptor is not valid, or illegal (C_BAD_CD).
    BadContext,
    /// Stage 2 refused the address of the context descriptor, or of the pointer to it: the event of
    /// the walk, with class CD.
    ContextThrough(Fault),
}

impl LookupFaultKind {
    /// The number of the event that hardware records; `None` if it records none.
    #[must_use]
    pub const fn event(&self) -> Option<u8> {
        match self {
            Self::UnknownStream => Some(0x02),
            Self::EntryFetch => Some(0x03),
            Self::BadEntry => Some(0x04),
            Self::Aborted => None,
            Self::StreamDisabled => Some(0x06),
            Self::BadSubstream => Some(0x08),
            Self::ContextFetch => Some(0x09),
            Self::BadContext => Some(0x0a),
            Self::ContextThrough(fault) => Some(walk_event(&fault.kind)),
        }
    }
}

/// The number of the event that hardware records for a walk that ended so.
#[must_use]
pub const fn walk_event(kind: &FaultKind) -> u8 {
    match kind {
        // F_WALK_EABT
        FaultKind::Unreadable | FaultKind::NotUpdated | FaultKind::RootMisaligned => 0x0b,
        // F_TRANSLATION
        FaultKind::InputTooWide | FaultKind::NotPresent | FaultKind::Malformed => 0x10,
        // F_ADDR_SIZE
        FaultKind::OutputTooWide => 0x11,
        // F_ACCESS
        FaultKind::AccessFlag => 0x12,
        // F_PERMISSION
        FaultKind::Denied { .. } => 0x13,
    }
}

/// A request that found no way to its page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LookupFault {
    /// What was wrong.
    pub kind: LookupFaultKind,
    /// The address of the entry that was wrong, in the space of its table; the base of the stream
    /// table if it has no such entry.
    pub entry_at: PhysAddr,
}

impl LookupFault {
    pub(super) const fn new(kind: LookupFaultKind, entry_at: PhysAddr) -> Self {
        Self { kind, entry_at }
    }
}

impl fmt::Display for LookupFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match &self.kind {
            LookupFaultKind::UnknownStream => "stream id not in the stream table",
            LookupFaultKind::EntryFetch => "no memory for the stream table entry",
            LookupFaultKind::BadEntry => "stream table entry invalid or illegal",
            LookupFaultKind::Aborted => "stream table entry aborts",
            LookupFaultKind::StreamDisabled => "stream serves no untagged requests",
            LookupFaultKind::BadSubstream => "no such substream id",
            LookupFaultKind::ContextFetch => "no memory for the context descriptor",
            LookupFaultKind::BadContext => "context descriptor invalid or illegal",
            LookupFaultKind::ContextThrough(fault) => {
                return write!(f, "context descriptor at {} refused: {fault}", self.entry_at);
            }
        };
        write!(f, "{what}, at {}", self.entry_at)
    }
}

impl core::error::Error for LookupFault {}

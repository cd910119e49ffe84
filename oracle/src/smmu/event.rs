//! What an SMMU records of a request that goes nowhere (IHI 0070, 7.3).

use viommu_pasid::smmuv3::{LookupFaultKind, walk_event};
use viommu_pgtable::{Fault, Purpose, Stage};

/// Bytes of an event record.
pub(super) const EVENT_BYTES: u64 = 32;

/// The numbers of events.
pub(super) mod number {
    /// F_STE_FETCH.
    pub(in crate::smmu) const ENTRY_FETCH: u8 = 0x03;
    /// C_BAD_STE.
    pub(in crate::smmu) const BAD_ENTRY: u8 = 0x04;
    /// F_CD_FETCH.
    pub(in crate::smmu) const CONTEXT_FETCH: u8 = 0x09;
    /// F_WALK_EABT: no memory at an entry of a page table.
    pub(in crate::smmu) const WALK_ABORT: u8 = 0x0b;
    /// F_TRANSLATION.
    pub(in crate::smmu) const TRANSLATION: u8 = 0x10;
    /// F_ADDR_SIZE.
    pub(in crate::smmu) const ADDRESS_SIZE: u8 = 0x11;
    /// F_ACCESS.
    pub(in crate::smmu) const ACCESS: u8 = 0x12;
    /// F_PERMISSION.
    pub(in crate::smmu) const PERMISSION: u8 = 0x13;
}

/// Word 1, bits 35 and 39: RnW, S2. Bits 41:40: CLASS.
const READ: u64 = 1 << 35;
const STAGE2: u64 = 1 << 39;
const CLASS_SHIFT: u32 = 40;
/// Word 3, bits 51:12: IPA.
const IPA: u64 = 0x000f_ffff_ffff_f000;

/// What the request was on the way to when stage 2 ended it: CLASS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A context descriptor.
    Descriptor,
    /// An entry of a stage 1 table.
    TableEntry,
    /// Its own address.
    Input,
}

/// Why a request goes nowhere, as an event tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    /// The event's number; `None` if the request ends without one.
    pub event: Option<u8>,
    /// How a walk ended, for events of walks.
    pub walk: Option<Walk>,
}

/// The part of an event that is about a walk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Walk {
    /// Stage 2 ended it.
    pub stage2: bool,
    /// What it was for; not compared where memory was missing: QEMU has one class for that.
    pub class: Option<Class>,
    /// The page that stage 2 was asked for.
    pub ipa: Option<u64>,
}

/// An event record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// The event's number.
    pub event: u8,
    /// Whose request it was.
    pub stream: u32,
    /// For events of walks: the walk, the request's address, and whether it read, where that is
    /// told.
    pub walk: Option<(Walk, u64, Option<bool>)>,
}

impl Reason {
    /// An event that is not about a walk.
    pub(super) const fn plain(event: Option<u8>) -> Self {
        Self { event, walk: None }
    }

    /// From a lookup of the stream table and context descriptors.
    pub(super) fn from_lookup(kind: &LookupFaultKind) -> Self {
        match kind {
            LookupFaultKind::ContextThrough(fault) => Self::from_walk(fault, Class::Descriptor),
            _ => Self::plain(kind.event()),
        }
    }

    /// From a walk of either stage; `class` is what the walk as a whole was for.
    pub(super) fn from_walk(fault: &Fault, class: Class) -> Self {
        let class = match (class, fault.purpose) {
            (Class::Input, Purpose::TableEntry) => Class::TableEntry,
            _ => class,
        };
        Self::walk(walk_event(&fault.kind), fault.stage, class, fault.input)
    }

    /// The event of a walk whose `stage` was asked for `input`.
    pub(super) fn walk(event: u8, stage: Stage, class: Class, input: u64) -> Self {
        let stage2 = stage == Stage::Second;
        let class = (event != number::WALK_ABORT).then_some(class);
        let ipa = (stage2 && event != number::WALK_ABORT).then_some(input & IPA);
        Self { event: Some(event), walk: Some(Walk { stage2, class, ipa }) }
    }
}

impl Record {
    /// The record in these four words.
    pub(super) fn decode(words: [u64; 4]) -> Self {
        let [word0, word1, input, address] = words;
        let [event, _, _, _, stream @ ..] = word0.to_le_bytes();
        let stream = u32::from_le_bytes(stream);
        let about_walk = event == number::WALK_ABORT
            || (number::TRANSLATION..=number::PERMISSION).contains(&event);
        let class = match (word1 >> CLASS_SHIFT) & 3 {
            0 => Some(Class::Descriptor),
            1 => Some(Class::TableEntry),
            2 => Some(Class::Input),
            _ => None,
        };
        let stage2 = word1 & STAGE2 != 0;
        let told = event != number::WALK_ABORT;
        let walk = Walk {
            stage2,
            class: class.filter(|_| told),
            ipa: (stage2 && told).then_some(address & IPA),
        };
        let read = (walk.class == Some(Class::Input)).then_some(word1 & READ != 0);
        let walk = about_walk.then_some((walk, input, read));
        Self { event, stream, walk }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_2_fault_of_a_table_entry_is_read_to_the_field() {
        // 7.3.12: F_TRANSLATION, SID 63:32; RnW 35, S2 39, CLASS 41:40; InputAddr; IPA
        let words = [0x28_0000_0010, 0x188_0000_0000, 0x1234_5678, 0x2400_5000];
        let walk = Walk { stage2: true, class: Some(Class::TableEntry), ipa: Some(0x2400_5000) };
        let record = Record { event: 0x10, stream: 0x28, walk: Some((walk, 0x1234_5678, None)) };
        assert_eq!(Record::decode(words), record);
    }

    #[test]
    fn whether_a_request_reads_is_told_of_its_own_address_only() {
        let record = |class: u64| Record::decode([0x13, READ | class << CLASS_SHIFT, 0, 0]);
        let told = |class| record(class).walk.and_then(|(_, _, read)| read);
        assert_eq!([0, 1, 2].map(told), [None, None, Some(true)]);
    }

    #[test]
    fn an_event_of_structures_has_no_walk() {
        let record = Record::decode([0x20_0000_0004, READ | STAGE2, 1, 2]);
        assert_eq!(record, Record { event: 4, stream: 0x20, walk: None });
    }
}

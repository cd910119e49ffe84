//! Single entries: of page tables, and of the structures that lead to them.

use std::mem::discriminant;

use viommu_pasid::smmuv3::{ContextDescriptor, StreamEntry};
use viommu_pasid::vtd::legacy::LegacyContext;
use viommu_pasid::vtd::{ContextEntry, PasidEntry};
use viommu_pgtable::{Access, Entry, Format, Mark, PhysAddr};

use super::formats::{Visit, visit};
use crate::{Input, Target, Trace};

pub(crate) const TARGET: Target = Target {
    name: "entry_decode",
    claim: "any word decodes to what its format allows, and what is written is read back",
    longest: 96,
    run,
};

/// No format's output is wider.
const WIDEST_OUTPUT: u32 = 52;

fn run(bytes: &[u8], trace: &mut Trace) {
    let mut input = Input::new(bytes);
    let format = input.u8();
    let wanted = Access::from_bits_truncate(input.u8());
    let words: [u64; 8] = std::array::from_fn(|_| input.u64());
    visit(format, Word { raw: words[0], wanted, trace });
    structures(&words, trace);
}

/// A page-table entry.
struct Word<'t> {
    raw: u64,
    wanted: Access,
    trace: &'t mut Trace,
}

impl Visit for Word<'_> {
    fn visit<F: Format>(self, number: u8, format: F) {
        for level in 0..format.geometry().levels {
            let entry = format.decode(level, self.raw);
            self.trace.reached((number, level, discriminant(&entry)));
            is_allowed(&format, level, &entry);
            marks_once(&format, level, self.raw, self.wanted);
            leaf_survives(&format, level, PhysAddr::new(self.raw), self.wanted);
            table_survives(&format, level, PhysAddr::new(self.raw));
        }
    }
}

fn is_allowed<F: Format>(format: &F, level: u8, entry: &Entry) {
    let geometry = format.geometry();
    let (at, lg2) = match entry {
        Entry::Empty | Entry::Malformed => return,
        Entry::Table { next, .. } => (next, geometry.granule_lg2),
        Entry::Leaf { oa, .. } => (oa, geometry.entry_lg2(level)),
    };
    match entry {
        Entry::Leaf { .. } => assert!(geometry.has_leaves(level), "a leaf at level {level}"),
        _ => assert_ne!(level, 0, "a table below the last level"),
    }
    assert!(at.is_aligned(lg2), "{entry:?} at level {level}");
    assert_eq!(at.raw() >> WIDEST_OUTPUT, 0, "{entry:?}");
}

/// Flags are only ever added, mean the same entry, and are enough at once.
fn marks_once<F: Format>(format: &F, level: u8, raw: u64, wanted: Access) {
    let entry = format.decode(level, raw);
    let leaf = match entry {
        Entry::Table { .. } => false,
        Entry::Leaf { .. } => true,
        Entry::Empty | Entry::Malformed => return,
    };
    if let Mark::Set(marked) = format.mark(raw, leaf, wanted) {
        assert_eq!(marked & raw, raw, "a flag was cleared");
        assert_ne!(marked, raw);
        assert_eq!(format.decode(level, marked), entry);
        assert_eq!(format.mark(marked, leaf, wanted), Mark::Done);
    }
}

/// `at`, cut to an address that an entry of `size_lg2` can lead to.
fn cut<F: Format>(format: &F, at: PhysAddr, size_lg2: u8) -> PhysAddr {
    let below = (1 << format.geometry().output_bits) - 1;
    PhysAddr::new((at.raw() & below) >> size_lg2 << size_lg2)
}

fn leaf_survives<F: Format>(format: &F, level: u8, at: PhysAddr, access: Access) {
    let access = access.intersection(Access::RWX);
    if !format.geometry().has_leaves(level) || !format.expresses(access) {
        return;
    }
    let at = cut(format, at, format.geometry().entry_lg2(level));
    let raw = format.leaf(level, at, access);
    let Entry::Leaf { oa, access: rights } = format.decode(level, raw) else {
        panic!("the leaf {raw:#x} of level {level} is none")
    };
    assert_eq!(oa, at);
    assert!(format.granted(rights, access).permits(access), "{access:?} written, {rights:?} read");
    assert_eq!(format.mark(raw, true, Access::RW), Mark::Done);
}

fn table_survives<F: Format>(format: &F, level: u8, at: PhysAddr) {
    if level == 0 {
        return;
    }
    let at = cut(format, at, format.geometry().granule_lg2);
    let raw = format.table(at);
    let Entry::Table { next, access } = format.decode(level, raw) else {
        panic!("the table entry {raw:#x} of level {level} is none")
    };
    assert_eq!(next, at);
    assert!(access.contains(Access::RW), "{access:?}");
}

/// What is read of an entry is all there is to it: written again, it is the same entry.
fn structures(words: &[u64; 8], trace: &mut Trace) {
    let [w0, w1, w2, w3, ..] = *words;
    if let Some(entry) = PasidEntry::unpack(words) {
        trace.reached(("PASID entry", discriminant(&entry.translation)));
        assert_eq!(PasidEntry::unpack(&entry.pack()), Some(entry));
    }
    if let Some(entry) = ContextEntry::unpack([w0, w1]) {
        trace.reached(("context", entry.pasid_enable));
        assert_eq!(ContextEntry::unpack(entry.pack()), Some(entry));
    }
    if let Ok(entry) = LegacyContext::unpack([w0, w1], 46) {
        trace.reached(("legacy context", discriminant(&entry.translation)));
        assert_eq!(LegacyContext::unpack(entry.pack(), 46), Ok(entry));
    }
    if let Some(entry) = StreamEntry::unpack(&[w0, w1, w2, w3]) {
        trace.reached(("stream", discriminant(&entry.config)));
        let [w0, w1, w2, w3, ..] = entry.pack();
        assert_eq!(StreamEntry::unpack(&[w0, w1, w2, w3]), Some(entry));
    }
    if let Some(descriptor) = ContextDescriptor::unpack(&[w0, w1, w2, w3]) {
        let tables = (descriptor.tables.lower().is_some(), descriptor.tables.upper().is_some());
        trace.reached(("descriptor", tables));
        let [w0, w1, w2, w3, ..] = descriptor.pack();
        assert_eq!(ContextDescriptor::unpack(&[w0, w1, w2, w3]), Some(descriptor));
    }
}

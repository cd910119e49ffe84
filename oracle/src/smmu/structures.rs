//! Where our structures lie in the machine's memory, found by following their pointers only.

use viommu_pasid::smmuv3::{Stage2, StreamConfig, StreamEntry, StreamRoot};
use viommu_pgtable::{Access, Iova, PhysAddr, TableMemory, walk};

use super::route::path;
use crate::tables;

/// What stage 1's tables in nested modes are seen as.
const NESTED_INPUTS: std::ops::Range<u64> = 0x2000_0000..0x8000_0000;
/// Bits of a StreamID that index a leaf of our stream tables.
const LEAF_LG2: u32 = 6;
/// Addresses in structures.
const ADDRESS: u64 = 0x000f_ffff_ffff_ffff;
/// CD word 0.
const EPD0: u64 = 1 << 14;
const EPD1: u64 = 1 << 30;
/// STE word 2: S2R; CD word 0: R.
const STAGE2_RECORDS: u64 = 1 << 58;
const STAGE2_AA64: u64 = 1 << 51;
const STAGE1_RECORDS: u64 = 1 << 45;

/// Where the structures of `stream` lie, by the machine's addresses and as far as they lead: the
/// pointer to the stream table entry, the words of the entry, and those of the context descriptor.
pub(super) fn words<M: TableMemory>(memory: &M, root: &StreamRoot, stream: u32) -> Vec<PhysAddr> {
    let pointer = pointer_at(root, stream);
    let mut words = vec![pointer];
    let Some(entry) = entry_at(memory, root, stream) else { return words };
    words.extend((0..4).map(|index| offset(entry, index * 8)));
    if let Some(descriptor) = descriptor_at(memory, entry) {
        words.extend((0..3).map(|index| offset(descriptor, index * 8)));
    }
    words
}

/// True if a structure of `stream` says that faults of walks are not recorded.
pub(super) fn is_silent<M: TableMemory>(memory: &M, root: &StreamRoot, stream: u32) -> bool {
    let Some(entry) = entry_at(memory, root, stream) else { return false };
    let config = (memory.load(entry).unwrap_or(0) >> 1) & 7;
    let second = memory.load(offset(entry, 16)).unwrap_or(0);
    let descriptor = descriptor_at(memory, entry).and_then(|at| memory.load(at));
    (config & 0b110 == 0b110 && second & STAGE2_RECORDS == 0)
        || descriptor.is_some_and(|word| word & STAGE1_RECORDS == 0)
}

/// The machine's addresses that a lookup and walk for `iova` follow.
pub(super) fn followed<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
    iova: Iova,
) -> Vec<u64> {
    let mut pointers = vec![memory.load(pointer_at(root, stream)).unwrap_or(0) & !0x1f];
    let Some(entry) = entry_at(memory, root, stream) else { return pointers };
    let word = |index: u64| memory.load(offset(entry, index * 8)).unwrap_or(0);
    let steps = path(memory, root, stream, iova);
    let tables = steps.iter().filter(|step| step.level > 0 && step.raw & 3 == 3);
    let nexts: Vec<u64> = tables.map(|step| step.raw & ADDRESS & !0xfff).collect();
    match (word(0) >> 1) & 7 {
        0b101 => {
            pointers.push(word(0) & ADDRESS & !0x3f);
            pointers.extend(roots(memory, entry));
            pointers.extend(nexts);
        }
        0b110 => {
            pointers.push(word(3) & ADDRESS & !0xf);
            pointers.extend(nexts);
        }
        0b111 => {
            pointers.push(word(3) & ADDRESS & !0xf);
            pointers.extend(nested_followed(memory, entry, &nexts));
        }
        _ => {}
    }
    pointers
}

/// The same for what lies behind stage 2: each of these is an input of stage 2, or a table of it.
fn nested_followed<M: TableMemory>(memory: &M, entry: PhysAddr, nexts: &[u64]) -> Vec<u64> {
    let word0 = memory.load(entry).unwrap_or(0);
    let mut inputs = vec![word0 & ADDRESS & !0x3f];
    inputs.extend(roots(memory, entry));
    inputs.extend(nexts);
    let mut pointers = Vec::new();
    if let Some(second) = stage2_at(memory, entry) {
        for input in inputs {
            let input = Iova::new(input);
            for step in tables::path(second.format(), memory, second.root(), input) {
                // a table's address, or a page's
                pointers.extend((step.raw & 1 != 0).then_some(step.raw & ADDRESS & !0xfff));
            }
        }
    }
    pointers.extend(nexts.iter().filter(|next| !NESTED_INPUTS.contains(next)));
    pointers
}

/// The roots of stage 1 that a context descriptor enables.
fn roots<M: TableMemory>(memory: &M, entry: PhysAddr) -> Vec<u64> {
    let Some(descriptor) = descriptor_at(memory, entry) else { return Vec::new() };
    let word = |index: u64| memory.load(offset(descriptor, index * 8)).unwrap_or(0);
    let enabled =
        [(1, EPD0), (2, EPD1)].into_iter().filter(|(_, disabled)| word(0) & disabled == 0);
    enabled.map(|(index, _)| word(index) & ADDRESS & !0xf).collect()
}

/// True if the stream table entry asks for a stage 2 of 32 bits (S2AA64 clear; IHI 0070, 5.2.2), or
/// the context descriptor for an output of more than 48 bits (IPS 6, 7; 5.4): QEMU does not report
/// an event but ends itself.
pub(super) fn ends_qemu<M: TableMemory>(memory: &M, root: &StreamRoot, stream: u32) -> bool {
    let Some(entry) = entry_at(memory, root, stream) else { return false };
    let word = |index: u64| memory.load(offset(entry, index * 8)).unwrap_or(0);
    let has_stage2 = matches!((word(0) >> 1) & 7, 0b110 | 0b111);
    let descriptor = descriptor_at(memory, entry).and_then(|at| memory.load(at)).unwrap_or(0);
    let narrow = has_stage2 && word(2) & STAGE2_AA64 == 0;
    word(0) & 1 != 0 && (narrow || descriptor >> 32 & 7 >= 6)
}

/// Where stage 2 is asked for the context descriptor, if it is.
pub(super) fn nested_descriptor<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
) -> Option<u64> {
    let word0 = memory.load(entry_at(memory, root, stream)?)?;
    (word0 >> 1 & 7 == 0b111).then_some(word0 & ADDRESS & !0x3f)
}

/// The stage 2 that the stream table entry names.
pub(super) fn stage2_of<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
) -> Option<Stage2> {
    stage2_at(memory, entry_at(memory, root, stream)?)
}

fn stage2_at<M: TableMemory>(memory: &M, entry: PhysAddr) -> Option<Stage2> {
    let word = |index: u64| memory.load(offset(entry, index * 8));
    match StreamEntry::unpack(&[word(0)?, word(1)?, word(2)?, word(3)?])?.config {
        StreamConfig::Stage2(second) | StreamConfig::Nested { second, .. } => Some(second),
        _ => None,
    }
}

/// Where the pointer to the leaf of `stream` is.
pub(super) fn pointer_at(root: &StreamRoot, stream: u32) -> PhysAddr {
    PhysAddr::new(root.base().raw() + u64::from(stream >> LEAF_LG2) * 8)
}

/// The number of `stream` in its leaf.
pub(super) fn leaf_index(stream: u32) -> u64 {
    u64::from(stream & ((1 << LEAF_LG2) - 1))
}

/// Where the entry of `stream` is.
pub(super) fn entry_at<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
) -> Option<PhysAddr> {
    let leaf = memory.load(pointer_at(root, stream))? & ADDRESS & !0xfff;
    Some(offset(PhysAddr::new(leaf), leaf_index(stream) * 64))
}

fn descriptor_at<M: TableMemory>(memory: &M, entry: PhysAddr) -> Option<PhysAddr> {
    let word = |index: u64| memory.load(offset(entry, index * 8));
    let word0 = word(0)?;
    let at = PhysAddr::new(word0 & ADDRESS & !0x3f);
    match (word0 >> 1) & 7 {
        0b101 => Some(at),
        0b111 => {
            let second = stage2_at(memory, entry)?;
            let input = Iova::new(at.raw());
            let found = walk(second.format(), memory, second.root(), input, Access::READ);
            found.ok().map(|translation| translation.oa)
        }
        _ => None,
    }
}

pub(super) const fn offset(at: PhysAddr, bytes: u64) -> PhysAddr {
    PhysAddr::new(at.raw().wrapping_add(bytes))
}

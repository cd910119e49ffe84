//! What our lookups and walks say about a request.

use viommu_pasid::smmuv3::{self, Stage2, StreamConfig, StreamEntry, StreamRoot};
use viommu_pasid::{FirstTable, Memories, Route, SecondTable};
use viommu_pgtable::{
    Access, Behind, Fault, Format, Iova, PhysAddr, Stage, TableMemory, walk, walk_nested,
};

use super::event::{Class, Reason};
use super::mode::SYSTEM_BITS;
use crate::subject::{End, Probe};
use crate::tables::{self, Step};

/// Bits of a StreamID that index a leaf of our stream tables.
const LEAF_LG2: u32 = 6;
/// Addresses in structures.
const ADDRESS: u64 = 0x000f_ffff_ffff_ffff;
/// STE word 2: S2R; CD word 0: R.
const STAGE2_RECORDS: u64 = 1 << 58;
const STAGE2_AA64: u64 = 1 << 51;
const STAGE1_RECORDS: u64 = 1 << 45;
/// F_TRANSLATION.
const NO_TRANSLATION: u8 = 0x10;
/// C_BAD_STE.
const BAD_ENTRY: u8 = 0x04;

/// Where our code leads a request of `stream`, in `memory`.
pub(super) fn end<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
    probe: &Probe,
) -> End<Reason> {
    let access = if probe.write { Access::WRITE } else { Access::READ };
    let ended = |fault: &Fault| Reason::from_walk(fault, Class::Input);
    match route(memory, root, stream)? {
        Route::PassThrough => Ok(PhysAddr::new(probe.iova.raw())),
        Route::Second(SecondTable::Arm(second)) => {
            walk(second.format(), memory, second.root(), probe.iova, access)
                .map(|translation| translation.oa)
                .map_err(|fault| ended(&fault))
        }
        Route::First { table: FirstTable::Arm(descriptor), .. } => {
            let none = Reason::walk(NO_TRANSLATION, Stage::First, Class::Input, 0);
            let (table, iova) = descriptor.table_for(probe.iova).ok_or(none)?;
            walk(table.format(), memory, table.root(), iova, access)
                .map(|translation| translation.oa)
                .map_err(|fault| ended(&fault))
        }
        Route::Nested { first: FirstTable::Arm(descriptor), second: SecondTable::Arm(second) } => {
            let none = Reason::walk(NO_TRANSLATION, Stage::First, Class::Input, 0);
            let (table, iova) = descriptor.table_for(probe.iova).ok_or(none)?;
            let behind = Behind::new(*second.format(), memory, second.root(), memory);
            walk_nested(table.format(), table.root(), &behind, iova, access)
                .map(|translation| translation.oa)
                .map_err(|fault| ended(&fault))
        }
        // an SMMU leads to Arm's tables only
        _ => Err(Reason::plain(None)),
    }
}

/// The entries of page tables that lead a request of `stream` to `iova`, as far as they lead, by the
/// machine's addresses.
pub(super) fn path<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
    iova: Iova,
) -> Vec<Step> {
    match route(memory, root, stream) {
        Ok(Route::Second(SecondTable::Arm(second))) => {
            tables::path(second.format(), memory, second.root(), iova)
        }
        Ok(Route::First { table: FirstTable::Arm(descriptor), .. }) => {
            let Some((table, iova)) = descriptor.table_for(iova) else { return Vec::new() };
            tables::path(table.format(), memory, table.root(), iova)
        }
        Ok(Route::Nested {
            first: FirstTable::Arm(descriptor),
            second: SecondTable::Arm(second),
        }) => {
            let Some((table, iova)) = descriptor.table_for(iova) else { return Vec::new() };
            nested_path(memory, &second, (table.format(), table.root()), iova)
        }
        _ => Vec::new(),
    }
}

/// Stage 1's entries, and those of stage 2 that lead to stage 1's last and to the page.
fn nested_path<M: TableMemory, F: Format>(
    memory: &M,
    second: &Stage2,
    (first, root): (&F, PhysAddr),
    iova: Iova,
) -> Vec<Step> {
    let behind = Behind::new(*second.format(), memory, second.root(), memory);
    let mut steps = tables::path(first, &behind, root, iova);
    let mut inputs: Vec<_> = steps.last().map(|step| step.at).into_iter().collect();
    if let Ok(found) = walk(first, &behind, root, iova, Access::empty()) {
        inputs.push(found.oa);
    }
    for step in &mut steps {
        if let Ok(found) = behind.translate(step.at, Access::READ) {
            step.at = found.oa;
        }
    }
    for input in inputs {
        let iova = Iova::new(input.raw());
        steps.extend(tables::path(second.format(), memory, second.root(), iova));
    }
    steps
}

/// Our lookup, of a system whose stage 2 takes no more than [`SYSTEM_BITS`].
pub(super) fn route<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
) -> std::result::Result<Route, Reason> {
    // everything is in one memory: stage 1's structures are found as a guest's would be
    let spaces = Memories::new(memory, memory, PhysAddr::new(u64::MAX));
    let route = smmuv3::lookup(&spaces, root, stream, None)
        .map_err(|fault| Reason::from_lookup(&fault.kind))?;
    let second = match &route {
        Route::Second(SecondTable::Arm(second))
        | Route::Nested { second: SecondTable::Arm(second), .. } => Some(second),
        _ => None,
    };
    if second.is_some_and(|second| second.format().geometry().input_bits > SYSTEM_BITS) {
        return Err(Reason::plain(Some(BAD_ENTRY)));
    }
    Ok(route)
}

/// Where the structures of `stream` lie, by the machine's addresses and as far as they lead: the pointer to
/// the stream table entry, the words of the entry, and those of the context descriptor.
pub(super) fn structures<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
) -> Vec<PhysAddr> {
    let pointer = PhysAddr::new(root.base().raw() + u64::from(stream >> LEAF_LG2) * 8);
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
    let second = memory.load(offset(entry, 16)).unwrap_or(0);
    let descriptor = descriptor_at(memory, entry).and_then(|at| memory.load(at));
    second & STAGE2_RECORDS == 0 || descriptor.is_some_and(|word| word & STAGE1_RECORDS == 0)
}

/// True if the stream table entry asks for a stage 2 of 32 bits (S2AA64 clear): an illegal entry (IHI
/// 0070, 5.2.2), on which QEMU does not report an event but ends itself.
pub(super) fn ends_qemu<M: TableMemory>(memory: &M, root: &StreamRoot, stream: u32) -> bool {
    let Some(entry) = entry_at(memory, root, stream) else { return false };
    let word = |index: u64| memory.load(offset(entry, index * 8)).unwrap_or(0);
    let has_stage2 = matches!((word(0) >> 1) & 7, 0b110 | 0b111);
    word(0) & 1 != 0 && has_stage2 && word(2) & STAGE2_AA64 == 0
}

fn entry_at<M: TableMemory>(memory: &M, root: &StreamRoot, stream: u32) -> Option<PhysAddr> {
    let pointer = PhysAddr::new(root.base().raw() + u64::from(stream >> LEAF_LG2) * 8);
    let leaf = memory.load(pointer)? & ADDRESS & !0xfff;
    Some(PhysAddr::new(leaf | u64::from(stream & ((1 << LEAF_LG2) - 1)) * 64))
}

fn descriptor_at<M: TableMemory>(memory: &M, entry: PhysAddr) -> Option<PhysAddr> {
    let word = |index: u64| memory.load(offset(entry, index * 8));
    let word0 = word(0)?;
    let at = PhysAddr::new(word0 & ADDRESS & !0x3f);
    match (word0 >> 1) & 7 {
        0b101 => Some(at),
        0b111 => {
            let entry = StreamEntry::unpack(&[word0, word(1)?, word(2)?, word(3)?])?;
            let StreamConfig::Nested { second, .. } = entry.config else { return None };
            let input = Iova::new(at.raw());
            let found = walk(second.format(), memory, second.root(), input, Access::READ);
            found.ok().map(|translation| translation.oa)
        }
        _ => None,
    }
}

const fn offset(at: PhysAddr, bytes: u64) -> PhysAddr {
    PhysAddr::new(at.raw().wrapping_add(bytes))
}

//! What our lookups and walks say about a request.

use viommu_pasid::smmuv3::{self, LookupFaultKind, Stage2, StreamConfig, StreamEntry, StreamRoot};
use viommu_pasid::{FirstTable, Memories, Route, SecondTable};
use viommu_pgtable::{
    Access, Behind, Fault, FaultKind, Format, Iova, PhysAddr, Stage, TableMemory, walk, walk_nested,
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
/// What stage 1's tables in nested modes are seen as.
const NESTED_INPUTS: std::ops::Range<u64> = 0x2000_0000..0x8000_0000;
/// STE word 0: S1CDMax.
const S1CDMAX_SHIFT: u32 = 59;
/// F_CD_FETCH.
const CONTEXT_FETCH: u8 = 0x09;
/// F_ADDR_SIZE.
const ADDRESS_SIZE: u8 = 0x11;
/// F_TRANSLATION.
const NO_TRANSLATION: u8 = 0x10;
/// C_BAD_STE.
const BAD_ENTRY: u8 = 0x04;

/// Where our code leads a request of `stream`, in `memory`. Requests of PCI functions without a PASID are
/// not privileged; `privileged` says what if they were.
pub(super) fn end<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    (stream, probe): (u32, &Probe),
    privileged: bool,
) -> End<Reason> {
    let access = if probe.write { Access::WRITE } else { Access::READ };
    let first_access = if privileged { access | Access::PRIVILEGED } else { access };
    let ended = |fault: &Fault| Reason::from_walk(fault, Class::Input);
    match route(memory, root, stream)? {
        Route::PassThrough => Ok(PhysAddr::new(probe.iova.raw())),
        // stage 1, although bypassed, limits the address (IHI 0070, 3.4)
        Route::Second(_) if probe.iova.raw() >> SYSTEM_BITS != 0 => {
            Err(Reason::walk(ADDRESS_SIZE, Stage::First, Class::Input, 0))
        }
        Route::Second(SecondTable::Arm(second)) => {
            walk(second.format(), memory, second.root(), probe.iova, access)
                .map(|translation| translation.oa)
                .map_err(|fault| ended(&fault))
        }
        Route::First { table: FirstTable::Arm(descriptor), .. } => {
            let none = Reason::walk(NO_TRANSLATION, Stage::First, Class::Input, 0);
            let (table, iova) = descriptor.table_for(probe.iova).ok_or(none)?;
            walk(table.format(), memory, table.root(), iova, first_access)
                .map(|translation| translation.oa)
                .map_err(|fault| ended(&fault))
        }
        Route::Nested { first: FirstTable::Arm(descriptor), second: SecondTable::Arm(second) } => {
            let none = Reason::walk(NO_TRANSLATION, Stage::First, Class::Input, 0);
            let (table, iova) = descriptor.table_for(probe.iova).ok_or(none)?;
            let behind = Behind::new(*second.format(), memory, second.root(), memory);
            walk_nested(table.format(), table.root(), &behind, iova, first_access)
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

/// The entries of stage 1 that lead to `iova`, as far as they lead, by the addresses that stage 1 knows.
pub(super) fn first_path<M: TableMemory>(memory: &M, route: &Route, iova: Iova) -> Vec<Step> {
    let (Route::First { table: FirstTable::Arm(descriptor), .. }
    | Route::Nested { first: FirstTable::Arm(descriptor), .. }) = route
    else {
        return Vec::new();
    };
    let Some((table, iova)) = descriptor.table_for(iova) else { return Vec::new() };
    match route {
        Route::Nested { second: SecondTable::Arm(second), .. } => {
            let behind = Behind::new(*second.format(), memory, second.root(), memory);
            tables::path(table.format(), &behind, table.root(), iova)
        }
        _ => tables::path(table.format(), memory, table.root(), iova),
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
    let found = smmuv3::lookup(&spaces, root, stream, None);
    let unknown = [LookupFaultKind::UnknownStream, LookupFaultKind::EntryFetch];
    let has_entry = !found.as_ref().is_err_and(|fault| unknown.contains(&fault.kind));
    if has_entry && wants_substreams(memory, root, stream) {
        return Err(Reason::plain(Some(BAD_ENTRY)));
    }
    let route = found.map_err(|fault| match fault.kind {
        // stage 2 led to where the descriptor should be, but there is no memory
        LookupFaultKind::ContextThrough(through)
            if through.kind == FaultKind::Unreadable
                && stage2_of(memory, root, stream).is_some_and(|second| {
                    let input = Iova::new(through.input);
                    walk(second.format(), memory, second.root(), input, Access::READ).is_ok()
                }) =>
        {
            Reason::plain(Some(CONTEXT_FETCH))
        }
        kind => Reason::from_lookup(&kind),
    })?;
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

/// True if the stream table entry wants substreams, which the emulated SMMU does not have (IDR1.SSIDSIZE
/// is 0).
fn wants_substreams<M: TableMemory>(memory: &M, root: &StreamRoot, stream: u32) -> bool {
    let entry = entry_at(memory, root, stream).and_then(|at| memory.load(at));
    entry.is_some_and(|word| word & 0b1011 == 0b1011 && word >> S1CDMAX_SHIFT != 0)
}

/// Where the structures of `stream` lie, by the machine's addresses and as far as they lead: the pointer to
/// the stream table entry, the words of the entry, and those of the context descriptor.
pub(super) fn structures<M: TableMemory>(
    memory: &M,
    root: &StreamRoot,
    stream: u32,
) -> Vec<PhysAddr> {
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
    let config = (word(0) >> 1) & 7;
    if config == 0b101 {
        pointers.push(word(0) & ADDRESS & !0x3f);
        let descriptor = descriptor_at(memory, entry);
        let word = |index: u64| descriptor.and_then(|at| memory.load(offset(at, index * 8)));
        let disabled = word(0).unwrap_or(0);
        for (index, bit) in [(1, 14), (2, 30)] {
            pointers.extend(word(index).filter(|_| disabled & 1 << bit == 0));
        }
    }
    if matches!(config, 0b110 | 0b111) {
        pointers.push(word(3) & ADDRESS & !0xf);
    }
    if let Some(second) = stage2_at(memory, entry).filter(|_| config == 0b111) {
        let through = |input: u64| {
            let input = Iova::new(input & ADDRESS);
            walk(second.format(), memory, second.root(), input, Access::READ).ok()
        };
        let descriptor = descriptor_at(memory, entry);
        pointers.extend(descriptor.map(PhysAddr::raw));
        let word = |index: u64| descriptor.and_then(|at| memory.load(offset(at, index * 8)));
        let roots = [word(1), word(2)].into_iter().flatten();
        pointers.extend(roots.filter_map(through).map(|found| found.oa.raw()));
    }
    let steps = path(memory, root, stream, iova);
    pointers
        .extend(steps.iter().map(|step| step.at.raw()).filter(|at| !NESTED_INPUTS.contains(at)));
    let tables = steps.iter().filter(|step| step.level > 0 && step.raw & 3 == 3);
    let nested = |address: &u64| config != 0b111 || !NESTED_INPUTS.contains(address);
    pointers.extend(tables.map(|step| step.raw & ADDRESS & !0xfff).filter(nested));
    pointers
}

/// True if the stream table entry asks for a stage 2 of 32 bits (S2AA64 clear; IHI 0070, 5.2.2), or the
/// context descriptor for an output of more than 48 bits (IPS 6, 7; 5.4): QEMU does not report an event but ends
/// itself.
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

fn entry_at<M: TableMemory>(memory: &M, root: &StreamRoot, stream: u32) -> Option<PhysAddr> {
    let leaf = memory.load(pointer_at(root, stream))? & ADDRESS & !0xfff;
    Some(PhysAddr::new(leaf | leaf_index(stream) * 64))
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

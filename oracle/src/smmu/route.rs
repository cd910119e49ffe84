//! What our lookups and walks say about a request.

use viommu_pasid::smmuv3::{self, LookupFaultKind, Stage2, StreamRoot};
use viommu_pasid::{FirstTable, Memories, Route, SecondTable};
use viommu_pgtable::{
    Access, Behind, Fault, FaultKind, Format, Iova, PhysAddr, Stage, TableMemory, walk, walk_nested,
};

use super::event::number::{ADDRESS_SIZE, BAD_ENTRY, CONTEXT_FETCH, TRANSLATION};
use super::event::{Class, Reason};
use super::mode::SYSTEM_BITS;
use super::structures::{entry_at, stage2_of};
use crate::subject::{End, Probe};
use crate::tables::{self, Step};

/// STE word 0: S1CDMax.
const S1CDMAX_SHIFT: u32 = 59;

/// Where our code leads a request of `stream`, in `memory`. Requests of PCI functions without a
/// PASID are not privileged; `privileged` says what if they were.
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
            let none = Reason::walk(TRANSLATION, Stage::First, Class::Input, 0);
            let (table, iova) = descriptor.table_for(probe.iova).ok_or(none)?;
            walk(table.format(), memory, table.root(), iova, first_access)
                .map(|translation| translation.oa)
                .map_err(|fault| ended(&fault))
        }
        Route::Nested { first: FirstTable::Arm(descriptor), second: SecondTable::Arm(second) } => {
            let none = Reason::walk(TRANSLATION, Stage::First, Class::Input, 0);
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

/// The entries of page tables that lead a request of `stream` to `iova`, as far as they lead, by
/// the machine's addresses.
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

/// The entries of stage 1 that lead to `iova`, as far as they lead, by the addresses that stage 1
/// knows.
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

/// True if the stream table entry wants substreams, which the emulated SMMU does not have
/// (IDR1.SSIDSIZE is 0).
fn wants_substreams<M: TableMemory>(memory: &M, root: &StreamRoot, stream: u32) -> bool {
    let entry = entry_at(memory, root, stream).and_then(|at| memory.load(at));
    entry.is_some_and(|word| word & 0b1011 == 0b1011 && word >> S1CDMAX_SHIFT != 0)
}

//! What QEMU's SMMUv3 makes of a request, where that is known not to be what the manual says.

use viommu_pasid::smmuv3::{ContextDescriptor, Stage2, StreamRoot};
use viommu_pasid::{FirstTable, Route, SecondTable};
use viommu_pgtable::{Access, Format, Iova, PhysAddr, Stage, walk};

use super::event::number::{ACCESS, ADDRESS_SIZE, PERMISSION, TRANSLATION, WALK_ABORT};
use super::event::{Class, Reason, Walk};
use super::exceptions::{
    BEYOND_OUTPUT, BLOCKS, BOTH_ROOTS, CONCATENATED, NARROW_ROOT, PRIVILEGED, RIGHTS_FIRST,
    TABLE_RIGHTS, TABLE_SIZE, TABLE_STAGE,
};
use super::mode::SYSTEM_BITS;
use super::route;
use super::seen::{concatenated, see};
use super::structures;
use crate::memory::GuestRam;
use crate::overlay::Overlay;
use crate::subject::{End, Exception, Probe};
use crate::tables::Step;

/// What is known to be seen otherwise by QEMU.
pub(super) type Found = Option<(&'static Exception, End<Reason>)>;

/// What QEMU makes of a request for which our code says `end`, if that is known to be something
/// else.
pub(super) fn predict(
    ram: &GuestRam,
    root: &StreamRoot,
    (stream, probe): (u32, &Probe),
    end: End<Reason>,
) -> Found {
    let request = (stream, probe);
    let (seen, exception) = match see(ram, root, (stream, probe.iova)) {
        Ok(seen) => seen,
        Err((exception, Some(TRANSLATION))) => {
            return differs(exception, end, Err(lost(ram, root, request)));
        }
        Err((exception, event)) => {
            return differs(exception, end, Err(Reason::plain(event)));
        }
    };
    let whole = route::end(&seen, root, request, true);
    let seen = concatenated(seen, root, stream);
    let emulated = route::end(&seen, root, request, true);
    let exception = exception.or((whole != emulated).then_some(&CONCATENATED));
    let walked = walked(&seen, root, request, emulated);
    let (mine, predicted) =
        walked.map_or((None, emulated), |(mine, predicted)| (Some(mine), predicted));
    differs(exception.or(mine).unwrap_or(&PRIVILEGED), end, predicted)
}

/// Stage 2's fault of a request whose first table is not there: of the request itself, or of its
/// context descriptor.
fn lost(ram: &GuestRam, root: &StreamRoot, (stream, probe): (u32, &Probe)) -> Reason {
    match structures::nested_descriptor(ram, root, stream) {
        Some(at) => Reason::walk(TRANSLATION, Stage::Second, Class::Descriptor, at),
        None => Reason::walk(TRANSLATION, Stage::Second, Class::Input, probe.iova.raw()),
    }
}

/// True if QEMU ends itself when it looks up `stream`, in the structures as it sees them.
pub(super) fn ends_qemu(ram: &GuestRam, root: &StreamRoot, (stream, probe): (u32, &Probe)) -> bool {
    let emulated = match see(ram, root, (stream, probe.iova)) {
        Ok((seen, _)) => structures::ends_qemu(&concatenated(seen, root, stream), root, stream),
        Err(_) => false,
    };
    emulated || structures::ends_qemu(ram, root, stream)
}

fn differs(exception: &'static Exception, end: End<Reason>, predicted: End<Reason>) -> Found {
    (end != predicted).then_some((exception, predicted))
}

/// What QEMU's walk does otherwise than ours, which says `end` of a privileged request.
fn walked(
    memory: &Overlay<'_>,
    root: &StreamRoot,
    (stream, probe): (u32, &Probe),
    end: End<Reason>,
) -> Found {
    let second = structures::stage2_of(memory, root, stream);
    let Ok(route) = route::route(memory, root, stream) else {
        return last_walked(memory, second.as_ref(), &[], probe, end);
    };
    if let Route::Nested { first: FirstTable::Arm(descriptor), second: SecondTable::Arm(second) } =
        &route
    {
        for table in descriptor.tables.iter() {
            let input = Iova::new(table.root().raw());
            let found = walk(second.format(), memory, second.root(), input, Access::READ);
            if let Err(fault) = found {
                let end = Err(Reason::from_walk(&fault, Class::TableEntry));
                let found = last_walked(memory, Some(second), &[], probe, end);
                return Some((&BOTH_ROOTS, found.map_or(end, |(_, end)| end)));
            }
        }
    }
    if let (Route::Nested { first: FirstTable::Arm(descriptor), .. }, Some(second)) =
        (&route, &second)
        && let Some(end) = narrow_root(memory, descriptor, second, probe)
    {
        return Some((&NARROW_ROOT, end));
    }
    if matches!(route, Route::Second(_)) && probe.iova.raw() >> SYSTEM_BITS != 0 {
        return Some((&BEYOND_OUTPUT, Err(Reason::plain(None))));
    }
    let steps = route::first_path(memory, &route, probe.iova);
    let nested = matches!(route, Route::Nested { .. });
    first_walked(&steps, probe, end, nested)
        .or_else(|| last_walked(memory, second.as_ref(), &steps, probe, end))
}

/// What a walk finds that starts where the root's address is cut off, if it is: nothing, as that is
/// memory that is not used.
fn narrow_root(
    memory: &Overlay<'_>,
    descriptor: &ContextDescriptor,
    second: &Stage2,
    probe: &Probe,
) -> Option<End<Reason>> {
    let (table, _) = descriptor.table_for(probe.iova)?;
    let input = Iova::new(table.root().raw());
    let root = walk(second.format(), memory, second.root(), input, Access::READ).ok()?.oa;
    let beyond = root.raw() >> table.format().geometry().output_bits != 0;
    let end = Reason::walk(TRANSLATION, Stage::First, Class::Input, 0);
    beyond.then_some(Err(end))
}

/// What QEMU's walk of stage 1 does otherwise at a table.
fn first_walked(steps: &[Step], probe: &Probe, end: End<Reason>, nested: bool) -> Found {
    let limits = |step: &&Step| is_table(step) && step.raw & 1 << 62 != 0;
    if probe.write && steps.iter().find(limits).is_some() {
        return Some((&TABLE_RIGHTS, Err(Reason::walk(PERMISSION, Stage::First, Class::Input, 0))));
    }
    steps.last().filter(|step| is_table(step))?;
    let wide = nested && end.err().is_some_and(|reason| is_first(reason, ADDRESS_SIZE));
    let unreachable = end.err().is_some_and(is_table_of_second);
    if wide || unreachable {
        let walk = Walk { stage2: false, class: Some(Class::TableEntry), ipa: None };
        let event = end.err().and_then(|reason| reason.event);
        return Some((&TABLE_STAGE, Err(Reason { event, walk: Some(walk) })));
    }
    None
}

/// True for an event of stage 1.
fn is_first(reason: Reason, event: u8) -> bool {
    reason.event == Some(event) && reason.walk.is_some_and(|walk| !walk.stage2)
}

const fn is_table(step: &Step) -> bool {
    step.level > 0 && step.raw & 3 == 3
}

/// True for stage 2's refusal of a table of stage 1.
fn is_table_of_second(reason: Reason) -> bool {
    let is_table = |walk: Walk| walk.stage2 && walk.class == Some(Class::TableEntry);
    reason.walk.is_some_and(is_table)
}

/// What QEMU does otherwise at the last entry of the stage that ends the walk.
fn last_walked(
    memory: &Overlay<'_>,
    second: Option<&Stage2>,
    steps: &[Step],
    probe: &Probe,
    end: End<Reason>,
) -> Found {
    let reason = end.err()?;
    let walk = reason.walk?;
    let (last, stage) = if walk.stage2 {
        (last_second(memory, second?, walk.ipa?)?, Stage::Second)
    } else {
        (*steps.last()?, Stage::First)
    };
    let read_only = match stage {
        Stage::First => probe.write && last.raw & 1 << 7 != 0,
        Stage::Second => last.raw & (if is_write(probe, walk) { 1 << 7 } else { 1 << 6 }) == 0,
    };
    let with = |event| Err(Reason { event: Some(event), ..reason });
    let block = reason.event == Some(TRANSLATION) && last.level > 0 && last.raw & 3 == 1;
    let beyond = reason.event == Some(ADDRESS_SIZE);
    match (last.raw & 1 << 10 == 0, read_only) {
        _ if beyond && is_table(&last) => {
            let walk = Walk { class: None, ipa: None, ..walk };
            Some((&TABLE_SIZE, Err(Reason { event: Some(WALK_ABORT), walk: Some(walk) })))
        }
        (true, _) if block => Some((&BLOCKS, with(ACCESS))),
        (_, true) if block => Some((&BLOCKS, with(PERMISSION))),
        _ if block => {
            let within = (1 << last.size_lg2) - 1;
            let oa = (last.raw & 0xffff_ffff_f000 & !within) | (probe.iova.raw() & within);
            // nested, it is stage 2's turn; whatever comes of that is not looked at
            let through = stage == Stage::First && second.is_some();
            Some((&BLOCKS, Ok(PhysAddr::new(if through { u64::MAX } else { oa }))))
        }
        (true, _) if beyond => Some((&RIGHTS_FIRST, with(ACCESS))),
        (_, true) if beyond => Some((&RIGHTS_FIRST, with(PERMISSION))),
        _ => None,
    }
}

/// Stage 1's entries and descriptors are read.
fn is_write(probe: &Probe, walk: Walk) -> bool {
    probe.write && walk.class == Some(Class::Input)
}

/// The entry of stage 2 at which the way of `ipa` ends.
fn last_second(memory: &Overlay<'_>, second: &Stage2, ipa: u64) -> Option<Step> {
    let steps = crate::tables::path(second.format(), memory, second.root(), Iova::new(ipa));
    steps.last().copied()
}

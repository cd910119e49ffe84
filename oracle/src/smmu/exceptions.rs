//! Where QEMU's SMMUv3 is known to differ, and how exactly.

use viommu_pasid::smmuv3::{Stage2, StreamRoot};
use viommu_pasid::{FirstTable, Route, SecondTable};
use viommu_pgtable::{Access, Format, Iova, PhysAddr, Stage, TableMemory, walk};

use super::event::{Class, Reason, Walk};
use super::mode::SYSTEM_BITS;
use super::route::{self, offset};
use crate::memory::GuestRam;
use crate::overlay::Overlay;
use crate::subject::{End, Exception, Probe};
use crate::tables::Step;

static SPAN_EVENT: Exception = Exception {
    name: "StreamID beyond Span",
    manual: "IHI 0070, 5.1.1, 7.3.3: an index beyond the leaf is C_BAD_STREAMID",
    emulator: "reports C_BAD_STE",
};

static SPAN_SIZE: Exception = Exception {
    name: "Span twice as large",
    manual: "IHI 0070, 5.1.1: a leaf has 2^(Span - 1) entries, at most 2^Split",
    emulator: "takes it for 2^Span entries, of any number",
};

static LEAF_POINTER: Exception = Exception {
    name: "reserved bits of an L1STD",
    manual: "IHI 0070, 5.1.1: L2Ptr is bits 51:6; those above are RES0",
    emulator: "takes bits 63:52 for the leaf's address, too",
};

static STAGE2_HTTU: Exception = Exception {
    name: "S2HA, S2HD not looked at",
    manual: "IHI 0070, 5.2: without IDR0.HTTU an entry may not ask for updates of flags (C_BAD_STE)",
    emulator: "ignores both bits",
};

static CONTEXT_POINTER: Exception = Exception {
    name: "wide S1ContextPtr",
    manual: "IHI 0070, 5.2: bits 51:48 make the entry illegal here (OAS), those above are RES0",
    emulator: "takes bits 58:52 for the address, too, and reports F_CD_FETCH",
};

static UNUSED_STAGE1: Exception = Exception {
    name: "stage 1 fields without stage 1",
    manual: "IHI 0070, 5.2: S1CDMax and S1STALLD are ignored where Config has no stage 1",
    emulator: "finds the entry illegal (C_BAD_STE) if one of them is set",
};

static BOTH_ROOTS: Exception = Exception {
    name: "both TTBs translated at once",
    manual: "IHI 0070, 3.4: a request uses the table that its address chooses",
    emulator: "sends both roots through stage 2 when it reads the context descriptor",
};

static PRIVILEGED: Exception = Exception {
    name: "requests taken for privileged",
    manual: "Arm ARM D8.4; IHI 0070, 5.2 PRIVCFG: PCI requests are unprivileged: AP[1], APTable[0] deny",
    emulator: "does not look at these bits",
};

static TABLE_RIGHTS: Exception = Exception {
    name: "APTable[1] ends the walk",
    manual: "Arm ARM D8.4, D8.15: a table's limit on writing counts when the walk has reached a page",
    emulator: "reports F_PERMISSION at the table, whatever comes below",
};

static TABLE_SIZE: Exception = Exception {
    name: "no address size fault at tables",
    manual: "Arm ARM D8.15, IHI 0070, 7.3.13: a table beyond the output's width is F_ADDR_SIZE",
    emulator: "reads there, and reports F_WALK_EABT",
};

static RIGHTS_FIRST: Exception = Exception {
    name: "permission before address size",
    manual: "Arm ARM D8.15: of two faults of one entry the address size fault has priority",
    emulator: "reports the permission or access flag fault",
};

static BLOCKS: Exception = Exception {
    name: "blocks where there are none",
    manual: "Arm ARM D8.3.1: 0b01 is reserved at levels without blocks: a translation fault",
    emulator: "takes it for a block of any size",
};

static CONCATENATED: Exception = Exception {
    name: "concatenated tables",
    manual: "Arm ARM D8.2.2; IHI 0070, 5.2 S2TTB: the upper bits of the index choose one of up to 16",
    emulator: "always uses the first",
};

static BEYOND_OUTPUT: Exception = Exception {
    name: "no event for wide addresses",
    manual: "IHI 0070, 3.4, 7.3.13: an address wider than OAS is F_ADDR_SIZE of stage 1, bypassed or not",
    emulator: "ends the request without an event where stage 1 is bypassed",
};

static TABLE_STAGE: Exception = Exception {
    name: "stage 2 fault of a stage 1 table",
    manual: "IHI 0070, 7.3.12: S2 is set and IPA is the table entry's",
    emulator: "reports stage 1 with class TT for tables below the root",
};

/// Events.
const BAD_ENTRY: u8 = 0x04;
const CONTEXT_FETCH: u8 = 0x09;
const ENTRY_FETCH: u8 = 0x03;
const WALK_ABORT: u8 = 0x0b;
const TRANSLATION: u8 = 0x10;
const ADDRESS_SIZE: u8 = 0x11;
const ACCESS: u8 = 0x12;
const PERMISSION: u8 = 0x13;

/// L1STD: Span, and what QEMU takes for the leaf's address.
const SPAN: u64 = 0x1f;
/// A Span of our leaves.
const WHOLE_SPAN: u64 = 7;
/// STE word 0: S1CDMax; word 1: S1STALLD; word 2: S2HD, S2HA.
const S1CDMAX: u64 = 0x1f << 59;
const WIDE_CONTEXT: u64 = 0x7ff << 48;
const S1STALLD: u64 = 1 << 27;
const S2_HTTU: u64 = 0b11 << 55;

/// What is known to be seen otherwise by QEMU.
pub(super) type Found = Option<(&'static Exception, End<Reason>)>;

/// What QEMU makes of a request for which our code says `end`, if that is known to be something else.
pub(super) fn predict(
    ram: &GuestRam,
    root: &StreamRoot,
    (stream, probe): (u32, &Probe),
    end: End<Reason>,
) -> Found {
    let (seen, exception) = match see(ram, root, stream) {
        Ok(seen) => seen,
        Err((exception, event)) => {
            return differs(exception, end, Err(Reason::plain(Some(event))));
        }
    };
    let request = (stream, probe);
    let whole = route::end(&seen, root, request, true);
    let seen = concatenated(seen, root, stream);
    let emulated = route::end(&seen, root, request, true);
    let exception = exception.or((whole != emulated).then_some(&CONCATENATED));
    let walked = walked(&seen, root, request, emulated);
    let (mine, predicted) =
        walked.map_or((None, emulated), |(mine, predicted)| (Some(mine), predicted));
    differs(exception.or(mine).unwrap_or(&PRIVILEGED), end, predicted)
}

/// True if QEMU ends itself when it looks up `stream`, in the structures as it sees them.
pub(super) fn ends_qemu(ram: &GuestRam, root: &StreamRoot, stream: u32) -> bool {
    let Ok((seen, _)) = see(ram, root, stream) else { return false };
    route::ends_qemu(&concatenated(seen, root, stream), root, stream)
}

fn differs(exception: &'static Exception, end: End<Reason>, predicted: End<Reason>) -> Found {
    (end != predicted).then_some((exception, predicted))
}

type Seen<'r> = (Overlay<'r>, Option<&'static Exception>);

/// The structures of `stream` as QEMU sees them, or the event with which it stops at them.
fn see<'r>(
    ram: &'r GuestRam,
    root: &StreamRoot,
    stream: u32,
) -> std::result::Result<Seen<'r>, (&'static Exception, u8)> {
    let mut memory = Overlay::new(ram);
    let mut exception = None;
    let pointer = route::pointer_at(root, stream);
    let descriptor = ram.load(pointer).unwrap_or(0);
    let (span, index) = (descriptor & SPAN, route::leaf_index(stream));
    if span == 0 {
        return Ok((memory, None));
    }
    if index > (1 << span) - 1 {
        return Err((&SPAN_EVENT, BAD_ENTRY));
    }
    if span > WHOLE_SPAN || index >= 1 << (span - 1) {
        exception = Some(&SPAN_SIZE);
    }
    let leaf_lg2 = span + 5;
    let leaf = descriptor >> leaf_lg2 << leaf_lg2;
    let entry = PhysAddr::new(leaf.wrapping_add(index * 64));
    let plain = leaf & 0x000f_ffff_ffff_f000;
    if leaf != plain {
        exception = exception.or(Some(&LEAF_POINTER));
        for word in 0..8 {
            let found = ram.load(offset(entry, word * 8)).ok_or((&LEAF_POINTER, ENTRY_FETCH))?;
            memory = memory.with(PhysAddr::new((plain | index * 64) + word * 8), found);
        }
    }
    memory = memory.with(pointer, plain | WHOLE_SPAN);
    see_entry(memory, PhysAddr::new(plain | index * 64), exception)
}

/// The same for the stream table entry itself.
fn see_entry<'r>(
    memory: Overlay<'r>,
    entry: PhysAddr,
    exception: Option<&'static Exception>,
) -> std::result::Result<Seen<'r>, (&'static Exception, u8)> {
    let word = |index: u64| memory.load(offset(entry, index * 8)).unwrap_or(0);
    let [word0, word1, word2] = [word(0), word(1), word(2)];
    let config = (word0 >> 1) & 7;
    let is_valid = word0 & 1 != 0;
    if is_valid && config == 0b110 && (word0 & S1CDMAX != 0 || word1 & S1STALLD != 0) {
        return Err((&UNUSED_STAGE1, BAD_ENTRY));
    }
    if is_valid && config == 0b101 && word0 & WIDE_CONTEXT != 0 {
        return Err((&CONTEXT_POINTER, CONTEXT_FETCH));
    }
    if is_valid && matches!(config, 0b110 | 0b111) && word2 & S2_HTTU != 0 {
        let memory = memory.with(offset(entry, 16), word2 & !S2_HTTU);
        return Ok((memory, exception.or(Some(&STAGE2_HTTU))));
    }
    Ok((memory, exception))
}

/// Stage 2's root tables as QEMU sees them: the first of them everywhere.
fn concatenated<'r>(seen: Overlay<'r>, root: &StreamRoot, stream: u32) -> Overlay<'r> {
    let Ok(route) = route::route(&seen, root, stream) else { return seen };
    let Some(second) = second_of(&route) else { return seen };
    let geometry = second.format().geometry();
    let (once, all) = (1 << geometry.granule_lg2, 1 << geometry.root_bytes_lg2());
    if once < all { seen.repeating(second.root(), once, all) } else { seen }
}

fn second_of(route: &Route) -> Option<&Stage2> {
    match route {
        Route::Second(SecondTable::Arm(second))
        | Route::Nested { second: SecondTable::Arm(second), .. } => Some(second),
        _ => None,
    }
}

/// What QEMU's walk does otherwise than ours, which says `end` of a privileged request.
fn walked(
    memory: &Overlay<'_>,
    root: &StreamRoot,
    (stream, probe): (u32, &Probe),
    end: End<Reason>,
) -> Found {
    let route = route::route(memory, root, stream).ok()?;
    if let Route::Nested { first: FirstTable::Arm(descriptor), second: SecondTable::Arm(second) } =
        &route
    {
        for table in descriptor.tables.iter() {
            let input = Iova::new(table.root().raw());
            let found = walk(second.format(), memory, second.root(), input, Access::READ);
            if let Err(fault) = found {
                let reason = Reason::from_walk(&fault, Class::TableEntry);
                return Some((&BOTH_ROOTS, Err(reason)));
            }
        }
    }
    if matches!(route, Route::Second(_)) && probe.iova.raw() >> SYSTEM_BITS != 0 {
        return Some((&BEYOND_OUTPUT, Err(Reason::plain(None))));
    }
    let steps = route::first_path(memory, &route, probe.iova);
    first_walked(&steps, probe, end).or_else(|| last_walked(memory, &route, &steps, probe, end))
}

/// What QEMU's walk of stage 1 does otherwise at a table.
fn first_walked(steps: &[Step], probe: &Probe, end: End<Reason>) -> Found {
    let limits = |step: &&Step| is_table(step) && step.raw & 1 << 62 != 0;
    if probe.write && steps.iter().find(limits).is_some() {
        return Some((&TABLE_RIGHTS, Err(Reason::walk(PERMISSION, Stage::First, Class::Input, 0))));
    }
    let last = steps.last().filter(|step| is_table(step))?;
    if end == Err(table_reason(last, end)) {
        let walk = Walk { stage2: false, class: Some(Class::TableEntry), ipa: None };
        let event = end.err().and_then(|reason| reason.event);
        return Some((&TABLE_STAGE, Err(Reason { event, walk: Some(walk) })));
    }
    None
}

const fn is_table(step: &Step) -> bool {
    step.level > 0 && step.raw & 3 == 3
}

/// `end` if it is stage 2's refusal of the table that `step` leads to.
fn table_reason(step: &Step, end: End<Reason>) -> Reason {
    let ipa = step.raw & 0xffff_ffff_f000;
    let walk = Walk { stage2: true, class: Some(Class::TableEntry), ipa: Some(ipa) };
    Reason { event: end.err().and_then(|reason| reason.event), walk: Some(walk) }
}

/// What QEMU does otherwise at the last entry of the stage that ends the walk.
fn last_walked(
    memory: &Overlay<'_>,
    route: &Route,
    steps: &[Step],
    probe: &Probe,
    end: End<Reason>,
) -> Found {
    let reason = end.err()?;
    let walk = reason.walk?;
    let (last, stage) = if walk.stage2 {
        (last_second(memory, route, walk.ipa?)?, Stage::Second)
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
        // an address that is no memory: such blocks are larger than that
        _ if block => Some((&BLOCKS, Ok(PhysAddr::new(last.raw & 0xffff_c000_0000)))),
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
fn last_second(memory: &Overlay<'_>, route: &Route, ipa: u64) -> Option<Step> {
    let second = second_of(route)?;
    let steps = crate::tables::path(second.format(), memory, second.root(), Iova::new(ipa));
    steps.last().copied()
}

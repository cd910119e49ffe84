//! Where QEMU's SMMUv3 is known to differ, and how exactly.

use viommu_pasid::smmuv3::{ContextDescriptor, Stage2, StreamRoot};
use viommu_pasid::{FirstTable, Route, SecondTable};
use viommu_pgtable::{Access, Format, Granule, Iova, PhysAddr, Stage, TableMemory, walk};

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
    emulator: "takes bits 55:52 for the address, too, and reports F_CD_FETCH",
};

static START_LEVEL: Exception = Exception {
    name: "start level above the input",
    manual: "IHI 0070, 5.2 S2SL0, Arm ARM D8.2.2: a start level that S2T0SZ does not reach is illegal",
    emulator: "starts there, with index 0, or with a root at address 0",
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

static NARROW_ROOT: Exception = Exception {
    name: "nested root cut to IPS",
    manual: "IHI 0070, 5.4 IPS: limits what stage 1 yields, not where stage 2 puts its tables",
    emulator: "drops the address bits above IPS of the root after stage 2 has translated it",
};

static BEYOND_OUTPUT: Exception = Exception {
    name: "no event for wide addresses",
    manual: "IHI 0070, 3.4, 7.3.13: an address wider than OAS is F_ADDR_SIZE of stage 1, bypassed or not",
    emulator: "ends the request without an event where there is no context descriptor yet, or none at all",
};

static TABLE_STAGE: Exception = Exception {
    name: "unreachable stage 1 tables, nested",
    manual: "IHI 0070, 7.3.12: S2 is set and IPA is the table entry's; a wide address is stage 1's (IN)",
    emulator: "reports stage 1 with class TT for tables below the root in both cases",
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
const WIDE_CONTEXT: u64 = 0xff << 48;
const BEYOND_SYSTEM: u64 = 0xfff << SYSTEM_BITS;
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
    let request = (stream, probe);
    let (seen, exception) = match see(ram, root, stream) {
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

/// Stage 2's fault of a request whose first table is not there: of the request itself, or of its context
/// descriptor.
fn lost(ram: &GuestRam, root: &StreamRoot, (stream, probe): (u32, &Probe)) -> Reason {
    match route::nested_descriptor(ram, root, stream) {
        Some(at) => Reason::walk(TRANSLATION, Stage::Second, Class::Descriptor, at),
        None => Reason::walk(TRANSLATION, Stage::Second, Class::Input, probe.iova.raw()),
    }
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
) -> std::result::Result<Seen<'r>, (&'static Exception, Option<u8>)> {
    let mut memory = Overlay::new(ram);
    let mut exception = None;
    let pointer = route::pointer_at(root, stream);
    let descriptor = ram.load(pointer).unwrap_or(0);
    let (span, index) = (descriptor & SPAN, route::leaf_index(stream));
    if span == 0 {
        return Ok((memory, None));
    }
    if index > (1 << span) - 1 {
        return Err((&SPAN_EVENT, Some(BAD_ENTRY)));
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
            let found =
                ram.load(offset(entry, word * 8)).ok_or((&LEAF_POINTER, Some(ENTRY_FETCH)))?;
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
) -> std::result::Result<Seen<'r>, (&'static Exception, Option<u8>)> {
    let word = |index: u64| memory.load(offset(entry, index * 8)).unwrap_or(0);
    let [word0, word1, word2] = [word(0), word(1), word(2)];
    let config = (word0 >> 1) & 7;
    let is_valid = word0 & 1 != 0;
    if is_valid && config == 0b110 && (word0 & S1CDMAX != 0 || word1 & S1STALLD != 0) {
        return Err((&UNUSED_STAGE1, Some(BAD_ENTRY)));
    }
    if is_valid && config == 0b101 && word0 & WIDE_CONTEXT != 0 {
        return Err((&CONTEXT_POINTER, Some(CONTEXT_FETCH)));
    }
    if is_valid && config == 0b111 && word0 & BEYOND_SYSTEM != 0 {
        return Err((&BEYOND_OUTPUT, None));
    }
    if is_valid && matches!(config, 0b110 | 0b111) && word2 & S2_HTTU != 0 {
        let memory = memory.with(offset(entry, 16), word2 & !S2_HTTU);
        return Ok((memory, exception.or(Some(&STAGE2_HTTU))));
    }
    let has_stage2 = is_valid && matches!(config, 0b110 | 0b111);
    match Start::of(word2).filter(|_| has_stage2) {
        Some(start) if start.is_hollow() && start.reaches_root() => {
            let memory = memory.with(offset(entry, 16), start.widened(word2));
            Ok((memory, exception.or(Some(&START_LEVEL))))
        }
        Some(start) if start.is_hollow() => Err((&START_LEVEL, Some(TRANSLATION))),
        _ => Ok((memory, exception)),
    }
}

/// Where a walk of stage 2 starts, as word 2 of a stream table entry says.
struct Start {
    granule: Granule,
    levels: u8,
    input_bits: u8,
}

impl Start {
    fn of(word2: u64) -> Option<Self> {
        let field = |first: u32, mask: u64| u8::try_from(word2 >> first & mask).ok();
        let granule = Granule::from_tg0(field(46, 3)?)?;
        let start = field(38, 3)?;
        if start == 3 {
            return None;
        }
        let levels = start + if granule == Granule::K4 { 2 } else { 1 };
        let input_bits = 64_u8.checked_sub(field(32, 0x3f)?)?;
        (25..=SYSTEM_BITS).contains(&input_bits).then_some(Self { granule, levels, input_bits })
    }

    const fn index_bits(&self) -> u8 {
        self.granule.lg2() - 3
    }

    /// True if the input is so narrow that there is nothing for the first level to index.
    const fn is_hollow(&self) -> bool {
        self.input_bits <= self.granule.lg2() + (self.levels - 1) * self.index_bits()
    }

    /// True if QEMU finds the root nevertheless: it aligns it to this many bits, or none.
    const fn reaches_root(&self) -> bool {
        self.input_bits >= self.levels * self.index_bits()
    }

    /// The word with an input that the first level indexes.
    fn widened(&self, word2: u64) -> u64 {
        let natural = self.granule.lg2() + self.levels * self.index_bits();
        let t0sz = u64::from(64 - natural.min(SYSTEM_BITS));
        word2 & !(0x3f << 32) | t0sz << 32
    }
}

/// Stage 2's root tables as QEMU sees them: the first of them everywhere.
fn concatenated<'r>(seen: Overlay<'r>, root: &StreamRoot, stream: u32) -> Overlay<'r> {
    let Some(second) = route::stage2_of(&seen, root, stream) else { return seen };
    let geometry = second.format().geometry();
    let (once, all) = (1 << geometry.granule_lg2, 1 << geometry.root_bytes_lg2());
    if once < all { seen.repeating(second.root(), once, all) } else { seen }
}

/// What QEMU's walk does otherwise than ours, which says `end` of a privileged request.
fn walked(
    memory: &Overlay<'_>,
    root: &StreamRoot,
    (stream, probe): (u32, &Probe),
    end: End<Reason>,
) -> Found {
    let second = route::stage2_of(memory, root, stream);
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

/// What a walk finds that starts where the root's address is cut off, if it is: nothing, as that is memory
/// that is not used.
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

//! The structures as QEMU's SMMUv3 sees them.

use viommu_pasid::smmuv3::StreamRoot;
use viommu_pgtable::{Format, Granule, Iova, PhysAddr, TableMemory};

use super::event::number::{BAD_ENTRY, CONTEXT_FETCH, ENTRY_FETCH, TRANSLATION};
use super::exceptions::{
    BEYOND_OUTPUT, CONTEXT_POINTER, LEAF_POINTER, SPAN_EVENT, SPAN_SIZE, STAGE2_HTTU, START_LEVEL,
    UNUSED_STAGE1,
};
use super::mode::SYSTEM_BITS;
use super::structures::{self, offset};
use crate::memory::GuestRam;
use crate::overlay::Overlay;
use crate::subject::Exception;

/// L1STD: Span, and what QEMU takes for the leaf's address.
const SPAN: u64 = 0x1f;
/// A Span of our leaves.
const WHOLE_SPAN: u64 = 7;
/// STE word 0: S1CDMax.
const S1CDMAX: u64 = 0x1f << 59;
/// STE word 0: S1ContextPtr.
const CONTEXT_POINTER_BITS: u64 = ((1 << 52) - 1) & !0x3f;
/// STE word 0: the bits above our widest address that QEMU takes for S1ContextPtr's.
const WIDE_CONTEXT: u64 = 0xff << 48;
/// The same above the emulated system's widest address.
const BEYOND_SYSTEM: u64 = 0xfff << SYSTEM_BITS;
/// STE word 1: S1STALLD.
const S1STALLD: u64 = 1 << 27;
/// STE word 2: S2HD, S2HA.
const S2_HTTU: u64 = 0b11 << 55;

/// Memory as QEMU sees it, and the first exception that makes a difference.
pub(super) type Seen<'r> = (Overlay<'r>, Option<&'static Exception>);

/// The structures of `stream` as QEMU sees them for a request to `iova`, or the event with which it
/// stops at them.
pub(super) fn see<'r>(
    ram: &'r GuestRam,
    root: &StreamRoot,
    (stream, iova): (u32, Iova),
) -> std::result::Result<Seen<'r>, (&'static Exception, Option<u8>)> {
    let mut memory = Overlay::new(ram);
    let mut exception = None;
    let pointer = structures::pointer_at(root, stream);
    let descriptor = ram.load(pointer).unwrap_or(0);
    let (span, index) = (descriptor & SPAN, structures::leaf_index(stream));
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
    // where our lookup finds it, which knows which bits are reserved
    let plain = leaf & 0x000f_ffff_ffff_f000;
    let entry = PhysAddr::new(plain | (index * 64));
    if leaf != plain {
        exception = exception.or(Some(&LEAF_POINTER));
        for offset_bytes in (0..64).step_by(8) {
            let at = PhysAddr::new(leaf.wrapping_add(index * 64 + offset_bytes));
            let found = ram.load(at).ok_or((&LEAF_POINTER, Some(ENTRY_FETCH)))?;
            memory = memory.with(offset(entry, offset_bytes), found);
        }
    }
    memory = memory.with(pointer, plain | WHOLE_SPAN);
    see_entry(memory, (entry, iova), exception)
}

/// The same for the stream table entry itself.
fn see_entry<'r>(
    memory: Overlay<'r>,
    (entry, iova): (PhysAddr, Iova),
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
    // stage 2's first input; a wider one than the system's goes another way
    let input = match config {
        0b111 => word0 & CONTEXT_POINTER_BITS,
        _ if iova.raw() >> SYSTEM_BITS == 0 => iova.raw(),
        _ => 0,
    };
    match Start::of(word2).filter(|_| has_stage2) {
        Some(start) if start.is_hollow() && start.reaches_root() && !start.excludes(input) => {
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

    /// True if an input is too wide.
    const fn excludes(&self, input: u64) -> bool {
        input >> self.input_bits != 0
    }

    /// The word with an input that the first level indexes.
    fn widened(&self, word2: u64) -> u64 {
        let natural = self.granule.lg2() + self.levels * self.index_bits();
        let t0sz = u64::from(64 - natural.min(SYSTEM_BITS));
        word2 & !(0x3f << 32) | t0sz << 32
    }
}

/// Stage 2's root tables as QEMU sees them: the first of them everywhere.
pub(super) fn concatenated<'r>(seen: Overlay<'r>, root: &StreamRoot, stream: u32) -> Overlay<'r> {
    let Some(second) = structures::stage2_of(&seen, root, stream) else { return seen };
    let geometry = second.format().geometry();
    let (once, all) = (1 << geometry.granule_lg2, 1 << geometry.root_bytes_lg2());
    if once < all { seen.repeating(second.root(), once, all) } else { seen }
}

//! The stage 2 fields of a stream table entry (IHI 0070, 5.2: `S2*`).

use viommu_pgtable::PhysAddr;

use super::field;
use super::geometry::{AddressSize, Granule, align_down, is_input_width};

/// Word 2.
const T0SZ: (u32, u32) = (32, 6);
const SL0: (u32, u32) = (38, 2);
/// `S2IR0`, `S2OR0`: write-back, read- and write-allocate; `S2SH0`: inner shareable.
const WALK_ATTRIBUTES: u64 = 0b01 << 40 | 0b01 << 42 | 0b11 << 44;
const TG: (u32, u32) = (46, 2);
const PS: (u32, u32) = (48, 3);
const AA64: u64 = 1 << 51;
const ENDI: u64 = 1 << 52;
const AFFD: u64 = 1 << 53;
const HD: u64 = 1 << 55;
const HA: u64 = 1 << 56;
/// `S2S`: stall; `S2R`: record the event.
const STALL: u64 = 1 << 57;
const RECORD: u64 = 1 << 58;
/// What an entry must not ask for: big-endian tables, hardware updates, stalls.
const NOT_OFFERED: u64 = ENDI | HD | HA | STALL;
/// Word 3, bits 51:4.
const TTB: u64 = ((1 << 52) - 1) & !0xf;

/// Up to 16 root tables may stand side by side: 4 more bits of index.
const CONCATENATED_LG2: u8 = 4;

/// A stage 2 table, as a stream table entry names it.
///
/// Holding one proves that the shape is one of the architecture's, and the root aligned and within reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage2 {
    root: PhysAddr,
    input_bits: u8,
    granule: Granule,
    levels: u8,
    output: AddressSize,
    ignores_access_flag: bool,
}

impl Stage2 {
    /// A table whose accesses fault where the access flag is clear.
    ///
    /// `None` if the input has less than 25 or more than 48 bits, `levels` is not a number of levels that
    /// the granule can start from, the root tables would have less than 2 or more than 16 times a
    /// granule's entries, or `root` is not a multiple of their size or wider than the output (IHI 0070, 5.2.2).
    #[must_use]
    pub const fn new(
        root: PhysAddr,
        input_bits: u8,
        granule: Granule,
        levels: u8,
        output: AddressSize,
    ) -> Option<Self> {
        if !is_input_width(input_bits) || encode_start(granule, levels).is_none() {
            return None;
        }
        let below_root = granule.lg2() + (levels - 1) * granule.index_bits();
        if input_bits <= below_root {
            return None;
        }
        let root_index_bits = input_bits - below_root;
        if root_index_bits > granule.index_bits() + CONCATENATED_LG2 {
            return None;
        }
        if !root.is_aligned(root_index_bits + 3) || !output.holds(root) {
            return None;
        }
        Some(Self { root, input_bits, granule, levels, output, ignores_access_flag: false })
    }

    /// The same table, whose pages are used whatever their access flag says (`S2AFFD`).
    #[must_use]
    pub const fn ignoring_access_flag(mut self) -> Self {
        self.ignores_access_flag = true;
        self
    }

    /// The root table, or the first of those that stand side by side.
    #[must_use]
    pub const fn root(&self) -> PhysAddr {
        self.root
    }

    /// Width of its input.
    #[must_use]
    pub const fn input_bits(&self) -> u8 {
        self.input_bits
    }

    /// Size of the smallest page.
    #[must_use]
    pub const fn granule(&self) -> Granule {
        self.granule
    }

    /// Levels of tables, the root's included.
    #[must_use]
    pub const fn levels(&self) -> u8 {
        self.levels
    }

    /// Width of its output.
    #[must_use]
    pub const fn output(&self) -> AddressSize {
        self.output
    }

    /// True if a clear access flag is no fault.
    #[must_use]
    pub const fn ignores_access_flag(&self) -> bool {
        self.ignores_access_flag
    }

    /// Words 2 and 3, without the tag.
    pub(super) fn pack(&self) -> [u64; 2] {
        let start = encode_start(self.granule, self.levels).unwrap_or(0); // `new` has looked
        let affd = if self.ignores_access_flag { AFFD } else { 0 };
        let word2 = u64::from(64 - self.input_bits) << T0SZ.0
            | start << SL0.0
            | WALK_ATTRIBUTES
            | self.granule.encode() << TG.0
            | self.output.encode() << PS.0
            | AA64
            | affd
            | RECORD;
        [word2, self.root.raw()]
    }

    /// The table in words 2 and 3; `None` if they are illegal.
    pub(super) fn unpack(word2: u64, word3: u64) -> Option<Self> {
        if word2 & AA64 == 0 || word2 & NOT_OFFERED != 0 {
            return None;
        }
        let granule = Granule::decode(field(word2, TG.0, TG.1))?;
        let levels = decode_start(granule, field(word2, SL0.0, SL0.1))?;
        let input_bits = 64 - u8::try_from(field(word2, T0SZ.0, T0SZ.1)).ok()?;
        let output = AddressSize::decode(field(word2, PS.0, PS.1));
        // bits below the alignment are reserved, and read as zero
        let below_root = granule.lg2() + (levels - 1) * granule.index_bits();
        let root_lg2 = input_bits.checked_sub(below_root)? + 3;
        let root = align_down(word3 & TTB, root_lg2);
        let table = Self::new(root, input_bits, granule, levels, output)?;
        Some(if word2 & AFFD == 0 { table } else { table.ignoring_access_flag() })
    }
}

/// `S2SL0` for a walk of `levels` levels (Arm ARM, `VTCR_EL2.SL0`).
const fn encode_start(granule: Granule, levels: u8) -> Option<u64> {
    match (granule, levels) {
        (Granule::Size4K, 2) | (Granule::Size16K | Granule::Size64K, 1) => Some(0),
        (Granule::Size4K, 3) | (Granule::Size16K | Granule::Size64K, 2) => Some(1),
        (Granule::Size4K, 4) | (Granule::Size16K | Granule::Size64K, 3) => Some(2),
        _ => None,
    }
}

/// Levels of a walk with this `S2SL0`.
const fn decode_start(granule: Granule, field: u64) -> Option<u8> {
    let fewest = match granule {
        Granule::Size4K => 2,
        Granule::Size16K | Granule::Size64K => 1,
    };
    match field {
        0 => Some(fewest),
        1 => Some(fewest + 1),
        2 => Some(fewest + 2),
        _ => None,
    }
}

//! The stage 2 fields of a stream table entry (IHI 0070, 5.2: `S2*`).

use viommu_pgtable::{ArmStage2, Format, PhysAddr};

use super::geometry::{AddressSize, align_down};
use super::{OUTPUT_BITS, field};

/// Word 2: S2T0SZ to S2PS, in the layout of VTCR_EL2.
const VTCR: (u32, u32) = (32, 19);
/// S2PS, in VTCR_EL2.
const PS: (u32, u32) = (16, 3);
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

/// A stage 2 table, as a stream table entry names it.
///
/// Holding one proves that the root is aligned, and within reach of the output, and that an entry
/// can say what the format is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage2 {
    root: PhysAddr,
    format: ArmStage2,
    ignores_access_flag: bool,
}

impl Stage2 {
    /// A table whose accesses fault where the access flag is clear.
    ///
    /// `None` if `root` is not a multiple of the size of the root tables that stand side by side,
    /// or wider than the output, or if no entry can say what `format` is: its output has a width
    /// that is not an [`AddressSize`], or it has too few levels.
    #[must_use]
    pub fn new(root: PhysAddr, format: ArmStage2) -> Option<Self> {
        let geometry = format.geometry();
        let output = AddressSize::from_bits(geometry.output_bits)?;
        if ArmStage2::from_vtcr(format.vtcr(), OUTPUT_BITS) != Ok(format) {
            return None;
        }
        let fits = root.is_aligned(geometry.root_bytes_lg2()) && output.holds(root);
        fits.then_some(Self { root, format, ignores_access_flag: false })
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

    /// What its entries mean, but for [`ignores_access_flag`](Self::ignores_access_flag).
    #[must_use]
    pub const fn format(&self) -> &ArmStage2 {
        &self.format
    }

    /// True if a clear access flag is no fault.
    #[must_use]
    pub const fn ignores_access_flag(&self) -> bool {
        self.ignores_access_flag
    }

    /// Words 2 and 3, without the tag.
    pub(super) fn pack(&self) -> [u64; 2] {
        let affd = if self.ignores_access_flag { AFFD } else { 0 };
        [self.format.vtcr() << VTCR.0 | AA64 | affd | RECORD, self.root.raw()]
    }

    /// The table in words 2 and 3; `None` if they are illegal.
    pub(super) fn unpack(word2: u64, word3: u64) -> Option<Self> {
        if word2 & AA64 == 0 || word2 & NOT_OFFERED != 0 {
            return None;
        }
        let vtcr = field(word2, VTCR.0, VTCR.1);
        // sizes beyond the system's behave as the system's
        let size = AddressSize::decode(field(vtcr, PS.0, PS.1)).encode();
        let vtcr = vtcr & !(((1 << PS.1) - 1) << PS.0) | size << PS.0;
        let format = ArmStage2::from_vtcr(vtcr, OUTPUT_BITS).ok()?;
        // bits below the alignment are reserved, and read as zero
        let root = align_down(word3 & TTB, format.geometry().root_bytes_lg2());
        let table = Self::new(root, format)?;
        Some(if word2 & AFFD == 0 { table } else { table.ignoring_access_flag() })
    }
}

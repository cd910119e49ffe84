//! The context descriptor: the stage 1 tables of one PASID (IHI 0070, 5.4).

use bitflags::bitflags;
use viommu_pgtable::{Iova, PhysAddr};

use super::geometry::{AddressSize, Granule, align_down, is_input_width};
use super::{USED_WORDS, field};
use crate::leaf::WORDS;

/// Word 0: the fields of the lower table; those of the upper are 16 bits further.
const T0SZ: (u32, u32) = (0, 6);
const TG0: (u32, u32) = (6, 2);
/// `IR0`, `OR0`: write-back, read- and write-allocate; `SH0`: inner shareable.
const WALK_ATTRIBUTES: u64 = 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
const EPD0: u64 = 1 << 14;
const UPPER_SHIFT: u32 = 16;
const ENDI: u64 = 1 << 15;
/// Bit 31: V.
pub(super) const VALID: u64 = 1 << 31;
const IPS: (u32, u32) = (32, 3);
const AA64: u64 = 1 << 41;
const HD: u64 = 1 << 42;
const HA: u64 = 1 << 43;
/// `S`: stall; `R`: record the event; `A`: abort.
const STALL: u64 = 1 << 44;
const RECORD: u64 = 1 << 45;
const ABORT: u64 = 1 << 46;
const ASID: (u32, u32) = (48, 16);
/// What a descriptor must say, and must not ask for: 64-bit tables, aborts; hardware updates, stalls.
const NEEDED: u64 = AA64 | ABORT;
const NOT_OFFERED: u64 = HD | HA | STALL;
/// Words 1 and 2, bits 51:4.
const TTB: u64 = ((1 << 52) - 1) & !0xf;

bitflags! {
    /// How both tables are used: bits of word 0, in their places.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct ContextControls: u64 {
        /// AFFD: a clear access flag is no fault.
        const ACCESS_FLAG_IGNORED = 1 << 35;
        /// WXN: what may be written is not fetched.
        const WRITE_EXECUTE_NEVER = 1 << 36;
        /// UWXN: what others may write is not fetched by privileged software.
        const USER_WRITE_EXECUTE_NEVER = 1 << 37;
        /// TBI0: addresses of the lower table carry anything in bits 63:56.
        const LOWER_TOP_BYTE_IGNORED = 1 << 38;
        /// TBI1: so do those of the upper table.
        const UPPER_TOP_BYTE_IGNORED = 1 << 39;
        /// PAN: privileged software does not access what others may.
        const PRIVILEGED_ACCESS_NEVER = 1 << 40;
    }
}

/// One stage 1 table.
///
/// Holding one proves that the shape is one of the architecture's and the root aligned. It does not prove
/// that the root is within reach of the descriptor's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage1Table {
    root: PhysAddr,
    input_bits: u8,
    granule: Granule,
}

impl Stage1Table {
    /// A table; `None` if the input has less than 25 or more than 48 bits, or `root` is not a multiple of
    /// the size of its table (16 bytes at least).
    #[must_use]
    pub const fn new(root: PhysAddr, input_bits: u8, granule: Granule) -> Option<Self> {
        if !is_input_width(input_bits) || !root.is_aligned(root_lg2(input_bits, granule)) {
            return None;
        }
        Some(Self { root, input_bits, granule })
    }

    /// The root table.
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

    /// The fields of word 0 without TG, in the lower table's places.
    const fn pack(&self) -> u64 {
        ((64 - self.input_bits) as u64) << T0SZ.0 | WALK_ATTRIBUTES
    }

    /// The table; `None` if it is illegal.
    fn unpack(t_sz: u64, granule: Option<Granule>, ttb: u64, output: AddressSize) -> Option<Self> {
        let granule = granule?;
        let input_bits = 64 - u8::try_from(t_sz).ok()?;
        if !is_input_width(input_bits) {
            return None;
        }
        // bits below the alignment are reserved, and read as zero
        let root = align_down(ttb & TTB, root_lg2(input_bits, granule));
        if !output.holds(root) {
            return None;
        }
        Self::new(root, input_bits, granule)
    }
}

/// Bytes of the root table, log2; `input_bits` is at least 25, more than any granule has.
const fn root_lg2(input_bits: u8, granule: Granule) -> u8 {
    let indexed = input_bits - granule.lg2();
    let rest = indexed % granule.index_bits();
    let root_index_bits = if rest == 0 { granule.index_bits() } else { rest };
    root_index_bits + 3
}

/// A valid context descriptor.
///
/// A root that is wider than `output` can be packed; what is packed then is illegal, and faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextDescriptor {
    /// The table for addresses from 0 up: TTB0. Without it they fault.
    pub lower: Option<Stage1Table>,
    /// The table for addresses up to 2^64 - 1: TTB1. Without it they fault.
    pub upper: Option<Stage1Table>,
    /// Width of the output of both: IPS.
    pub output: AddressSize,
    /// The number with which hardware tags its caches. No walker here keeps such a cache.
    pub asid: u16,
    /// Memory types that entries name: MAIR0 and MAIR1.
    pub mair: u64,
    /// How both tables are used.
    pub controls: ContextControls,
}

impl ContextDescriptor {
    /// The eight words of the descriptor, word 0 first.
    #[must_use]
    pub fn pack(&self) -> [u64; WORDS] {
        let lower = self.lower.map_or(EPD0, |table| table.pack() | table.granule.encode() << TG0.0);
        let upper =
            self.upper.map_or(EPD0, |table| table.pack() | table.granule.encode_upper() << TG0.0);
        let word0 = lower
            | upper << UPPER_SHIFT
            | VALID
            | self.output.encode() << IPS.0
            | self.controls.bits()
            | NEEDED
            | RECORD
            | u64::from(self.asid) << ASID.0;
        let root = |table: Option<Stage1Table>| table.map_or(0, |table| table.root.raw() & TTB);
        [word0, root(self.lower), root(self.upper), self.mair, 0, 0, 0, 0]
    }

    /// The descriptor whose first four words these are; `None` if it is not valid, or illegal (5.4.2).
    #[must_use]
    pub fn unpack(words: &[u64; USED_WORDS]) -> Option<Self> {
        let [word0, ttb0, ttb1, mair] = *words;
        if word0 & VALID == 0 || word0 & NEEDED != NEEDED || word0 & NOT_OFFERED != 0 {
            return None;
        }
        let output = AddressSize::decode(field(word0, IPS.0, IPS.1));
        let lower = match word0 & EPD0 {
            0 => {
                let granule = Granule::decode(field(word0, TG0.0, TG0.1));
                Some(Stage1Table::unpack(field(word0, T0SZ.0, T0SZ.1), granule, ttb0, output)?)
            }
            _ => None,
        };
        let word_upper = word0 >> UPPER_SHIFT;
        let upper = match word_upper & EPD0 {
            0 => {
                let granule = Granule::decode_upper(field(word_upper, TG0.0, TG0.1));
                Some(Stage1Table::unpack(field(word_upper, T0SZ.0, T0SZ.1), granule, ttb1, output)?)
            }
            _ => None,
        };
        let big_endian = word0 & ENDI != 0 && (lower.is_some() || upper.is_some());
        if big_endian {
            return None;
        }
        let asid = u16::try_from(field(word0, ASID.0, ASID.1)).ok()?;
        let controls = ContextControls::from_bits_truncate(word0);
        Some(Self { lower, upper, output, asid, mair, controls })
    }

    /// The table that translates `iova`, and the part of `iova` that it is asked for: below
    /// `1 << input_bits`. `None` if neither does: a translation fault.
    ///
    /// Bit 55 chooses; all bits from the input's width up must equal it, but for a top byte that is
    /// ignored (Arm ARM, VMSAv8-64 address selection).
    #[must_use]
    pub fn table_for(&self, iova: Iova) -> Option<(Stage1Table, Iova)> {
        const TOP_BYTE: u64 = 0xff << 56;
        let is_upper = iova.raw() & 1 << 55 != 0;
        let (table, top_byte_ignored) = if is_upper {
            (self.upper?, ContextControls::UPPER_TOP_BYTE_IGNORED)
        } else {
            (self.lower?, ContextControls::LOWER_TOP_BYTE_IGNORED)
        };
        // all ones become all zeros: what is left must be zero above the input's width
        let mut rest = if is_upper { !iova.raw() } else { iova.raw() };
        if self.controls.contains(top_byte_ignored) {
            rest &= !TOP_BYTE;
        }
        if rest >> table.input_bits != 0 {
            return None;
        }
        Some((table, Iova::new(iova.raw() & ((1 << table.input_bits) - 1))))
    }
}

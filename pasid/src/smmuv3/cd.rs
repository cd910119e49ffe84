//! The context descriptor: the stage 1 tables of one PASID (IHI 0070, 5.4).

use bitflags::bitflags;
use viommu_pgtable::{ArmStage1, Format, Granule, Iova, PhysAddr};

use super::geometry::{AddressSize, align_down, decode_tg0, decode_tg1, encode_tg1, granule_of};
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
/// What a descriptor must say, and must not ask for: 64-bit tables, aborts; hardware updates,
/// stalls.
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

impl ContextControls {
    /// Those that ask more of a walk than [`ArmStage1`] does: who cannot honour one that is set
    /// refuses the access.
    pub const BEYOND_FORMAT: Self = Self::ACCESS_FLAG_IGNORED
        .union(Self::WRITE_EXECUTE_NEVER)
        .union(Self::USER_WRITE_EXECUTE_NEVER)
        .union(Self::PRIVILEGED_ACCESS_NEVER);
}

/// One stage 1 table.
///
/// Holding one proves that the root is aligned, and within reach of the output. The width of the
/// output is one that a descriptor can say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage1Table {
    root: PhysAddr,
    format: ArmStage1,
    granule: Granule,
    output: AddressSize,
}

impl Stage1Table {
    /// A table; `None` if `root` is not a multiple of the size of the root table, or wider than the
    /// output, or if the output has a width that is not an [`AddressSize`].
    #[must_use]
    pub fn new(root: PhysAddr, format: ArmStage1) -> Option<Self> {
        let geometry = format.geometry();
        let granule = granule_of(geometry.granule_lg2)?;
        let output = AddressSize::from_bits(geometry.output_bits)?;
        let fits = root.is_aligned(geometry.root_bytes_lg2()) && output.holds(root);
        fits.then_some(Self { root, format, granule, output })
    }

    /// The root table.
    #[must_use]
    pub const fn root(&self) -> PhysAddr {
        self.root
    }

    /// What its entries mean, and which inputs it has: those from 0 up, see
    /// [`ContextDescriptor::table_for`].
    #[must_use]
    pub const fn format(&self) -> &ArmStage1 {
        &self.format
    }

    /// The fields of word 0, in the lower table's places, with `tg` of the caller's encoding.
    fn pack(&self, tg: u64) -> u64 {
        u64::from(64 - self.format.geometry().input_bits) << T0SZ.0 | WALK_ATTRIBUTES | tg << TG0.0
    }

    /// The table; `None` if it is illegal.
    fn unpack(
        fields: u64,
        granule: Option<Granule>,
        ttb: u64,
        output: AddressSize,
    ) -> Option<Self> {
        let input_bits = 64 - u8::try_from(field(fields, T0SZ.0, T0SZ.1)).ok()?;
        let format = ArmStage1::new(granule?, input_bits, output.bits()).ok()?;
        // bits below the alignment are reserved, and read as zero
        Self::new(align_down(ttb & TTB, format.geometry().root_bytes_lg2()), format)
    }
}

/// The two tables of a descriptor, of which either may be missing: its addresses fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage1Tables {
    lower: Option<Stage1Table>,
    upper: Option<Stage1Table>,
}

impl Stage1Tables {
    /// One table, for addresses from 0 up.
    #[must_use]
    pub const fn lower_only(table: Stage1Table) -> Self {
        Self { lower: Some(table), upper: None }
    }

    /// Both, or either, or none; `None` if the outputs of both have different widths, which a
    /// descriptor cannot say.
    #[must_use]
    pub fn new(lower: Option<Stage1Table>, upper: Option<Stage1Table>) -> Option<Self> {
        match (&lower, &upper) {
            (Some(one), Some(other)) if one.output != other.output => None,
            _ => Some(Self { lower, upper }),
        }
    }

    /// The table for addresses from 0 up: TTB0.
    #[must_use]
    pub const fn lower(&self) -> Option<&Stage1Table> {
        self.lower.as_ref()
    }

    /// The table for addresses up to 2^64 - 1: TTB1.
    #[must_use]
    pub const fn upper(&self) -> Option<&Stage1Table> {
        self.upper.as_ref()
    }

    /// Both, those that are there.
    pub fn iter(&self) -> impl Iterator<Item = &Stage1Table> {
        self.lower.iter().chain(&self.upper)
    }

    /// IPS; any does if there is no table.
    fn output(&self) -> AddressSize {
        self.iter().next().map_or(AddressSize::Bits48, |table| table.output)
    }
}

/// A valid context descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContextDescriptor {
    /// The tables.
    pub tables: Stage1Tables,
    /// The number with which hardware tags its caches. No walker here keeps such a cache.
    pub asid: u16,
    /// Memory types that entries name: MAIR0 and MAIR1.
    pub mair: u64,
    /// How the tables are used.
    pub controls: ContextControls,
}

impl ContextDescriptor {
    /// The eight words of the descriptor, word 0 first.
    #[must_use]
    pub fn pack(&self) -> [u64; WORDS] {
        let (lower, upper) = (self.tables.lower(), self.tables.upper());
        let lower_fields = lower.map_or(EPD0, |table| table.pack(u64::from(table.granule.tg0())));
        let upper_fields = upper.map_or(EPD0, |table| table.pack(encode_tg1(table.granule)));
        let word0 = lower_fields
            | upper_fields << UPPER_SHIFT
            | VALID
            | self.tables.output().encode() << IPS.0
            | self.controls.bits()
            | NEEDED
            | RECORD
            | u64::from(self.asid) << ASID.0;
        let root = |table: Option<&Stage1Table>| table.map_or(0, |table| table.root.raw());
        [word0, root(lower), root(upper), self.mair, 0, 0, 0, 0]
    }

    /// The descriptor whose first four words these are; `None` if it is not valid, or illegal
    /// (5.4.2).
    #[must_use]
    pub fn unpack(words: &[u64; USED_WORDS]) -> Option<Self> {
        let [word0, ttb0, ttb1, mair] = *words;
        if word0 & VALID == 0 || word0 & NEEDED != NEEDED || word0 & NOT_OFFERED != 0 {
            return None;
        }
        let tables = unpack_tables(word0, ttb0, ttb1)?;
        if word0 & ENDI != 0 && tables.iter().next().is_some() {
            return None;
        }
        let asid = u16::try_from(field(word0, ASID.0, ASID.1)).ok()?;
        Some(Self { tables, asid, mair, controls: ContextControls::from_bits_truncate(word0) })
    }

    /// The table that translates `iova`, and what it is asked for: an address below the end of its
    /// inputs. `None` if neither does: a translation fault.
    ///
    /// Bit 55 chooses; all bits from the input's width up must equal it, but for a top byte that is
    /// ignored (Arm ARM, D8.2).
    #[must_use]
    pub fn table_for(&self, iova: Iova) -> Option<(&Stage1Table, Iova)> {
        const TOP_BYTE: u64 = 0xff << 56;
        let is_upper = iova.raw() & 1 << 55 != 0;
        let (table, top_byte_ignored) = if is_upper {
            (self.tables.upper()?, ContextControls::UPPER_TOP_BYTE_IGNORED)
        } else {
            (self.tables.lower()?, ContextControls::LOWER_TOP_BYTE_IGNORED)
        };
        // all ones become all zeros: what is left must be zero above the input's width
        let mut rest = if is_upper { !iova.raw() } else { iova.raw() };
        if self.controls.contains(top_byte_ignored) {
            rest &= !TOP_BYTE;
        }
        let input_bits = table.format.geometry().input_bits;
        if rest >> input_bits != 0 {
            return None;
        }
        Some((table, Iova::new(iova.raw() & ((1 << input_bits) - 1))))
    }
}

/// The tables of a descriptor; `None` if one that is on is illegal.
fn unpack_tables(word0: u64, ttb0: u64, ttb1: u64) -> Option<Stage1Tables> {
    let output = AddressSize::decode(field(word0, IPS.0, IPS.1));
    let upper_fields = word0 >> UPPER_SHIFT;
    let lower = if word0 & EPD0 == 0 {
        let granule = decode_tg0(field(word0, TG0.0, TG0.1));
        Some(Stage1Table::unpack(word0, granule, ttb0, output)?)
    } else {
        None
    };
    let upper = if upper_fields & EPD0 == 0 {
        let granule = decode_tg1(field(upper_fields, TG0.0, TG0.1));
        Some(Stage1Table::unpack(upper_fields, granule, ttb1, output)?)
    } else {
        None
    };
    Stage1Tables::new(lower, upper)
}

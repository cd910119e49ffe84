//! Sizes that entries of both stages encode: granules, address sizes, the shape of a table.

use viommu_pgtable::PhysAddr;

use super::OUTPUT_BITS;

/// Inputs of a table have 25 to 48 bits: `TxSZ` is 16 to 39 (IHI 0070, 5.4.2, `CDTxSZInvalid`).
const MIN_INPUT_BITS: u8 = 64 - 39;
const MAX_INPUT_BITS: u8 = 64 - 16;

/// The size of the smallest page, and of a whole table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granule {
    /// 4 KiB.
    Size4K,
    /// 16 KiB.
    Size16K,
    /// 64 KiB.
    Size64K,
}

impl Granule {
    /// The granule of `1 << lg2` bytes, if Arm has it.
    #[must_use]
    pub const fn from_lg2(lg2: u8) -> Option<Self> {
        match lg2 {
            12 => Some(Self::Size4K),
            14 => Some(Self::Size16K),
            16 => Some(Self::Size64K),
            _ => None,
        }
    }

    /// Base-2 logarithm of its bytes.
    #[must_use]
    pub const fn lg2(self) -> u8 {
        match self {
            Self::Size4K => 12,
            Self::Size16K => 14,
            Self::Size64K => 16,
        }
    }

    /// Bits of an input address that index one table.
    pub(super) const fn index_bits(self) -> u8 {
        self.lg2() - 3
    }

    /// The encoding of `TG0` and `S2TG`.
    pub(super) const fn encode(self) -> u64 {
        match self {
            Self::Size4K => 0b00,
            Self::Size64K => 0b01,
            Self::Size16K => 0b10,
        }
    }

    pub(super) const fn decode(field: u64) -> Option<Self> {
        match field {
            0b00 => Some(Self::Size4K),
            0b01 => Some(Self::Size64K),
            0b10 => Some(Self::Size16K),
            _ => None,
        }
    }

    /// The encoding of `TG1`, which is another one.
    pub(super) const fn encode_upper(self) -> u64 {
        match self {
            Self::Size16K => 0b01,
            Self::Size4K => 0b10,
            Self::Size64K => 0b11,
        }
    }

    pub(super) const fn decode_upper(field: u64) -> Option<Self> {
        match field {
            0b01 => Some(Self::Size16K),
            0b10 => Some(Self::Size4K),
            0b11 => Some(Self::Size64K),
            _ => None,
        }
    }
}

/// The width of a stage's output: `IPS` and `S2PS`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AddressSize {
    /// 32 bits.
    Bits32,
    /// 36 bits.
    Bits36,
    /// 40 bits.
    Bits40,
    /// 42 bits.
    Bits42,
    /// 44 bits.
    Bits44,
    /// 48 bits.
    Bits48,
}

impl AddressSize {
    /// The width `bits`, if it can be said.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            32 => Some(Self::Bits32),
            36 => Some(Self::Bits36),
            40 => Some(Self::Bits40),
            42 => Some(Self::Bits42),
            44 => Some(Self::Bits44),
            48 => Some(Self::Bits48),
            _ => None,
        }
    }

    /// The width in bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits32 => 32,
            Self::Bits36 => 36,
            Self::Bits40 => 40,
            Self::Bits42 => 42,
            Self::Bits44 => 44,
            Self::Bits48 => OUTPUT_BITS,
        }
    }

    pub(super) const fn encode(self) -> u64 {
        match self {
            Self::Bits32 => 0,
            Self::Bits36 => 1,
            Self::Bits40 => 2,
            Self::Bits42 => 3,
            Self::Bits44 => 4,
            Self::Bits48 => 5,
        }
    }

    /// Sizes beyond `IDR5.OAS` behave as `IDR5.OAS` (IHI 0070, 5.2 `S2PS`, 5.4 `IPS`).
    pub(super) const fn decode(field: u64) -> Self {
        match field {
            0 => Self::Bits32,
            1 => Self::Bits36,
            2 => Self::Bits40,
            3 => Self::Bits42,
            4 => Self::Bits44,
            _ => Self::Bits48,
        }
    }

    /// True if no bit of `address` is above this width.
    pub(super) const fn holds(self, address: PhysAddr) -> bool {
        address.raw() >> self.bits() == 0
    }
}

/// True if a table may have an input of `bits` bits.
pub(super) const fn is_input_width(bits: u8) -> bool {
    MIN_INPUT_BITS <= bits && bits <= MAX_INPUT_BITS
}

/// `address` with its low `lg2` bits cleared: how the SMMU reads pointers to what is aligned to its size.
pub(super) const fn align_down(address: u64, lg2: u8) -> PhysAddr {
    PhysAddr::new(address >> lg2 << lg2)
}

//! Sizes that entries of both stages encode.

use viommu_pgtable::{Granule, PhysAddr};

use super::OUTPUT_BITS;

/// The granule of `1 << lg2` bytes.
pub(super) const fn granule_of(lg2: u8) -> Option<Granule> {
    match lg2 {
        12 => Some(Granule::K4),
        14 => Some(Granule::K16),
        16 => Some(Granule::K64),
        _ => None,
    }
}

/// The encoding of `TG1`, which is not that of `TG0` (IHI 0070, 5.4).
pub(super) const fn encode_tg1(granule: Granule) -> u64 {
    match granule {
        Granule::K16 => 0b01,
        Granule::K4 => 0b10,
        Granule::K64 => 0b11,
    }
}

/// The granule of `TG1`; 0 is reserved.
pub(super) const fn decode_tg1(field: u64) -> Option<Granule> {
    match field {
        0b01 => Some(Granule::K16),
        0b10 => Some(Granule::K4),
        0b11 => Some(Granule::K64),
        _ => None,
    }
}

/// The granule of `TG0`; 3 is reserved.
pub(super) fn decode_tg0(field: u64) -> Option<Granule> {
    Granule::from_tg0(u8::try_from(field).ok()?)
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

/// `address` with its low `lg2` bits cleared: how the SMMU reads pointers to what is aligned to its
/// size.
pub(super) const fn align_down(address: u64, lg2: u8) -> PhysAddr {
    PhysAddr::new(address >> lg2 << lg2)
}

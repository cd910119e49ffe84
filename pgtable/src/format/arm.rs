//! What Arm's two stages have in common (Arm ARM DDI 0487, D8 "The AArch64 Virtual Memory System
//! Architecture"; SMMUv3 IHI 0070, 3.4 and 5). Arm's level n of a walk is level 3 - n here: its level 3
//! holds only pages and is level 0.
//!
//! | granule | pages and blocks (D8.3.1, 48-bit) |
//! | --- | --- |
//! | 4 KiB | 4 KiB, 2 MiB, 1 GiB |
//! | 16 KiB | 16 KiB, 32 MiB |
//! | 64 KiB | 64 KiB, 512 MiB |
//!
//! Bits 1:0 of a descriptor: 0b11 is a table, or at level 0 a page; 0b01 is a block where there are
//! blocks, else reserved and treated as invalid (D8.3.1); bit 0 clear is invalid. Bits of an address
//! that do not count are RES0: ignored. An address beyond the output's width is an address size fault.
//!
//! Addresses of 52 bits (LPA, LPA2, LVA), small translation tables (TTST), top-byte-ignore and the
//! hardware's updates of access flag and dirty state (HTTU) are not offered.

use core::fmt;

use super::{Entry, Geometry};
use crate::{Access, PhysAddr};

pub(super) const VALID: u64 = 1 << 0;
/// A table rather than a block; at level 0 a page.
pub(super) const TABLE: u64 = 1 << 1;
/// SH = inner shareable (D8.6.2).
pub(super) const SHAREABLE: u64 = 3 << 8;
/// AF (D8.5.1).
pub(super) const ACCESS_FLAG: u64 = 1 << 10;

/// Widest address without LPA and LVA.
const MAX_BITS: u8 = 48;

/// Narrowest input: T0SZ is at most 39 (D8.2).
const MIN_INPUT_BITS: u8 = 25;

/// Narrowest output: IPS or PS 0.
const MIN_OUTPUT_BITS: u8 = 32;

/// The smallest page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Granule {
    /// 4 KiB.
    K4,
    /// 16 KiB.
    K16,
    /// 64 KiB.
    K64,
}

impl Granule {
    /// The granule of TG0 (TCR_EL1, VTCR_EL2; SMMUv3 CD.TG0, STE.S2TG), 2 bits.
    #[must_use]
    pub const fn from_tg0(tg0: u8) -> Option<Self> {
        match tg0 {
            0 => Some(Self::K4),
            1 => Some(Self::K64),
            2 => Some(Self::K16),
            _ => None,
        }
    }

    /// TG0 of the granule.
    #[must_use]
    pub const fn tg0(self) -> u8 {
        match self {
            Self::K4 => 0,
            Self::K64 => 1,
            Self::K16 => 2,
        }
    }

    /// Its size, bytes.
    #[must_use]
    pub const fn lg2(self) -> u8 {
        match self {
            Self::K4 => 12,
            Self::K16 => 14,
            Self::K64 => 16,
        }
    }

    /// Levels that hold pages or blocks.
    const fn leaf_levels(self) -> u8 {
        match self {
            Self::K4 => 0b111,
            Self::K16 | Self::K64 => 0b011,
        }
    }
}

/// Why a configuration is not allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArmConfigError {
    /// TG0 is reserved.
    Granule {
        /// The field.
        tg0: u8,
    },
    /// The input is narrower or wider than allowed.
    InputSize {
        /// Its width, 64 - T0SZ.
        input_bits: u8,
    },
    /// The output is narrower or wider than allowed.
    OutputSize {
        /// Its width.
        output_bits: u8,
    },
    /// IPS or PS is reserved or wider than 48 bits.
    OutputField {
        /// The field.
        ps: u8,
    },
    /// The walk cannot start there with an input of that width.
    StartLevel {
        /// The field.
        sl0: u8,
        /// Width of the input, bits.
        input_bits: u8,
    },
    /// Bits that must be otherwise: clear, or EPD1, which must be set.
    Bits {
        /// These.
        wrong: u64,
    },
}

impl fmt::Display for ArmConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granule { tg0 } => write!(f, "TG0 {tg0:#x} is reserved"),
            Self::InputSize { input_bits } => {
                write!(f, "an input of {input_bits} bits is not within 25 to 48")
            }
            Self::OutputSize { output_bits } => {
                write!(f, "an output of {output_bits} bits is not within 32 to 48")
            }
            Self::OutputField { ps } => write!(f, "output size {ps:#x} is not within 0 to 5"),
            Self::StartLevel { sl0, input_bits } => {
                write!(f, "a walk of {input_bits} bits cannot start at SL0 {sl0:#x}")
            }
            Self::Bits { wrong } => write!(f, "bits {wrong:#x} are not as they must be"),
        }
    }
}

impl core::error::Error for ArmConfigError {}

/// The `bits` bits of `word` from `shift` on; at most 8.
pub(super) fn field(word: u64, shift: u8, bits: u8) -> u8 {
    u8::try_from((word >> shift) & ((1 << bits) - 1)).unwrap_or(u8::MAX)
}

/// Output sizes, by IPS or PS.
const OUTPUT_BITS: [u8; 6] = [32, 36, 40, 42, 44, 48];

/// Width of an output, from IPS or PS; never wider than the system's (IHI 0070, 5.4 IPS, 5.2 S2PS).
pub(super) fn output_bits(ps: u8, system_bits: u8) -> Result<u8, ArmConfigError> {
    let bits = OUTPUT_BITS.get(usize::from(ps)).ok_or(ArmConfigError::OutputField { ps })?;
    Ok(system_bits.min(*bits))
}

/// IPS or PS of the smallest size that holds `bits`.
pub(super) fn output_size(bits: u8) -> u64 {
    OUTPUT_BITS.iter().take_while(|size| **size < bits).fold(0, |ps, _| ps + 1)
}

/// The shape of both stages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub(super) granule: Granule,
    pub(super) geometry: Geometry,
}

impl Shape {
    /// Widths that [`check_widths`] let pass, and levels that suit them.
    pub(super) const fn new(granule: Granule, levels: u8, input_bits: u8, output_bits: u8) -> Self {
        let granule_lg2 = granule.lg2();
        let leaf_levels = granule.leaf_levels() & ((1 << levels) - 1);
        let geometry = Geometry { granule_lg2, levels, input_bits, output_bits, leaf_levels };
        Self { granule, geometry }
    }

    /// Decodes a descriptor but for its rights, which are `leaf` or `table`.
    #[inline]
    pub(super) fn decode(&self, level: u8, raw: u64, rights: impl Fn(bool) -> Access) -> Entry {
        let geometry = &self.geometry;
        let address = |lg2: u8| {
            let bits = ((1u64 << MAX_BITS) - 1) >> lg2 << lg2;
            PhysAddr::new(raw & bits)
        };
        if raw & VALID == 0 {
            return Entry::Empty;
        }
        match (level > 0, raw & TABLE != 0) {
            (true, true) => {
                Entry::Table { next: address(geometry.granule_lg2), access: rights(false) }
            }
            (false, true) => {
                Entry::Leaf { oa: address(geometry.granule_lg2), access: rights(true) }
            }
            (true, false) if geometry.has_leaves(level) => {
                Entry::Leaf { oa: address(geometry.entry_lg2(level)), access: rights(true) }
            }
            _ => Entry::Empty,
        }
    }

    #[inline]
    pub(super) const fn output_fits(&self, address: PhysAddr) -> bool {
        address.raw() >> self.geometry.output_bits == 0
    }

    /// The bits that make a leaf of `level` one.
    #[inline]
    pub(super) const fn leaf_kind(level: u8) -> u64 {
        VALID | if level == 0 { TABLE } else { 0 }
    }
}

/// Checks the widths that both stages have.
pub(super) const fn check_widths(input_bits: u8, output_bits: u8) -> Result<(), ArmConfigError> {
    if input_bits < MIN_INPUT_BITS || input_bits > MAX_BITS {
        return Err(ArmConfigError::InputSize { input_bits });
    }
    if output_bits < MIN_OUTPUT_BITS || output_bits > MAX_BITS {
        return Err(ArmConfigError::OutputSize { output_bits });
    }
    Ok(())
}

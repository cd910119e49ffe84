//! The PASID-table entry: 64 bytes that say how one PASID's requests are translated (VT-d 5.0, 9.6).

use viommu_pgtable::PhysAddr;

use super::{POINTER, PRESENT};

/// 64-bit words of an entry.
pub(super) const WORDS: usize = 8;
/// Bytes of an entry.
pub(super) const ENTRY_BYTES: u64 = 64;
const _: () = assert!(ENTRY_BYTES == WORDS as u64 * 8);

/// Word 0, bits 4:2: AW, the second level's width.
const AW_SHIFT: u32 = 2;
/// Word 0, bits 8:6: PGTT, the translation type.
const PGTT_SHIFT: u32 = 6;
const FIELD_3_BITS: u64 = 7;
const PGTT_SECOND: u64 = 2;
const PGTT_PASS_THROUGH: u64 = 4;
/// Word 0, bits 11:10 and bits 63:52 above the widest address are reserved.
const WORD0_RESERVED: u64 = 0b11 << 10;
/// Word 1, bits 15:0: the domain id that caches are tagged with.
const DID: u64 = 0xffff;

/// Width of the input of a second-level table: the AW field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressWidth {
    /// 39 bits, 3 levels.
    Bits39,
    /// 48 bits, 4 levels.
    Bits48,
    /// 57 bits, 5 levels.
    Bits57,
}

impl AddressWidth {
    /// The width `bits`, if VT-d has it.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            39 => Some(Self::Bits39),
            48 => Some(Self::Bits48),
            57 => Some(Self::Bits57),
            _ => None,
        }
    }

    /// The width in bits.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Bits39 => 39,
            Self::Bits48 => 48,
            Self::Bits57 => 57,
        }
    }

    const fn encode(self) -> u64 {
        match self {
            Self::Bits39 => 1,
            Self::Bits48 => 2,
            Self::Bits57 => 3,
        }
    }

    const fn decode(field: u64) -> Option<Self> {
        match field {
            1 => Some(Self::Bits39),
            2 => Some(Self::Bits48),
            3 => Some(Self::Bits57),
            _ => None,
        }
    }
}

/// What happens to a request: the PGTT field with what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// Through a second-level table (PGTT 010b).
    SecondLevel {
        /// The root table, 4 KiB aligned.
        root: PhysAddr,
        /// Width of its input.
        width: AddressWidth,
    },
    /// The request's address is the output (PGTT 100b).
    PassThrough,
}

/// A present PASID-table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PasidEntry {
    /// The domain id that hardware tags its caches with. No walker of ours keeps such a cache.
    pub domain_tag: u16,
    /// How requests are translated.
    pub translation: Translation,
}

impl PasidEntry {
    /// The eight words of the entry, word 0 first, all reserved bits zero.
    #[must_use]
    pub const fn pack(&self) -> [u64; WORDS] {
        let word0 = match self.translation {
            Translation::SecondLevel { root, width } => {
                (root.raw() & POINTER)
                    | (PGTT_SECOND << PGTT_SHIFT)
                    | (width.encode() << AW_SHIFT)
                    | PRESENT
            }
            Translation::PassThrough => (PGTT_PASS_THROUGH << PGTT_SHIFT) | PRESENT,
        };
        [word0, self.domain_tag as u64, 0, 0, 0, 0, 0, 0]
    }

    /// The entry in these words, or `None` if it is present but not one that we know: a reserved bit,
    /// an unknown width or translation type. The caller has looked at the present bit.
    #[must_use]
    pub const fn unpack(words: &[u64; WORDS]) -> Option<Self> {
        let [word0, word1, ..] = *words;
        if word0 & WORD0_RESERVED != 0 {
            return None;
        }
        let translation = match (word0 >> PGTT_SHIFT) & FIELD_3_BITS {
            PGTT_SECOND => {
                let Some(width) = AddressWidth::decode((word0 >> AW_SHIFT) & FIELD_3_BITS) else {
                    return None;
                };
                Translation::SecondLevel { root: PhysAddr::new(word0 & POINTER), width }
            }
            PGTT_PASS_THROUGH => Translation::PassThrough,
            _ => return None,
        };
        let [tag_low, tag_high, ..] = (word1 & DID).to_le_bytes();
        Some(Self { domain_tag: u16::from_le_bytes([tag_low, tag_high]), translation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_level_entry_has_the_manuals_bits() {
        let entry = PasidEntry {
            domain_tag: 7,
            translation: Translation::SecondLevel {
                root: PhysAddr::new(0x8_0000_0000_3000),
                width: AddressWidth::Bits48,
            },
        };
        // 9.6: P = bit 0, AW = 010b at 4:2, PGTT = 010b at 8:6, SSPTPTR at 63:12, DID at 79:64
        assert_eq!(entry.pack(), [0x8_0000_0000_3089, 7, 0, 0, 0, 0, 0, 0]);
        assert_eq!(PasidEntry::unpack(&entry.pack()), Some(entry));
    }

    #[test]
    fn every_entry_survives_packing() {
        let widths = [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57];
        let second = widths.map(|width| Translation::SecondLevel {
            root: PhysAddr::new(0xf_ffff_ffff_f000),
            width,
        });
        for translation in second.into_iter().chain([Translation::PassThrough]) {
            let entry = PasidEntry { domain_tag: 0xffff, translation };
            assert_eq!(PasidEntry::unpack(&entry.pack()), Some(entry));
        }
    }

    #[test]
    fn unknown_widths_types_and_reserved_bits_are_no_entry() {
        let good = PasidEntry {
            domain_tag: 1,
            translation: Translation::SecondLevel {
                root: PhysAddr::new(0x1000),
                width: AddressWidth::Bits39,
            },
        }
        .pack();
        for flip in [0b101 << AW_SHIFT, 0b101 << PGTT_SHIFT, 1 << 10, 1 << 11] {
            let mut bad = good;
            bad[0] ^= flip;
            assert_eq!(PasidEntry::unpack(&bad), None, "flip {flip:#x}");
        }
    }
}

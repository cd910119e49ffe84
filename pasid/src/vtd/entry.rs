//! The PASID-table entry: 64 bytes that say how one PASID's requests are translated (VT-d 5.0,
//! 9.6).

use viommu_pgtable::{PhysAddr, VtdSecond};

use super::first::FirstLevel;
use super::{POINTER, PRESENT};
use crate::leaf::WORDS;

/// Word 0, bits 4:2: AW, the second level's width.
const AW_SHIFT: u32 = 2;
/// Word 0, bits 8:6: PGTT, the translation type.
const PGTT_SHIFT: u32 = 6;
const FIELD_3_BITS: u64 = 7;
const PGTT_FIRST: u64 = 1;
const PGTT_SECOND: u64 = 2;
const PGTT_NESTED: u64 = 3;
const PGTT_PASS_THROUGH: u64 = 4;
/// Word 0, bits 5, 10 and 11 are reserved. Bit 1 (FPD) and bit 9 (SSADE) change no translation
/// here.
const WORD0_RESERVED: u64 = 0b11 << 10 | 1 << 5;
/// Word 1, bits 15:0: the domain id that caches are tagged with.
const DID: u64 = 0xffff;
/// Word 1, bits 22:16 and 31:27 are reserved. The rest (snooping, memory types) changes no
/// translation.
const WORD1_RESERVED: u64 = 0xf87f_0000;

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

/// A second-level table, as a PASID entry names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SecondLevel {
    /// The root table, 4 KiB aligned.
    pub root: PhysAddr,
    /// Width of its input.
    pub width: AddressWidth,
}

/// What happens to a request: the PGTT field with what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Translation {
    /// Through a first-level table (PGTT 001b).
    FirstLevel(FirstLevel),
    /// Through a second-level table (PGTT 010b).
    SecondLevel {
        /// The root table, 4 KiB aligned.
        root: PhysAddr,
        /// Width of its input.
        width: AddressWidth,
    },
    /// Through a first-level table, whose pointers and output go through a second level (PGTT
    /// 011b).
    Nested {
        /// The first level; its root is an address that the second level translates.
        first: FirstLevel,
        /// The second level.
        second: SecondLevel,
    },
    /// The request's address is the output (PGTT 100b). AW is ignored.
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
        let (word0, word2) = match self.translation {
            Translation::FirstLevel(first) => (PGTT_FIRST << PGTT_SHIFT, first.pack()),
            Translation::SecondLevel { root, width } => {
                (SecondLevel { root, width }.pack() | PGTT_SECOND << PGTT_SHIFT, 0)
            }
            Translation::Nested { first, second } => {
                (second.pack() | PGTT_NESTED << PGTT_SHIFT, first.pack())
            }
            Translation::PassThrough => (PGTT_PASS_THROUGH << PGTT_SHIFT, 0),
        };
        [word0 | PRESENT, self.domain_tag as u64, word2, 0, 0, 0, 0, 0]
    }

    /// The entry in these words, or `None` if it is present but not one that we know: a reserved
    /// bit, an unknown width, paging mode or translation type. The caller has looked at the present
    /// bit.
    #[must_use]
    pub const fn unpack(words: &[u64; WORDS]) -> Option<Self> {
        let [word0, word1, word2, reserved @ ..] = *words;
        if !is_clean(word0, word1, word2, reserved) {
            return None;
        }
        let Some(translation) = unpack_translation(word0, word2) else { return None };
        let [tag_low, tag_high, ..] = (word1 & DID).to_le_bytes();
        Some(Self { domain_tag: u16::from_le_bytes([tag_low, tag_high]), translation })
    }
}

impl SecondLevel {
    /// What its entries mean, with leaves of the sizes `leaf_sizes_mask`: bit n stands for `1 << n`
    /// bytes; 4 KiB, and 2 MiB and 1 GiB or not. `None` for other sizes.
    #[must_use]
    pub const fn format(&self, leaf_sizes_mask: u64) -> Option<VtdSecond> {
        VtdSecond::new(self.width.bits(), leaf_sizes_mask)
    }

    const fn pack(&self) -> u64 {
        (self.root.raw() & POINTER) | (self.width.encode() << AW_SHIFT)
    }

    const fn unpack(word0: u64) -> Option<Self> {
        match AddressWidth::decode((word0 >> AW_SHIFT) & FIELD_3_BITS) {
            Some(width) => Some(Self { root: PhysAddr::new(word0 & POINTER), width }),
            None => None,
        }
    }
}

const fn unpack_translation(word0: u64, word2: u64) -> Option<Translation> {
    match (word0 >> PGTT_SHIFT) & FIELD_3_BITS {
        PGTT_FIRST => match FirstLevel::unpack(word2) {
            Some(first) => Some(Translation::FirstLevel(first)),
            None => None,
        },
        PGTT_SECOND => match SecondLevel::unpack(word0) {
            Some(SecondLevel { root, width }) => Some(Translation::SecondLevel { root, width }),
            None => None,
        },
        PGTT_NESTED => match (FirstLevel::unpack(word2), SecondLevel::unpack(word0)) {
            (Some(first), Some(second)) => Some(Translation::Nested { first, second }),
            _ => None,
        },
        PGTT_PASS_THROUGH => Some(Translation::PassThrough),
        _ => None,
    }
}

const fn is_clean(word0: u64, word1: u64, word2: u64, rest: [u64; 5]) -> bool {
    let [a, b, c, d, e] = rest;
    let reserved = (word0 & WORD0_RESERVED) | (word1 & WORD1_RESERVED) | a | b | c | d | e;
    reserved == 0 && FirstLevel::is_clean(word2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::vtd::FirstControls;

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
    fn a_nested_entry_has_the_manuals_bits() {
        let entry = PasidEntry {
            domain_tag: 9,
            translation: Translation::Nested {
                first: FirstLevel {
                    root: PhysAddr::new(0x1234_5000),
                    five_levels: true,
                    controls: FirstControls::SUPERVISOR | FirstControls::WRITE_PROTECT,
                },
                second: SecondLevel { root: PhysAddr::new(0x7000), width: AddressWidth::Bits57 },
            },
        };
        // 9.6: PGTT = 011b at 8:6; SRE = 128, FSPM = 01b at 131:130, WPE = 132, NXE = 133, FSPTPTR
        // at 191:140
        assert_eq!(entry.pack(), [0x70cd, 9, 0x1234_5035, 0, 0, 0, 0, 0]);
        assert_eq!(PasidEntry::unpack(&entry.pack()), Some(entry));
    }

    fn first_levels() -> impl Strategy<Value = FirstLevel> {
        (any::<u64>(), any::<bool>(), any::<u64>()).prop_map(|(root, five_levels, controls)| {
            let controls = FirstControls::from_bits_truncate(controls);
            FirstLevel { root: PhysAddr::new(root & POINTER), five_levels, controls }
        })
    }

    fn second_levels() -> impl Strategy<Value = SecondLevel> {
        let widths = [AddressWidth::Bits39, AddressWidth::Bits48, AddressWidth::Bits57];
        (any::<u64>(), select(widths.to_vec()))
            .prop_map(|(root, width)| SecondLevel { root: PhysAddr::new(root & POINTER), width })
    }

    fn entries() -> impl Strategy<Value = PasidEntry> {
        let translation = prop_oneof![
            Just(Translation::PassThrough),
            first_levels().prop_map(Translation::FirstLevel),
            second_levels()
                .prop_map(|SecondLevel { root, width }| Translation::SecondLevel { root, width }),
            (first_levels(), second_levels())
                .prop_map(|(first, second)| Translation::Nested { first, second }),
        ];
        (any::<u16>(), translation)
            .prop_map(|(domain_tag, translation)| PasidEntry { domain_tag, translation })
    }

    proptest! {
        #[test]
        fn every_entry_survives_packing(entry in entries()) {
            prop_assert_eq!(PasidEntry::unpack(&entry.pack()), Some(entry));
        }

        #[test]
        fn no_entry_has_a_reserved_bit_set(entry in entries(), word in 0..WORDS, bit in 0..64_u32) {
            let reserved = [WORD0_RESERVED, WORD1_RESERVED, 0xf02, !0, !0, !0, !0, !0];
            let mut words = entry.pack();
            prop_assert_eq!(words[word] & reserved[word], 0);
            words[word] |= 1_u64 << bit;
            if reserved[word] & 1_u64 << bit != 0 {
                prop_assert_eq!(PasidEntry::unpack(&words), None);
            }
        }
    }

    #[test]
    fn unknown_widths_types_and_paging_modes_are_no_entry() {
        let nested = Translation::Nested {
            first: FirstLevel {
                root: PhysAddr::new(0x1000),
                five_levels: false,
                controls: FirstControls::empty(),
            },
            second: SecondLevel { root: PhysAddr::new(0x2000), width: AddressWidth::Bits39 },
        };
        let good = PasidEntry { domain_tag: 1, translation: nested }.pack();
        for width in [0, 4, 5, 6, 7] {
            let mut bad = good;
            bad[0] = bad[0] & !(FIELD_3_BITS << AW_SHIFT) | width << AW_SHIFT;
            assert_eq!(PasidEntry::unpack(&bad), None, "width {width}");
        }
        for pgtt in [0, 5, 6, 7] {
            let mut bad = good;
            bad[0] = bad[0] & !(FIELD_3_BITS << PGTT_SHIFT) | pgtt << PGTT_SHIFT;
            assert_eq!(PasidEntry::unpack(&bad), None, "translation type {pgtt}");
        }
        for mode in [2, 3] {
            let mut bad = good;
            bad[2] |= mode << 2;
            assert_eq!(PasidEntry::unpack(&bad), None, "paging mode {mode}");
        }
    }

    #[test]
    fn bits_that_revisions_disagree_on_are_ignored() {
        let first = FirstLevel {
            root: PhysAddr::new(0x1000),
            five_levels: false,
            controls: FirstControls::empty(),
        };
        let entry = PasidEntry { domain_tag: 1, translation: Translation::FirstLevel(first) };
        for bits in [0, 1 << 5, 1 << 6, 1 << 5 | 1 << 6] {
            let mut words = entry.pack();
            words[2] = words[2] & !(1 << 5) | bits;
            assert_eq!(PasidEntry::unpack(&words), Some(entry));
        }
    }
}

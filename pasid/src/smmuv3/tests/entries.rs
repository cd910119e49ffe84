//! Bits of entries.

use proptest::prelude::*;
use viommu_pgtable::{ArmStage1, ArmStage2, Granule, Iova, PhysAddr};

use super::*;
use crate::leaf::WORDS;

fn used(words: &[u64; WORDS]) -> [u64; USED_WORDS] {
    [words[0], words[1], words[2], words[3]]
}

fn stage2() -> Stage2 {
    let format = ArmStage2::new(Granule::K4, 3, 40, 48).unwrap();
    Stage2::new(PhysAddr::new(0x1234_0000), format).unwrap()
}

fn stage1() -> Stage1 {
    let contexts = PhysAddr::new(0x7f_fff0_0000);
    Stage1::new(contexts, ContextLayout::Leaves4K, 20, Untagged::Context0).unwrap()
}

fn table(root: u64, input_bits: u8, granule: Granule) -> Stage1Table {
    let format = ArmStage1::new(granule, input_bits, 48).unwrap();
    Stage1Table::new(PhysAddr::new(root), format).unwrap()
}

fn descriptor() -> ContextDescriptor {
    ContextDescriptor {
        tables: Stage1Tables::lower_only(table(0x4000_0000, 48, Granule::K4)),
        asid: 0x1234,
        mair: 0xff,
        controls: ContextControls::empty(),
    }
}

proptest! {
    #[test]
    fn every_stream_table_entry_survives_packing(entry in entries()) {
        prop_assert_eq!(StreamEntry::unpack(&used(&entry.pack())), Some(entry));
    }

    #[test]
    fn every_context_descriptor_survives_packing(descriptor in descriptors()) {
        prop_assert_eq!(ContextDescriptor::unpack(&used(&descriptor.pack())), Some(descriptor));
    }

    #[test]
    fn any_words_that_unpack_mean_the_same_when_packed_again(words in any::<[u64; USED_WORDS]>()) {
        let mut words = words;
        words[0] |= 1 | 1 << 31 | 1 << 41 | 1 << 46;
        words[0] &= !(0b111 << 42);
        words[2] |= 1 << 51;
        if let Some(entry) = StreamEntry::unpack(&words) {
            prop_assert_eq!(StreamEntry::unpack(&used(&entry.pack())), Some(entry));
        }
        if let Some(descriptor) = ContextDescriptor::unpack(&words) {
            prop_assert_eq!(ContextDescriptor::unpack(&used(&descriptor.pack())), Some(descriptor));
        }
    }
}

#[test]
fn a_nested_stream_table_entry_has_the_manuals_bits() {
    let config = StreamConfig::Nested { first: stage1(), second: stage2() };
    let words = StreamEntry { vmid: 5, config }.pack();
    // 5.2: V 0, Config 3:1 = 0b111, S1Fmt 5:4 = 0b01, S1ContextPtr, S1CDMax 63:59 = 20
    assert_eq!(words[0], 20 << 59 | 0x7f_fff0_0000 | 0b01 << 4 | 0b111 << 1 | 1);
    // S1DSS 65:64 = 0b10, S1CIR 67:66, S1COR 69:68, S1CSH 71:70, SHCFG 109:108
    assert_eq!(words[1], 0b01 << 44 | 0b11 << 6 | 0b01 << 4 | 0b01 << 2 | 0b10);
    // S2VMID 143:128, S2T0SZ 165:160 = 24, S2SL0 167:166 = 1, IR0, OR0, SH0, S2TG 175:174, S2PS
    // 178:176, S2AA64 179, S2R 186
    let walk = 0b01 << 40 | 0b01 << 42 | 0b11 << 44;
    assert_eq!(words[2], 5 | 24 << 32 | 1 << 38 | walk | 5 << 48 | 1 << 51 | 1 << 58);
    assert_eq!(words[3..], [0x1234_0000, 0, 0, 0, 0]);
}

#[test]
fn a_context_descriptor_has_the_manuals_bits() {
    let words = descriptor().pack();
    // 5.4: T0SZ 5:0, TG0 7:6, IR0 9:8, OR0 11:10, SH0 13:12; EPD1 30, V 31, IPS 34:32, AA64 41, R
    // 45, A 46, ASID 63:48
    let lower = 16 | 0b01 << 8 | 0b01 << 10 | 0b11 << 12;
    let rest = 1 << 30 | 1 << 31 | 5 << 32 | 1 << 41 | 1 << 45 | 1 << 46 | 0x1234 << 48;
    assert_eq!(words, [lower | rest, 0x4000_0000, 0, 0xff, 0, 0, 0, 0]);
}

#[test]
fn the_upper_table_encodes_its_granule_in_its_own_way() {
    for (granule, tg0, tg1) in [(Granule::K4, 0, 2), (Granule::K16, 2, 1), (Granule::K64, 1, 3_u64)]
    {
        let table = Some(table(0x10_0000, 39, granule));
        let tables = Stage1Tables::new(table, table).unwrap();
        let both = ContextDescriptor { tables, ..descriptor() };
        let word0 = both.pack()[0];
        assert_eq!((field(word0, 6, 2), field(word0, 22, 2)), (tg0, tg1), "{granule:?}");
    }
}

#[test]
fn abort_is_every_config_without_bit_2() {
    for config in 0..4 {
        let abort = StreamEntry { vmid: 0, config: StreamConfig::Abort };
        assert_eq!(StreamEntry::unpack(&[1 | config << 1, 0, 0, 0]), Some(abort));
    }
    assert_eq!(StreamEntry::unpack(&[0, 0, 0, 0]), None);
}

/// The words of a nested entry, which hold all fields, with `bits` of `word` replaced.
fn nested_with(word: usize, first: u32, bits: u32, value: u64) -> Option<StreamEntry> {
    let config = StreamConfig::Nested { first: stage1(), second: stage2() };
    let mut words = used(&StreamEntry { vmid: 5, config }.pack());
    words[word] = words[word] & !(((1 << bits) - 1) << first) | value << first;
    StreamEntry::unpack(&words)
}

#[test]
fn illegal_stream_table_entries_are_none() {
    // 5.2.2, SteIllegal, from its top
    assert_eq!(nested_with(0, 0, 1, 0), None, "V");
    assert_eq!(nested_with(1, 27, 1, 1), None, "S1STALLD");
    assert_eq!(nested_with(0, 59, 5, 21), None, "S1CDMax");
    assert_eq!(nested_with(0, 48, 4, 1), None, "S1ContextPtr");
    assert_eq!(nested_with(2, 57, 1, 1), None, "S2S");
    assert_eq!(nested_with(2, 51, 1, 0), None, "S2AA64");
    assert_eq!(nested_with(2, 56, 1, 1), None, "S2HA");
    assert_eq!(nested_with(2, 55, 1, 1), None, "S2HD");
    assert_eq!(nested_with(2, 46, 2, 3), None, "S2TG");
    assert_eq!(nested_with(3, 48, 4, 1), None, "S2TTB");
    assert_eq!(nested_with(2, 48, 3, 0).map(|entry| entry.vmid), Some(5), "S2PS of 32 bits");
    for t0sz in (0..16).chain(40..64) {
        assert_eq!(nested_with(2, 32, 6, t0sz), None, "S2T0SZ {t0sz}");
    }
    assert_eq!(nested_with(2, 38, 2, 0), None, "S2SL0: 2 levels of 30 bits and 10 more");
    assert_eq!(nested_with(2, 38, 2, 3), None, "S2SL0: reserved");
    assert_eq!(nested_with(2, 52, 1, 1), None, "S2ENDI");
}

#[test]
fn what_is_ignored_or_behaves_as_another_value_does_so() {
    let config = StreamConfig::Nested { first: stage1(), second: stage2() };
    let entry = StreamEntry { vmid: 5, config };
    assert_eq!(nested_with(0, 52, 7, 0x7f), nested_with(0, 55, 1, 0), "above the pointer");
    assert_eq!(nested_with(1, 28, 4, 0xf), Some(entry), "EATS, STRW: not offered");
    assert_eq!(nested_with(2, 48, 3, 7), Some(entry), "S2PS beyond the output");
    assert_eq!(nested_with(3, 4, 8, 0xff), Some(entry), "S2TTB below its alignment");
    // 2^14 pointers of 8 bytes
    assert_eq!(nested_with(0, 6, 11, 0x7ff), Some(entry), "S1ContextPtr below its alignment");
    let linear = Stage1::new(PhysAddr::new(0), ContextLayout::Linear, 20, Untagged::Terminate);
    let reserved = StreamEntry::unpack(&[1 | 0b101 << 1 | 0b11 << 4 | 20 << 59, 0b11, 0, 0]);
    assert_eq!(reserved.map(|entry| entry.config), linear.map(StreamConfig::Stage1));
}

/// The descriptor's words with `bits` of `word` replaced.
fn descriptor_with(word: usize, first: u32, bits: u32, value: u64) -> Option<ContextDescriptor> {
    let mut words = used(&descriptor().pack());
    words[word] = words[word] & !(((1 << bits) - 1) << first) | value << first;
    ContextDescriptor::unpack(&words)
}

#[test]
fn illegal_context_descriptors_are_none() {
    // 5.4.2, CdIllegal, from its top
    assert_eq!(descriptor_with(0, 31, 1, 0), None, "V");
    assert_eq!(descriptor_with(0, 46, 1, 0), None, "A");
    assert_eq!(descriptor_with(0, 44, 1, 1), None, "S");
    assert_eq!(descriptor_with(0, 15, 1, 1), None, "ENDI");
    assert_eq!(descriptor_with(0, 41, 1, 0), None, "AA64");
    assert_eq!(descriptor_with(0, 43, 1, 1), None, "HA");
    assert_eq!(descriptor_with(0, 42, 1, 1), None, "HD");
    for t0sz in (0..16).chain(40..64) {
        assert_eq!(descriptor_with(0, 0, 6, t0sz), None, "T0SZ {t0sz}");
    }
    assert_eq!(descriptor_with(0, 6, 2, 3), None, "TG0");
    assert_eq!(descriptor_with(1, 48, 4, 1), None, "TTB0 beyond the output");
    assert_eq!(descriptor_with(0, 30, 1, 0), None, "TTB1 on, T1SZ 0");
}

#[test]
fn fields_of_a_table_that_is_off_are_ignored() {
    let tables = Stage1Tables::new(None, None).unwrap();
    let without = ContextDescriptor { tables, ..descriptor() };
    let mut words = used(&without.pack());
    words[0] |= 0x3fff | 1 << 15; // T0SZ to SH0; ENDI
    words[1] = u64::MAX;
    assert_eq!(ContextDescriptor::unpack(&words), Some(without));
}

#[test]
fn roots_are_aligned_to_all_tables_that_stand_side_by_side() {
    // 3 levels index 39 bits, 16 tables of 4 KiB 4 more
    let format = ArmStage2::new(Granule::K4, 3, 43, 48).unwrap();
    assert!(Stage2::new(PhysAddr::new(0x1_0000), format).is_some());
    assert_eq!(Stage2::new(PhysAddr::new(0x8000), format), None);
    assert_eq!(Stage2::new(PhysAddr::new(1 << 48), format), None);
}

#[test]
fn outputs_that_entries_cannot_say_are_in_no_table() {
    let narrow = ArmStage1::new(Granule::K4, 48, 37).unwrap();
    assert_eq!(Stage1Table::new(PhysAddr::new(0), narrow), None);
    let narrow = ArmStage2::new(Granule::K4, 3, 40, 37).unwrap();
    assert_eq!(Stage2::new(PhysAddr::new(0), narrow), None);
    // 4 KiB pages start with two levels at least
    if let Ok(short) = ArmStage2::new(Granule::K4, 1, 25, 48) {
        assert_eq!(Stage2::new(PhysAddr::new(0), short), None);
    }
    let short = Stage1Table::new(PhysAddr::new(0), ArmStage1::new(Granule::K4, 48, 32).unwrap());
    assert_eq!(Stage1Tables::new(short, Some(table(0, 48, Granule::K4))), None);
}

#[test]
fn an_address_chooses_its_table_by_its_top_bits() {
    let lower = table(0x1_0000, 39, Granule::K4);
    let upper = table(0x2_0000, 48, Granule::K64);
    let tables = Stage1Tables::new(Some(lower), Some(upper)).unwrap();
    let both = ContextDescriptor { tables, ..descriptor() };
    let chosen = |descriptor: &ContextDescriptor, iova| {
        let (table, rest) = descriptor.table_for(Iova::new(iova))?;
        Some((table.root().raw(), rest.raw()))
    };
    assert_eq!(chosen(&both, 0x7f_ffff_ffff), Some((0x1_0000, 0x7f_ffff_ffff)));
    assert_eq!(chosen(&both, 0x80_0000_0000), None);
    assert_eq!(chosen(&both, 0xffff_1234_5678_9000), Some((0x2_0000, 0x1234_5678_9000)));
    assert_eq!(chosen(&both, 0xfffe_ffff_ffff_ffff), None);
    assert_eq!(chosen(&both, 0xaa00_0000_0000_1000), None);
    let tagged = ContextDescriptor { controls: ContextControls::LOWER_TOP_BYTE_IGNORED, ..both };
    assert_eq!(chosen(&tagged, 0xaa00_0000_0000_1000), Some((0x1_0000, 0x1000)));
    assert_eq!(chosen(&tagged, 0xaaff_1234_5678_9000), None);
    let off = ContextDescriptor { tables: Stage1Tables::lower_only(lower), ..both };
    assert_eq!(chosen(&off, 0xffff_1234_5678_9000), None);
}

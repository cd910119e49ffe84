//! One suite over every format, level and leaf size, against a model that knows no tables.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod canonical;
mod entries;
mod failing;
mod marks;
mod model;
mod nested;
mod rights;
mod sequences;
mod single;
mod watched;

use viommu_pgtable::{ArmStage1, ArmStage2, Granule, VtdFirst, VtdSecond};

/// 4 KiB, 2 MiB and 1 GiB.
const ALL_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

macro_rules! suite {
    ($($name:ident: $format:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn entries_decode_to_what_they_were_made_from() {
                entries::decode_inverts_encode($format);
            }

            #[test]
            fn any_word_decodes_to_something_within_the_geometry() {
                entries::decode_is_total($format);
            }

            #[test]
            fn a_walk_over_any_bytes_reads_at_most_one_entry_a_level() {
                entries::walks_are_bounded($format);
            }

            #[test]
            fn one_leaf_of_each_size_translates_all_of_itself_and_nothing_else() {
                single::each_leaf_size($format);
            }

            #[test]
            fn a_fault_names_the_level_and_the_entry_that_ended_the_walk() {
                single::faults_at_each_level($format);
            }

            #[test]
            fn what_the_format_cannot_hold_is_refused_and_nothing_is_written() {
                single::refusals($format);
            }

            #[test]
            fn a_leaf_never_takes_the_place_of_a_table_nor_a_table_that_of_a_leaf() {
                single::no_replacement($format);
            }

            #[test]
            fn an_unmap_that_would_split_a_leaf_removes_nothing() {
                single::no_split($format);
            }

            #[test]
            fn destroying_a_full_table_gives_every_page_back() {
                single::destroy_returns_all($format);
            }

            #[test]
            fn maps_and_unmaps_agree_with_the_model() {
                sequences::agree_with_the_model($format);
            }

            #[test]
            fn running_out_of_tables_changes_nothing() {
                sequences::out_of_tables_changes_nothing($format);
            }

            #[test]
            fn an_allocation_that_fails_half_way_is_undone() {
                failing::every_failed_allocation_is_undone($format);
            }

            #[test]
            fn what_lies_in_new_tables_is_seen_all_at_once() {
                watched::new_tables_appear_whole($format);
            }

            #[test]
            fn a_reader_sees_nothing_or_whole_entries_after_every_store() {
                watched::every_state_is_consistent($format);
            }
        }
    )*};
}

suite! {
    vtd_second_39: VtdSecond::new(39, ALL_SIZES).unwrap();
    vtd_second_48: VtdSecond::new(48, ALL_SIZES).unwrap();
    vtd_second_57: VtdSecond::new(57, ALL_SIZES).unwrap();
    vtd_second_48_small_pages: VtdSecond::new(48, 1 << 12).unwrap();
    vtd_second_48_without_2_mib: VtdSecond::new(48, 1 << 12 | 1 << 30).unwrap();
    vtd_first_48: VtdFirst::new(48, ALL_SIZES).unwrap();
    vtd_first_57_without_1_gib: VtdFirst::new(57, 1 << 12 | 1 << 21).unwrap();
    vtd_first_48_write_protect: VtdFirst::new(48, ALL_SIZES).unwrap().with_write_protect(true);
    arm_stage1_4k_48: ArmStage1::new(Granule::K4, 48, 48).unwrap();
    arm_stage1_4k_39: ArmStage1::new(Granule::K4, 39, 40).unwrap();
    arm_stage1_4k_32: ArmStage1::new(Granule::K4, 32, 32).unwrap();
    arm_stage1_16k_48: ArmStage1::new(Granule::K16, 48, 48).unwrap();
    arm_stage1_16k_36: ArmStage1::new(Granule::K16, 36, 44).unwrap();
    arm_stage1_64k_48: ArmStage1::new(Granule::K64, 48, 48).unwrap();
    arm_stage1_64k_42: ArmStage1::new(Granule::K64, 42, 42).unwrap();
    arm_stage2_4k_48: ArmStage2::new(Granule::K4, 4, 48, 48).unwrap();
    arm_stage2_4k_40_two_roots: ArmStage2::new(Granule::K4, 3, 40, 40).unwrap();
    arm_stage2_4k_34_sixteen_roots: ArmStage2::new(Granule::K4, 2, 34, 48).unwrap();
    arm_stage2_16k_47: ArmStage2::new(Granule::K16, 3, 47, 48).unwrap();
    arm_stage2_16k_40_sixteen_roots: ArmStage2::new(Granule::K16, 2, 40, 44).unwrap();
    arm_stage2_64k_33_one_level: ArmStage2::new(Granule::K64, 1, 33, 48).unwrap();
    arm_stage2_64k_46_sixteen_roots: ArmStage2::new(Granule::K64, 2, 46, 48).unwrap();
    arm_stage2_64k_48: ArmStage2::new(Granule::K64, 3, 48, 48).unwrap();
}

macro_rules! nested {
    ($($name:ident: $first:expr, $second:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn two_stages_do_what_one_after_the_other_does() {
                nested::stages_combine($first, $second);
            }

            #[test]
            fn each_table_access_of_the_first_level_is_translated_by_the_second() {
                nested::each_table_access_is_translated($first, $second);
            }

            #[test]
            fn a_walk_over_any_bytes_is_bounded_by_both_levels() {
                nested::walks_are_bounded($first, $second);
            }

            #[test]
            fn no_pointer_resolves_among_the_second_levels_tables() {
                nested::no_pointer_resolves_among_the_second_levels_tables($first, $second);
            }
        }
    )*};
}

nested! {
    vtd_48_over_48: VtdFirst::new(48, ALL_SIZES).unwrap(), VtdSecond::new(48, ALL_SIZES).unwrap();
    vtd_57_over_39: VtdFirst::new(57, ALL_SIZES).unwrap(), VtdSecond::new(39, 1 << 12).unwrap();
    arm_4k_over_4k: ArmStage1::new(Granule::K4, 48, 40).unwrap(),
        ArmStage2::new(Granule::K4, 3, 40, 40).unwrap();
    arm_4k_over_64k: ArmStage1::new(Granule::K4, 39, 48).unwrap(),
        ArmStage2::new(Granule::K64, 2, 46, 48).unwrap();
    arm_64k_over_4k: ArmStage1::new(Granule::K64, 48, 48).unwrap(),
        ArmStage2::new(Granule::K4, 4, 48, 48).unwrap();
    arm_16k_over_16k: ArmStage1::new(Granule::K16, 47, 40).unwrap(),
        ArmStage2::new(Granule::K16, 2, 40, 44).unwrap();
    arm_4k_over_vtd: ArmStage1::new(Granule::K4, 39, 39).unwrap(),
        VtdSecond::new(39, ALL_SIZES).unwrap();
}

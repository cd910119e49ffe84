//! The sequences of `viommu_guest::sequences`, over the daemon's real socket, with real DMA by the DMA
//! engine of the examples: the engine itself, in a thread of this process instead of one of its own.

#[path = "../../../examples/dma-engine/device/mod.rs"]
mod device;
mod stand;
#[path = "../../../examples/support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "what is for programs and other devices")]
mod support;
mod table;

use viommu_guest::sequences;

use stand::Stand;

/// Runs one sequence; it has to see what it should.
fn passes(arch: &str, number: u8) {
    let mut stand = Stand::start(arch);
    let seen = sequences::run(number, &mut stand.bench);
    let seen = seen.unwrap_or_else(|wrong| panic!("{wrong}\n{}", stand.daemon.log()));
    assert!(!seen.is_empty());
}

macro_rules! sequences {
    ($($arch:literal: $($name:ident = $number:literal),* $(,)?;)*) => {$($(
        #[test]
        fn $name() {
            passes($arch, $number);
        }
    )*)*};
}

sequences! {
    "vtd":
        vtd_1_two_domains_behind_chosen_pasids = 1,
        vtd_2_one_iova_in_two_domains = 2,
        vtd_3_each_domain_has_its_own_second_level = 3,
        vtd_4_one_second_level_serves_all_pasids = 4,
        vtd_5_a_shared_table_changes_under_way = 5,
        vtd_6_a_replacement_under_load_is_never_stale = 6,
        vtd_7_a_private_pasid_is_mapped_and_unmapped = 7,
        vtd_8_malformed_tables_fault = 8;
    "smmuv3":
        smmuv3_1_two_domains_behind_chosen_pasids = 1,
        smmuv3_2_one_iova_in_two_domains = 2,
        smmuv3_3_a_second_second_level_is_refused = 3,
        smmuv3_4_one_second_level_serves_all_pasids = 4,
        smmuv3_5_a_shared_table_changes_under_way = 5,
        smmuv3_6_a_replacement_under_load_is_never_stale = 6,
        smmuv3_7_a_private_pasid_is_mapped_and_unmapped = 7,
        smmuv3_8_malformed_tables_fault = 8;
}

/// All of them on one daemon, one after the other: none leaves anything behind that another one meets.
#[test]
fn sequences_leave_nothing_behind() {
    for arch in ["vtd", "smmuv3"] {
        let mut stand = Stand::start(arch);
        for sequence in sequences::SEQUENCES.iter().chain(&sequences::SEQUENCES) {
            let seen = sequences::run(sequence.number, &mut stand.bench);
            assert!(seen.is_ok(), "{arch}, {}: {seen:?}", sequence.title);
        }
    }
}

//! Endpoints that have one second level for all of their traffic, and those that have one for each
//! PASID (AX42 to AX44).

use super::wire::{IDENTITY_S2, PARENT};
use super::*;
use crate::support::wire::{UNSUPP, attach as attach_untagged};

/// What is answered where second levels differ.
const fn if_own(arch: Arch) -> Status {
    match arch {
        Arch::Vtd => OK,
        Arch::Smmu => UNSUPP,
    }
}

#[test]
fn ax42_ax43_second_levels_of_one_endpoint_differ_only_where_each_pasid_has_its_own() {
    enabled_in_both(|mut rig| {
        let expected = if_own(rig.arch);
        for parent in [7, 8] {
            assert_eq!(rig.guest.attach(parent, if parent == 7 { PLAIN } else { SECOND }), OK);
        }
        assert_eq!((rig.bind(1, PARENT, 7), rig.bind(2, PARENT, 7)), (OK, OK));
        assert_eq!((rig.bind(3, PARENT, 8), rig.bind(4, IDENTITY_S2, 0)), (OK, OK));
        assert_eq!((rig.attach(1, ENDPOINT, 1), rig.attach(2, ENDPOINT, 2)), (OK, OK));
        assert_eq!(rig.attach(3, ENDPOINT, 3), expected, "another parent");
        assert_eq!(rig.attach(4, ENDPOINT, 3), expected, "no second level");
        assert_eq!(rig.attach(5, ENDPOINT, 3), expected, "mappings alone");
        assert_eq!(rig.guest.attach(7, ENDPOINT), OK, "the second level itself, untagged");
        assert_eq!(rig.attach(7, ENDPOINT, 3), expected, "the second level itself, tagged");
    });
}

#[test]
fn ax42_without_a_second_level_tables_and_mappings_stand_side_by_side() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.bind(1, IDENTITY_S2, 0), OK);
        assert_eq!((rig.attach(1, ENDPOINT, 1), rig.attach(2, ENDPOINT, 2)), (OK, OK));
        assert_eq!(rig.guest.attach(3, ENDPOINT), OK);
        assert_eq!((rig.map(2, 0x1000, 0x5000), rig.map(3, 0x1000, 0x6000)), (OK, OK));
        assert_eq!((rig.page(2, 0x1000), rig.page(0, 0x1000)), (Ok(0x5000), Ok(0x6000)));
        assert_eq!(rig.bind(4, PARENT, 4), OK);
        assert_eq!(rig.attach(4, ENDPOINT, 3), if_own(rig.arch));
    });
}

#[test]
fn ax42_a_table_is_bound_under_an_attachment_only_if_the_others_agree() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 1), OK);
        assert_eq!(rig.bind(1, PARENT, 1), OK, "it is alone");
        rig.ok(&wire::unbind(1));
        assert_eq!(rig.attach(2, ENDPOINT, 2), OK);
        assert_eq!(rig.bind(1, PARENT, 1), if_own(rig.arch));
    });
}

#[test]
fn ax42_a_bypass_domain_has_no_second_level() {
    enabled_in_both(|mut rig| {
        rig.ok(&attach_untagged(8, ENDPOINT, 1));
        assert_eq!(rig.bind(1, PARENT, 1), OK);
        assert_eq!(rig.attach(1, ENDPOINT, 1), if_own(rig.arch));
        assert_eq!(rig.guest.detach(8, ENDPOINT), OK);
        assert_eq!(rig.attach(1, ENDPOINT, 1), OK);
        let bypass = rig.send(&attach_untagged(8, ENDPOINT, 1));
        assert_eq!(bypass, if_own(rig.arch));
    });
}

#[test]
fn ax44_untagged_dma_bypasses_no_second_level_that_pasids_go_through() {
    enabled_in_both(|mut rig| {
        rig.guest.vmm.write_bypass(1).unwrap();
        assert_eq!(rig.page(0, 0x1000), Ok(0x1000));
        assert_eq!(rig.bind(1, PARENT, 1), OK);
        assert_eq!(rig.attach(1, ENDPOINT, 1), OK);
        let beside = if rig.arch == Arch::Vtd { Ok(0x1000) } else { NOT_ATTACHED };
        assert_eq!(rig.page(0, 0x1000), beside);
        rig.ok(&wire::detach(1, ENDPOINT, 1));
        assert_eq!(rig.page(0, 0x1000), Ok(0x1000), "it bypasses again");
    });
}

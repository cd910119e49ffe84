//! BIND_TABLE, UNBIND_TABLE, INVALIDATE (AX24 to AX39); what DMA meets in bound tables is shown by
//! the sequences.

use super::wire::{IDENTITY_S2, NESTED, PARENT, Table};
use super::*;
use crate::support::wire::{INVAL, NOENT, RANGE, UNSUPP, attach as attach_untagged};

/// Flag of ATTACH.
const BYPASS: u32 = 1;

#[test]
fn ax24_a_bind_names_one_output_and_arguments_that_the_format_has() {
    in_both(|mut rig| {
        let good = rig.arch.table(0x7000);
        for (flags, parent) in
            [(0, 0), (3, 1), (4, 0), (1 << 31 | IDENTITY_S2, 0), (IDENTITY_S2, 9)]
        {
            assert_eq!(rig.send(&wire::bind(1, good, flags, parent)), INVAL, "{flags:#x} {parent}");
        }
        let [arg0, arg1] = good.arguments;
        let wrong = match rig.arch {
            // more than the number of levels
            Arch::Vtd => [[2, 0], [1 << 63, 0], [0, 1]],
            // EPD1 clear; an ASID; a T0SZ of no input
            Arch::Smmu => [[arg0 & !(1 << 23), arg1], [arg0 | 1 << 36, arg1], [arg0 & !0x3f, arg1]],
        };
        for arguments in wrong {
            let table = Table { arguments, ..good };
            let status = rig.send(&wire::bind(1, table, IDENTITY_S2, 0));
            assert_eq!(status, INVAL, "{arguments:x?}");
        }
        rig.ok(&wire::bind(1, good, IDENTITY_S2, 0));
    });
}

#[test]
fn ax25_a_bind_makes_its_domain_and_needs_its_parent() {
    in_both(|mut rig| {
        assert_eq!(rig.bind(1, PARENT, 9), NOENT);
        assert_eq!(rig.value(1, 0, NESTED), Err(NOENT), "no domain was made");
        assert_eq!(rig.bind(1, PARENT, 1), OK, "its own parent");
        assert_eq!(rig.bind(2, IDENTITY_S2, 0), OK);
        assert_eq!(rig.guest.attach(9, PLAIN), OK);
        assert_eq!(rig.bind(3, PARENT, 9), OK);
    });
}

#[test]
fn ax26_a_format_that_nobody_offers_is_unsupp() {
    in_both(|mut rig| {
        let good = rig.arch.table(0x7000);
        let other = if rig.arch == Arch::Vtd { Arch::Smmu } else { Arch::Vtd };
        for table in [other.table(0x7000), Table { format: 3, ..good }, Table { format: 9, ..good }]
        {
            assert_eq!(rig.send(&wire::bind(1, table, IDENTITY_S2, 0)), UNSUPP, "{table:x?}");
        }
        if rig.arch == Arch::Vtd {
            let five_levels = Table { arguments: [1, 0], ..good };
            assert_eq!(rig.send(&wire::bind(1, five_levels, IDENTITY_S2, 0)), UNSUPP);
        }
    });
}

#[test]
fn ax27_what_a_domain_is_rules_out_tables() {
    in_both(|mut rig| {
        rig.ok(&attach_untagged(8, PLAIN, BYPASS));
        assert_eq!(rig.guest.attach(7, SECOND), OK);
        assert_eq!(rig.map(7, 0x1000, 0x5000), OK);
        assert_eq!(rig.bind(1, IDENTITY_S2, 0), OK);
        assert_eq!(rig.bind(2, PARENT, 7), OK);
        assert_eq!(rig.bind(8, IDENTITY_S2, 0), INVAL, "a bypass domain");
        assert_eq!(rig.bind(3, PARENT, 8), INVAL, "a parent that is a bypass domain");
        assert_eq!(rig.bind(1, IDENTITY_S2, 0), INVAL, "bound already");
        assert_eq!(rig.bind(3, PARENT, 1), INVAL, "a parent that is bound");
        assert_eq!(rig.bind(7, IDENTITY_S2, 0), INVAL, "mappings that would mean nothing");
        assert_eq!(rig.bind(7, PARENT, 7), INVAL, "a parent of another");
    });
}

#[test]
fn ax28_a_root_is_aligned_and_within_the_output_but_need_not_be_memory() {
    in_both(|mut rig| {
        let bind = |rig: &mut Rig, domain, root| {
            let table = rig.arch.table(root);
            rig.send(&wire::bind(domain, table, IDENTITY_S2, 0))
        };
        for root in [1, 0x800, 1 << 56, u64::MAX, !0xfff] {
            assert_eq!(bind(&mut rig, 1, root), RANGE, "{root:#x}");
        }
        // past the guest's 64 MiB: no error before an access
        assert_eq!(bind(&mut rig, 1, 1 << 32), OK);
        rig.ok(&wire::enable(ENDPOINT));
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert!(rig.page(3, 0x1000).is_err());
    });
}

#[test]
fn ax30_mappings_change_only_where_they_translate() {
    in_both(|mut rig| {
        assert_eq!(rig.guest.attach(9, PLAIN), OK);
        assert_eq!(rig.bind(1, IDENTITY_S2, 0), OK);
        assert_eq!(rig.bind(2, PARENT, 9), OK);
        assert_eq!(rig.bind(3, PARENT, 3), OK);
        for (domain, expected) in [(1, INVAL), (2, INVAL), (3, OK), (9, OK)] {
            assert_eq!(rig.map(domain, 0x1000, 0x5000), expected, "MAP on {domain}");
            assert_eq!(rig.guest.unmap(domain, 0x1000, 0x1fff), expected, "UNMAP on {domain}");
        }
    });
}

#[test]
fn ax34_ax39_an_unbind_needs_a_table_and_nobody_attached_whose_mappings_it_would_uncover() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.send(&wire::unbind(1)), NOENT);
        assert_eq!(rig.guest.attach(1, PLAIN), OK);
        assert_eq!(rig.send(&wire::unbind(1)), INVAL, "nothing is bound");
        assert_eq!(rig.bind(2, IDENTITY_S2, 0), OK);
        assert_eq!(rig.attach(2, ENDPOINT, 3), OK);
        assert_eq!(rig.send(&wire::unbind(2)), INVAL, "attached");
        rig.ok(&wire::detach(2, ENDPOINT, 3));
        assert_eq!(rig.value(2, 0, NESTED), Ok(3), "it lives by its table");
        rig.ok(&wire::unbind(2));
        assert_eq!(rig.send(&wire::unbind(2)), NOENT, "the table was its last use");
    });
}

#[test]
fn ax35_a_domain_that_was_its_own_parent_goes_on_by_its_mappings_alone() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.bind(1, PARENT, 1), OK);
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.map(1, 0x1000, 0x5000), OK);
        assert!(rig.page(3, 0x1000).is_err(), "the table is no table");
        rig.ok(&wire::unbind(1));
        assert_eq!(rig.page(3, 0x1000), Ok(0x5000));
        assert_eq!(rig.value(1, 0, NESTED), Ok(0));
    });
}

#[test]
fn ax36_an_invalidation_needs_a_bound_domain_and_a_scope_that_exists() {
    in_both(|mut rig| {
        assert_eq!(rig.bind(1, IDENTITY_S2, 0), OK);
        assert_eq!(rig.guest.attach(2, PLAIN), OK);
        for scope in 0..4 {
            assert_eq!(rig.send(&wire::invalidate(1, scope, 0, u64::MAX)), OK, "scope {scope}");
            assert_eq!(rig.send(&wire::invalidate(1, scope, 1, 0)), INVAL, "scope {scope}");
            assert_eq!(rig.send(&wire::invalidate(2, scope, 0, 0)), INVAL, "nothing is bound");
            assert_eq!(rig.send(&wire::invalidate(3, scope, 0, 0)), NOENT, "no such domain");
        }
        assert_eq!(rig.send(&wire::invalidate(1, 4, 0, 0)), INVAL);
        for bit in 0..16 {
            let mut request = wire::invalidate(1, 0, 0, 0);
            request[6..8].copy_from_slice(&(1_u16 << bit).to_le_bytes());
            assert_eq!(rig.send(&request), if bit < 3 { OK } else { INVAL }, "flag {bit}");
        }
    });
}

#[test]
fn ax33_untagged_traffic_goes_through_a_bound_table_too() {
    in_both(|mut rig| {
        assert_eq!(rig.guest.attach(1, ENDPOINT), OK);
        assert_eq!(rig.bind(1, PARENT, 1), OK, "while it is attached");
        assert_eq!(rig.map(1, 0x1000, 0x5000), OK);
        assert!(rig.page(0, 0x1000).is_err(), "the table is no table");
        assert_eq!(rig.bind(2, IDENTITY_S2, 0), OK);
        assert_eq!(rig.guest.attach(2, SECOND), OK);
        assert!(page(&rig.devices[1], 0, 0x1000).is_err());
        rig.ok(&wire::unbind(1));
        assert_eq!(rig.page(0, 0x1000), Ok(0x5000));
    });
}

#[test]
fn ax39_a_parent_lives_as_long_as_its_children() {
    in_both(|mut rig| {
        assert_eq!(rig.guest.attach(9, PLAIN), OK);
        assert_eq!((rig.bind(1, PARENT, 9), rig.bind(2, PARENT, 9)), (OK, OK));
        assert_eq!(rig.guest.detach(9, PLAIN), OK);
        rig.ok(&wire::unbind(1));
        assert_eq!(rig.map(9, 0x1000, 0x5000), OK, "domain 2 is left");
        rig.ok(&wire::unbind(2));
        assert_eq!(rig.map(9, 0x2000, 0x5000), NOENT, "its mappings have ended with it");
    });
}

//! AUX_ENABLE to GET_ATTR (AX8 to AX23).

use super::wire::{AUX_CAPABLE, AUX_ENABLED, AUX_ID, AUX_MAX, NESTED};
use super::*;
use crate::support::wire::{INVAL, NOENT, NOMEM, UNSUPP, attach as attach_untagged};

/// Flag of ATTACH.
const BYPASS: u32 = 1;

#[test]
fn ax8_only_an_endpoint_with_pasids_is_enabled_and_disabled() {
    in_both(|mut rig| {
        for request in [wire::enable, wire::disable] {
            assert_eq!(rig.send(&request(NOBODY)), NOENT);
            assert_eq!(rig.send(&request(PLAIN)), UNSUPP);
        }
        rig.ok(&wire::enable(ENDPOINT));
        rig.ok(&wire::disable(ENDPOINT));
    });
}

#[test]
fn ax9_aux_is_enabled_once_and_disabled_when_no_pasid_is_attached() {
    in_both(|mut rig| {
        assert_eq!(rig.send(&wire::disable(ENDPOINT)), INVAL);
        rig.ok(&wire::enable(ENDPOINT));
        assert_eq!(rig.send(&wire::enable(ENDPOINT)), INVAL);
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.send(&wire::disable(ENDPOINT)), INVAL);
        rig.ok(&wire::detach(1, ENDPOINT, 3));
        rig.ok(&wire::disable(ENDPOINT));
    });
}

#[test]
fn ax10_dma_tagged_with_a_pasid_goes_through_its_domain_and_no_other_does() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK, "the domain is made");
        assert_eq!(rig.attach(2, ENDPOINT, 5), OK);
        assert_eq!(rig.guest.attach(7, ENDPOINT), OK);
        for (domain, to) in [(1, 0x5000), (2, 0x6000), (7, 0x8000)] {
            assert_eq!(rig.map(domain, 0x1000, to), OK);
        }
        let pages = [3, 5, 0].map(|pasid| rig.page(pasid, 0x1000));
        assert_eq!(pages, [Ok(0x5000), Ok(0x6000), Ok(0x8000)]);
        assert_eq!(rig.guest.unmap(1, 0x1000, 0x1fff), OK);
        let pages = [3, 5, 0].map(|pasid| rig.page(pasid, 0x1000));
        assert_eq!(pages, [UNMAPPED, Ok(0x6000), Ok(0x8000)]);
    });
}

#[test]
fn ax11_the_device_chooses_a_free_pasid_also_for_a_domain_that_has_one() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 2), OK);
        let mut chosen = [1, 1, 2].map(|domain| rig.attach_any(domain, ENDPOINT).unwrap());
        chosen.sort_unstable();
        assert!(chosen.windows(2).all(|pair| pair[0] != pair[1]) && !chosen.contains(&2));
        assert!(chosen.iter().all(|pasid| (1..1 << PASID_BITS).contains(pasid)));
        assert_eq!(rig.map(1, 0x1000, 0x5000), OK);
        let reached = chosen.iter().filter(|pasid| rig.page(**pasid, 0x1000) == Ok(0x5000));
        assert_eq!(reached.count(), 2);
    });
}

#[test]
fn ax12_pasid_0_cannot_be_attached_and_a_pasid_without_a_domain_reaches_nothing() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 0), INVAL);
        rig.guest.vmm.write_bypass(1).unwrap();
        assert_eq!(rig.page(0, 0x1000), Ok(0x1000), "untagged DMA bypasses");
        assert_eq!(rig.page(3, 0x1000), NOT_ATTACHED, "tagged DMA never does");
        assert_eq!(rig.page(1 << PASID_BITS, 0x1000), NOT_ATTACHED, "nor with a PASID too wide");
    });
}

#[test]
fn ax13_unknown_flags_are_refused_and_page_requests_where_there_are_none() {
    enabled_in_both(|mut rig| {
        for bit in 1..32 {
            assert_eq!(rig.send(&wire::attach(1, ENDPOINT, 1, 1 << bit)), INVAL, "flag {bit}");
        }
        assert_eq!(rig.send(&wire::attach(1, ENDPOINT, 1, 1)), UNSUPP);
    });
}

#[test]
fn ax14_the_endpoint_has_to_be_enabled_the_pasid_to_fit_and_the_domain_to_translate() {
    in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), INVAL, "not enabled");
        assert_eq!(rig.attach_any(1, ENDPOINT), Err(INVAL));
        rig.ok(&wire::enable(ENDPOINT));
        assert_eq!(rig.attach(1, ENDPOINT, 1 << PASID_BITS), INVAL, "too wide");
        assert_eq!(rig.attach(1, ENDPOINT, 0x10_0000), INVAL, "no PASID has 21 bits");
        rig.ok(&attach_untagged(8, PLAIN, BYPASS));
        assert_eq!(rig.attach(8, ENDPOINT, 3), INVAL, "a bypass domain");
        assert_eq!(rig.attach(1, ENDPOINT, (1 << PASID_BITS) - 1), OK);
    });
}

#[test]
fn ax15_a_replacement_leads_elsewhere_and_a_refused_one_changes_nothing() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.attach(2, ENDPOINT, 4), OK);
        assert_eq!((rig.map(1, 0x1000, 0x5000), rig.map(2, 0x1000, 0x6000)), (OK, OK));
        rig.ok(&attach_untagged(8, PLAIN, BYPASS));
        assert_eq!(rig.attach(8, ENDPOINT, 3), INVAL);
        assert_eq!(rig.page(3, 0x1000), Ok(0x5000));
        assert_eq!(rig.attach(2, ENDPOINT, 3), OK);
        assert_eq!((rig.page(3, 0x1000), rig.page(4, 0x1000)), (Ok(0x6000), Ok(0x6000)));
        assert_eq!(rig.map(1, 0x2000, 0x5000), NOENT, "domain 1 has lost its last attachment");
    });
}

#[test]
fn ax16_the_same_attachment_again_is_ok_and_changes_nothing() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.map(1, 0x1000, 0x5000), OK);
        let again = rig.answer(&wire::attach(1, ENDPOINT, 3, 0));
        assert_eq!(again, (OK, vec![3, 0, 0, 0, 0, 0, 0, 0]));
        assert_eq!(rig.page(3, 0x1000), Ok(0x5000));
        rig.ok(&wire::detach(1, ENDPOINT, 3));
        assert_eq!(rig.map(1, 0x2000, 0x5000), NOENT, "one AUX_DETACH undoes both");
    });
}

#[test]
fn ax17_no_mapping_meets_the_reserved_memory_of_an_endpoint_with_a_pasid_in_the_domain() {
    enabled_in_both(|mut rig| {
        let msi = 0xfee0_0000;
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.map(1, msi, 0x5000), INVAL);
        // where no endpoint is in the domain, nothing is reserved in it
        assert_eq!(rig.bind(2, wire::PARENT, 2), OK);
        assert_eq!(rig.map(2, msi, 0x5000), OK);
        assert_eq!(rig.attach(2, SECOND, 4), UNSUPP);
        assert_eq!(rig.guest.unmap(2, msi, msi | 0xfff), OK);
        assert_eq!(rig.attach(2, SECOND, 4), OK);
    });
}

#[test]
fn ax18_without_a_free_pasid_or_room_for_a_domain_there_is_nomem() {
    for arch in [Arch::Vtd, Arch::Smmu] {
        let mut rig = Rig::start(arch, &["--max-domains", "2"]);
        rig.ok(&wire::enable(ENDPOINT));
        for number in 1..1 << PASID_BITS {
            assert_eq!(rig.attach_any(1, ENDPOINT), Ok(number));
        }
        assert_eq!(rig.attach_any(1, ENDPOINT), Err(NOMEM));
        assert_eq!(rig.attach(2, ENDPOINT, 1), OK);
        assert_eq!(rig.attach(3, ENDPOINT, 2), NOMEM, "a third domain");
        assert_eq!(rig.attach(3, ENDPOINT, 1), OK, "in the place of one that ends");
    }
}

#[test]
fn ax19_one_domain_serves_pasids_and_untagged_traffic_of_several_endpoints() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.attach(1, ENDPOINT, 9), OK);
        assert_eq!(rig.attach(1, SECOND, 3), OK);
        assert_eq!(rig.guest.attach(1, SECOND), OK);
        let reached = |rig: &Rig| {
            let [first, second] = &rig.devices;
            [(first, 3), (first, 9), (second, 3), (second, 0)]
                .map(|(dma, pasid)| page(dma, pasid, 0x1000))
        };
        assert_eq!(rig.map(1, 0x1000, 0x5000), OK);
        assert_eq!(reached(&rig), [Ok(0x5000); 4]);
        assert_eq!(rig.guest.unmap(1, 0x1000, 0x1fff), OK);
        assert_eq!(reached(&rig), [UNMAPPED; 4]);
    });
}

#[test]
fn ax20_a_detach_names_what_is_attached() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.attach(2, ENDPOINT, 4), OK);
        for wrong in [0, wire::PASID_ANY] {
            assert_eq!(rig.send(&wire::detach(1, ENDPOINT, wrong)), INVAL);
        }
        assert_eq!(rig.send(&wire::detach(1, NOBODY, 3)), NOENT);
        assert_eq!(rig.send(&wire::detach(9, ENDPOINT, 3)), NOENT, "no such domain");
        for free in [5, 1 << PASID_BITS, 0x10_0000] {
            assert_eq!(rig.send(&wire::detach(1, ENDPOINT, free)), NOENT, "{free} is free");
        }
        assert_eq!(rig.send(&wire::detach(1, SECOND, 3)), NOENT, "another endpoint's");
        assert_eq!(rig.send(&wire::detach(2, ENDPOINT, 3)), INVAL, "in another domain");
        rig.ok(&wire::detach(1, ENDPOINT, 3));
        assert_eq!(rig.send(&wire::detach(2, ENDPOINT, 3)), NOENT);
    });
}

#[test]
fn ax21_a_detached_pasid_reaches_nothing_and_is_free_again() {
    enabled_in_both(|mut rig| {
        let pasid = rig.attach_any(1, ENDPOINT).unwrap();
        assert_eq!(rig.attach(1, ENDPOINT, 9), OK);
        assert_eq!(rig.map(1, 0x1000, 0x5000), OK);
        assert_eq!(rig.page(pasid, 0x1000), Ok(0x5000));
        rig.ok(&wire::detach(1, ENDPOINT, pasid));
        assert_eq!((rig.page(pasid, 0x1000), rig.page(9, 0x1000)), (NOT_ATTACHED, Ok(0x5000)));
        assert_eq!(rig.attach_any(2, ENDPOINT), Ok(pasid));
        assert_eq!(rig.page(pasid, 0x1000), UNMAPPED, "nothing of domain 1 is left in it");
    });
}

#[test]
fn ax21_within_one_batch_a_detached_pasid_is_not_chosen_again() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach_any(1, ENDPOINT), Ok(1));
        let guest = &mut rig.guest;
        guest.queue_request(0, &wire::detach(1, ENDPOINT, 1), 4);
        guest.queue_request(1, &wire::attach(1, ENDPOINT, wire::PASID_ANY, 0), 12);
        guest.requests.notify();
        guest.requests.wait_used();
        guest.requests.wait_used();
        let answer = guest.read_answer(1, 12);
        assert_eq!(answer, [2, 0, 0, 0, 0, 0, 0, 0, OK, 0, 0, 0], "1 may still be in use");
        assert_eq!(rig.attach_any(1, ENDPOINT), Ok(1), "the batch is over");
    });
}

#[test]
fn ax22_attributes_tell_what_requests_have_made() {
    in_both(|mut rig| {
        let of = |rig: &mut Rig, endpoint| {
            [AUX_CAPABLE, AUX_ENABLED, AUX_MAX].map(|attr| rig.value(0xffff, endpoint, attr))
        };
        assert_eq!(of(&mut rig, ENDPOINT), [Ok(1), Ok(0), Ok(15)]);
        assert_eq!(of(&mut rig, PLAIN), [Ok(0), Ok(0), Ok(0)]);
        rig.ok(&wire::enable(ENDPOINT));
        assert_eq!(rig.value(0, ENDPOINT, AUX_ENABLED), Ok(1));
        assert_eq!((rig.attach(1, ENDPOINT, 9), rig.attach(1, ENDPOINT, 4)), (OK, OK));
        assert_eq!(rig.value(1, ENDPOINT, AUX_ID), Ok(4), "the lowest");
        assert_eq!(rig.bind(2, wire::IDENTITY_S2, 0), OK);
        assert_eq!(rig.bind(3, wire::PARENT, 3), OK);
        assert_eq!(rig.bind(4, wire::PARENT, 1), OK);
        let nested = [1, 3, 4, 2].map(|domain| rig.value(domain, NOBODY, NESTED));
        assert_eq!(nested, [Ok(0), Ok(1), Ok(2), Ok(3)]);
    });
}

#[test]
fn ax23_what_has_no_such_attribute_is_noent_and_an_unknown_one_inval() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        for attr in [AUX_CAPABLE, AUX_ENABLED, AUX_ID, AUX_MAX] {
            assert_eq!(rig.value(1, NOBODY, attr), Err(NOENT), "{attr}");
        }
        for attr in [AUX_ID, NESTED] {
            assert_eq!(rig.value(9, ENDPOINT, attr), Err(NOENT), "{attr}");
        }
        assert_eq!(rig.value(1, SECOND, AUX_ID), Err(NOENT), "not attached there");
        for attr in [0, 6, 0xffff] {
            assert_eq!(rig.value(1, ENDPOINT, attr), Err(INVAL), "{attr}");
        }
    });
}

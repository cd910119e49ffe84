//! ATTACH and DETACH between two endpoints: who is in which domain, and what it reaches there
//! (virtio 1.4, 5.13.6.3 and 5.13.6.4).

use super::{NOBODY, NOT_ATTACHED, SECOND, UNMAPPED, pair};
use crate::support::guest::ENDPOINT;
use crate::support::wire::{self, BYPASS, INVAL, NOENT, OK, READ};

#[test]
fn a4_endpoints_of_a_domain_reach_the_same_mappings() {
    let (_daemon, mut guest, [first, second]) = pair();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    assert_eq!(second.page(0x1000), Ok(0x1000), "in bypass, for it is in no domain");
    assert_eq!(guest.attach(1, SECOND), OK);
    assert_eq!(guest.map(1, 0x2000, 0x2fff, 0x9000, READ), OK);
    for dma in [&first, &second] {
        assert_eq!(dma.page(0x1000), Ok(0x5000), "mapped before the second came");
        assert_eq!(dma.page(0x2000), Ok(0x9000));
    }
    assert_eq!(guest.unmap(1, 0x1000, 0x1fff), OK);
    for dma in [&first, &second] {
        assert_eq!(dma.page(0x1000), UNMAPPED);
    }
}

#[test]
fn a4_a_bypass_domain_takes_several_endpoints() {
    let (_daemon, mut guest, [first, second]) = pair();
    guest.vmm.write_bypass(0).unwrap();
    for endpoint in [ENDPOINT, SECOND] {
        assert_eq!(guest.send(&wire::attach(7, endpoint, BYPASS), 4).status(), OK);
    }
    assert_eq!((first.page(0x1000), second.page(0x1000)), (Ok(0x1000), Ok(0x1000)));
}

#[test]
fn a5_a_flag_that_contradicts_the_domain_leaves_the_endpoint_where_it_is() {
    let (_daemon, mut guest, [first, second]) = pair();
    guest.vmm.write_bypass(0).unwrap();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    assert_eq!(guest.send(&wire::attach(1, SECOND, BYPASS), 4).status(), INVAL);
    assert_eq!(second.page(0x1000), NOT_ATTACHED);
    assert_eq!(guest.send(&wire::attach(2, SECOND, BYPASS), 4).status(), OK);
    assert_eq!(guest.attach(2, ENDPOINT), INVAL, "domain 2 is a bypass domain");
    assert_eq!((first.page(0x1000), second.page(0x1000)), (Ok(0x5000), Ok(0x1000)));
}

#[test]
fn a6_an_endpoint_that_is_attached_elsewhere_leaves_its_domain_to_the_others() {
    let (_daemon, mut guest, [first, second]) = pair();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.attach(1, SECOND), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    assert_eq!(guest.attach(2, ENDPOINT), OK, "no DETACH, as Linux does it");
    assert_eq!((first.page(0x1000), second.page(0x1000)), (UNMAPPED, Ok(0x5000)));
    assert_eq!(guest.map(2, 0x1000, 0x1fff, 0x7000, READ), OK);
    assert_eq!((first.page(0x1000), second.page(0x1000)), (Ok(0x7000), Ok(0x5000)));
    assert_eq!(guest.detach(1, ENDPOINT), INVAL, "it has left domain 1");
}

#[test]
fn d1_reserved_bytes_do_not_keep_an_endpoint_attached() {
    let (_daemon, mut guest, [first, _]) = pair();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(first.page(0x1000), UNMAPPED);
    let mut request = wire::detach(1, ENDPOINT);
    request[12..20].fill(0xff);
    assert_eq!(guest.send(&request, 4).status(), OK);
    assert_eq!(first.page(0x1000), Ok(0x1000), "in bypass again");
}

#[test]
fn d2_d3_a_detach_that_is_refused_takes_nobody_out() {
    let (_daemon, mut guest, [first, second]) = pair();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.attach(2, SECOND), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    assert_eq!(guest.detach(1, NOBODY), NOENT);
    assert_eq!(guest.detach(9, ENDPOINT), INVAL, "no such domain");
    assert_eq!(guest.detach(2, ENDPOINT), INVAL, "another's domain");
    assert_eq!(guest.detach(1, SECOND), INVAL, "another's domain");
    assert_eq!((first.page(0x1000), second.page(0x1000)), (Ok(0x5000), UNMAPPED));
}

#[test]
fn d3_linux_releases_an_identity_endpoint_by_a_detach_from_domain_0() {
    let (_daemon, mut guest, [first, _]) = pair();
    guest.vmm.write_bypass(0).unwrap();
    let identity = guest.vmm.config().domain_start;
    assert_eq!(guest.send(&wire::attach(identity, ENDPOINT, BYPASS), 4).status(), OK);
    assert_eq!(first.page(0x1000), Ok(0x1000));
    assert_eq!(guest.detach(0, ENDPOINT), OK);
    assert_eq!(first.page(0x1000), NOT_ATTACHED);
}

#[test]
fn d4_a_detached_endpoint_reaches_no_mapping_and_the_last_one_ends_the_domain() {
    let (_daemon, mut guest, [first, second]) = pair();
    guest.vmm.write_bypass(0).unwrap();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.attach(1, SECOND), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    assert_eq!(guest.detach(1, ENDPOINT), OK);
    assert_eq!((first.page(0x1000), second.page(0x1000)), (NOT_ATTACHED, Ok(0x5000)));
    assert_eq!(guest.detach(1, SECOND), OK);
    assert_eq!(second.page(0x1000), NOT_ATTACHED);
    assert_eq!(guest.unmap(1, 0x1000, 0x1fff), NOENT, "the domain has ended");
    assert_eq!(guest.attach(1, SECOND), OK);
    assert_eq!(second.page(0x1000), UNMAPPED, "its mappings with it");
}

//! ATTACH of one endpoint: what is refused, and that a refusal changes nothing (virtio 1.4,
//! 5.13.6.3).

use super::{NOBODY, NOT_ATTACHED, UNMAPPED};
use crate::support::daemon::Daemon;
use crate::support::device::Dma;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::LINUX_FEATURES;
use crate::support::wire::{self, BYPASS, INVAL, NOENT, OK, READ};

/// A guest whose endpoint is attached to nothing and reaches nothing.
fn blocked(daemon: &Daemon) -> (Guest, Dma) {
    let mut guest = Guest::start(daemon);
    guest.vmm.write_bypass(0).unwrap();
    (guest, Dma::connect(daemon))
}

/// No ATTACH of domain 1 has taken effect.
fn assert_unattached(guest: &mut Guest, dma: &Dma) {
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0, READ), NOENT, "domain 1 was not made");
    assert_eq!(dma.page(0x1000), NOT_ATTACHED);
}

#[test]
fn a1_any_reserved_byte_refuses_the_attach() {
    let daemon = Daemon::start();
    let (mut guest, dma) = blocked(&daemon);
    for at in 16..20 {
        let mut request = wire::attach(1, ENDPOINT, 0);
        request[at] = 0x80;
        assert_eq!(guest.send(&request, 4).status(), INVAL, "byte {at}");
    }
    assert_unattached(&mut guest, &dma);
}

#[test]
fn a2_any_unknown_flag_refuses_the_attach() {
    let daemon = Daemon::start();
    let (mut guest, dma) = blocked(&daemon);
    for bit in 1..32 {
        for flags in [1 << bit, 1 << bit | BYPASS] {
            let request = wire::attach(1, ENDPOINT, flags);
            assert_eq!(guest.send(&request, 4).status(), INVAL, "flags {flags:#x}");
        }
    }
    assert_unattached(&mut guest, &dma);
}

#[test]
fn a2_bypass_is_an_unknown_flag_to_a_driver_without_bypass_config() {
    let daemon = Daemon::with(&["--boot-bypass", "off"]);
    let mut guest = Guest::with_features(&daemon, LINUX_FEATURES & !(1 << 6));
    let dma = Dma::connect(&daemon);
    assert_eq!(guest.send(&wire::attach(1, ENDPOINT, BYPASS), 4).status(), INVAL);
    assert_unattached(&mut guest, &dma);
}

#[test]
fn a3_an_attach_of_an_unknown_endpoint_makes_no_domain() {
    let daemon = Daemon::start();
    let (mut guest, dma) = blocked(&daemon);
    for unknown in [0, ENDPOINT - 1, ENDPOINT + 1, 1 << 16 | ENDPOINT, NOBODY, u32::MAX] {
        assert_eq!(guest.attach(1, unknown), NOENT, "{unknown:#x}");
    }
    assert_unattached(&mut guest, &dma);
}

#[test]
fn a8_an_attach_makes_the_domain_whatever_its_number() {
    let daemon = Daemon::start();
    let (mut guest, dma) = blocked(&daemon);
    for domain in [0, 1, 0x8000_0000, u32::MAX] {
        assert_eq!(guest.attach(domain, ENDPOINT), OK, "{domain:#x}");
        assert_eq!(dma.page(0x1000), UNMAPPED, "a new domain is empty");
        assert_eq!(guest.map(domain, 0x1000, 0x1fff, 0x5000, READ), OK);
        assert_eq!(dma.page(0x1000), Ok(0x5000));
    }
}

#[test]
fn a8_an_attach_to_the_same_domain_keeps_its_mappings() {
    let daemon = Daemon::start();
    let (mut guest, dma) = blocked(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(dma.page(0x1000), Ok(0x5000));
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0, READ), INVAL, "it is there for the device too");
}

//! PASIDs in fault reports (AX47 to AX49).

use vm_memory::{Bytes, GuestAddress};

use super::wire::{AUX, IDENTITY_S2, PASID, SECOND_LEVEL};
use super::*;
use crate::support::guest::EVENTS_AT;
use crate::support::queue::Used;
use crate::support::wire::{ADDRESS, DOMAIN, MAPPING, WRITE};

/// A report: reason, flags, endpoint, PASID, address; its reserved bytes have to be zero.
type Report = (u8, u32, u32, u32, u64);

/// Lets the first endpoint write with a PASID, is refused, and reads what the guest is told.
fn told(rig: &mut Rig, pasid: u32, iova: u64) -> Report {
    rig.guest.post_event_buffer(0, 24);
    let guard = rig.devices[0].reader.enter().unwrap();
    let fault = guard.translate(Pasid::new(pasid), Iova::new(iova), 4, Access::WRITE);
    let fault = fault.map(|piece| piece.map(|_| ())).collect::<Result<Vec<_>, _>>().unwrap_err();
    assert!(guard.report(&fault));
    drop(guard);
    assert_eq!(rig.guest.events.wait_used(), Used { head: 0, bytes: 24 });
    let mut bytes = [0; 24];
    rig.guest.vmm.memory.ram.read_slice(&mut bytes, GuestAddress(EVENTS_AT)).unwrap();
    assert_eq!(bytes[1..4], [0; 3], "reserved");
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let address = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    (bytes[0], word(4), word(8), word(12), address)
}

#[test]
fn ax47_the_report_of_a_tagged_access_has_its_pasid() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        let flags = WRITE | ADDRESS;
        let tagged = told(&mut rig, 3, 0x1234);
        assert_eq!(tagged, (MAPPING, flags | PASID, ENDPOINT, 3, 0x1234));
        let free = told(&mut rig, 5, 0x1234);
        assert_eq!(free, (DOMAIN, flags | PASID, ENDPOINT, 5, 0x1234), "nothing is attached there");
        let untagged = told(&mut rig, 0, 0x1234);
        assert_eq!(untagged, (DOMAIN, flags, ENDPOINT, 0, 0x1234));
    });
}

#[test]
fn ax48_the_report_says_when_the_second_level_refused() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.bind(1, wire::PARENT, 1), OK);
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        let flags = WRITE | ADDRESS | PASID;
        let through = told(&mut rig, 3, 0x1234);
        assert_eq!(through, (MAPPING, flags | SECOND_LEVEL, ENDPOINT, 3, 0x1234));
        rig.ok(&wire::detach(1, ENDPOINT, 3));
        assert_eq!(rig.bind(2, IDENTITY_S2, 0), OK);
        assert_eq!(rig.attach(2, ENDPOINT, 3), OK);
        let alone = told(&mut rig, 3, 0x1234);
        assert_eq!(alone, (MAPPING, flags, ENDPOINT, 3, 0x1234), "there is no second level");
    });
}

#[test]
fn ax49_a_driver_without_the_feature_is_told_neither_pasid_nor_level() {
    for features in [0, wire::BIND_TABLE] {
        let Rig { daemon, guest, devices, arch } = Rig::start(Arch::Vtd, &[]);
        drop(guest);
        assert_eq!(features & AUX, 0);
        let guest = Guest::with_features(&daemon, LINUX_FEATURES | features);
        let mut rig = Rig { daemon, guest, devices, arch };
        let report = told(&mut rig, 3, 0x1234);
        assert_eq!(report, (DOMAIN, WRITE | ADDRESS, ENDPOINT, 0, 0x1234));
    }
}

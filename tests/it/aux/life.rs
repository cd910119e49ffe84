//! Reset, stop and go (AX40, AX41).

use super::wire::{AUX_ENABLED, IDENTITY_S2, NESTED, PARENT};
use super::*;
use crate::support::wire::NOENT;

#[test]
fn ax40_a_device_reset_detaches_unbinds_and_disables_everything() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.map(1, 0x1000, 0x5000), OK);
        assert_eq!((rig.bind(2, IDENTITY_S2, 0), rig.bind(3, PARENT, 1)), (OK, OK));
        let Rig { daemon, guest, devices, arch } = rig;
        let mut vmm = guest.vmm;
        vmm.stop();
        let guest = Guest::boot(vmm, LINUX_FEATURES | wire::AUX | wire::BIND_TABLE);
        let mut rig = Rig { daemon, guest, devices, arch };
        assert_eq!(rig.page(3, 0x1000), NOT_ATTACHED);
        assert_eq!(rig.value(0, ENDPOINT, AUX_ENABLED), Ok(0));
        for domain in 1..=3 {
            assert_eq!(rig.value(domain, 0, NESTED), Err(NOENT), "domain {domain}");
        }
        rig.ok(&wire::enable(ENDPOINT));
        assert_eq!(rig.attach_any(1, ENDPOINT), Ok(1), "its PASIDs are free");
    });
}

#[test]
fn ax41_what_was_attached_before_a_stop_is_attached_when_the_queues_go_on() {
    enabled_in_both(|mut rig| {
        assert_eq!(rig.attach(1, ENDPOINT, 3), OK);
        assert_eq!(rig.map(1, 0x1000, 0x5000), OK);
        let base = rig.guest.vmm.stop();
        rig.guest.start_queues(base, 0);
        assert_eq!(rig.page(3, 0x1000), Ok(0x5000));
        assert_eq!(rig.value(0, ENDPOINT, AUX_ENABLED), Ok(1));
        rig.ok(&wire::detach(1, ENDPOINT, 3));
        assert_eq!(rig.page(3, 0x1000), NOT_ATTACHED);
    });
}

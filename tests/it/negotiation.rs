//! What is offered, agreed on, and refused, up to the first request.

use vhost::VhostBackend;
use vhost::vhost_user::{VhostUserFrontend, VhostUserProtocolFeatures};

use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::{LINUX_FEATURES, Vmm};
use crate::support::wire::OK;

/// Bits 0, 1, 2, 4, 5, 6, 28, 29, 32 of the device, and 30 of vhost-user.
const OFFERED: u64 = 0x1_7000_0077;

#[test]
fn the_offer_is_the_standard_device_and_not_the_superseded_bypass() {
    let daemon = Daemon::start();
    let vmm = Vmm::connect(&daemon);
    assert_eq!(vmm.front_end.get_features().unwrap(), OFFERED);
}

#[test]
fn status_is_not_offered_because_qemu_would_die_of_it() {
    let daemon = Daemon::start();
    let mut vmm = Vmm::connect(&daemon);
    let expected = VhostUserProtocolFeatures::CONFIG
        | VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE;
    assert_eq!(vmm.protocol_features(), expected);
    assert_eq!(vmm.front_end.get_max_mem_slots().unwrap(), 32);
}

#[test]
fn features_that_were_not_offered_are_refused_and_the_connection_stays() {
    let daemon = Daemon::start();
    let vmm = Vmm::connect(&daemon);
    for bit in [3, 26, 33, 40] {
        assert!(vmm.front_end.set_features(LINUX_FEATURES | 1 << bit).is_err(), "bit {bit}");
    }
    let mut guest = Guest::boot(vmm, LINUX_FEATURES);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

#[test]
fn the_log_names_what_was_negotiated_once_for_each_driver() {
    let daemon = Daemon::start();
    let guest = Guest::start(&daemon).reboot();
    drop(guest);
    daemon.wait_for_log("the front-end has left");
    let names = "driver: INPUT_RANGE DOMAIN_RANGE MAP_UNMAP PROBE BYPASS_CONFIG RING_INDIRECT_DESC \
                 RING_EVENT_IDX VERSION_1; front-end: ";
    assert_eq!(daemon.count_in_log(names), 2, "{}", daemon.log());
}

#[test]
fn a_driver_without_the_rings_extras_is_served() {
    let daemon = Daemon::start();
    let plain = LINUX_FEATURES & !(1 << 28 | 1 << 29);
    let mut guest = Guest::with_features(&daemon, plain);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    guest.requests.wait_interrupt();
    guest.requests.set_flags(1);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0, 1), OK);
    assert_eq!(guest.requests.take_interrupts(), 0, "the driver asked for none");
}

#[test]
fn interrupts_come_where_the_driver_asked_for_them() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    guest.requests.want_interrupt_at(0);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    guest.requests.wait_interrupt();
    guest.requests.want_interrupt_at(5);
    for page in 1..=4 {
        assert_eq!(guest.map(1, page << 12, page << 12 | 0xfff, 0, 1), OK);
        assert_eq!(guest.requests.take_interrupts(), 0, "entry {page}");
    }
    assert_eq!(guest.map(1, 0x5000, 0x5fff, 0, 1), OK);
    guest.requests.wait_interrupt();
}

#[test]
fn queues_of_every_size_up_to_1024_work() {
    use crate::support::guest::{EVENT_QUEUE_AT, REQUEST_QUEUE_AT};
    use crate::support::queue::Queue;
    let daemon = Daemon::start();
    for shift in 1..=10 {
        let vmm = Vmm::connect(&daemon);
        let ram = vmm.memory.ram.clone();
        let requests = Queue::new(&ram, REQUEST_QUEUE_AT, 1 << shift);
        let events = Queue::new(&ram, EVENT_QUEUE_AT, 1 << shift);
        let mut guest = Guest { vmm, requests, events };
        guest.vmm.begin(LINUX_FEATURES);
        guest.start_queues(0, 0);
        assert_eq!(guest.attach(1, ENDPOINT), OK, "size {}", 1 << shift);
        for page in 0..(2 << shift) {
            assert_eq!(guest.map(1, page << 12, page << 12 | 0xfff, 0, 1), OK);
        }
    }
}

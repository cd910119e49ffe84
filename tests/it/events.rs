//! Faults on their way to the guest.

use viommu_pgtable::Access;

use crate::support::daemon::Daemon;
use crate::support::device::Dma;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::queue::Used;
use crate::support::vmm::LINUX_FEATURES;
use crate::support::wire::{ADDRESS, DOMAIN, Fault, MAPPING, OK, READ, WRITE};

/// Faults that wait in the daemon at most.
const WAITING: u64 = 256;

/// A guest whose domain 1 has one page to read, and a device.
fn attached(daemon: &Daemon) -> (Guest, Dma) {
    let mut guest = Guest::start(daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    (guest, Dma::connect(daemon))
}

/// A fault in a domain.
fn mapping_fault(address: u64, access: u32) -> Fault {
    Fault { reason: MAPPING, flags: access | ADDRESS, endpoint: ENDPOINT, address }
}

#[test]
fn a_refused_access_is_told_with_endpoint_address_and_access() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    for slot in 0..3 {
        guest.post_event_buffer(slot, 24);
    }
    guest.events.want_interrupt_at(0);
    dma.access(0x1_2345_6789, 4, Access::READ).unwrap_err();
    assert_eq!(guest.wait_event(), mapping_fault(0x1_2345_6789, READ));
    guest.events.wait_interrupt();
    dma.access(0x1ffc, 4, Access::WRITE).unwrap_err();
    assert_eq!(guest.wait_event(), mapping_fault(0x1ffc, WRITE));
    dma.access(0x1000, 0x1004, Access::READ).unwrap_err();
    assert_eq!(guest.wait_event(), mapping_fault(0x2000, READ), "where the mapping ends");
}

#[test]
fn an_endpoint_that_is_attached_to_nothing_faults_for_that_reason() {
    let daemon = Daemon::with(&["--boot-bypass", "off"]);
    let mut guest = Guest::start(&daemon);
    guest.post_event_buffer(0, 24);
    let dma = Dma::connect(&daemon);
    dma.access(0x8000, 4, Access::READ).unwrap_err();
    let expected = Fault { reason: DOMAIN, ..mapping_fault(0x8000, READ) };
    assert_eq!(guest.wait_event(), expected);
}

#[test]
fn faults_wait_for_buffers_and_the_oldest_come_first() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    for page in 0..10 {
        dma.access(0x10_0000 + page * 0x1000, 4, Access::READ).unwrap_err();
    }
    for slot in 0..10 {
        guest.post_event_buffer(slot, 24);
        let address = 0x10_0000 + u64::from(slot) * 0x1000;
        assert_eq!(guest.wait_event(), mapping_fault(address, READ));
    }
}

#[test]
fn more_faults_than_can_wait_are_dropped_and_counted() {
    let mut daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    for burst in 0..4_u64 {
        for page in 0..100 {
            dma.access((burst << 32) + 0x10_0000 + page * 0x1000, 4, Access::READ).unwrap_err();
        }
        // An answer from the daemon's one thread: it has taken what was reported before.
        dma.device.function_started().unwrap();
    }
    for slot in 0..WAITING as u16 {
        guest.post_event_buffer(slot % 64, 24);
        let Fault { reason, flags, .. } = guest.wait_event();
        assert_eq!((reason, flags), (MAPPING, READ | ADDRESS));
    }
    guest.post_event_buffer(0, 24);
    dma.access(0xdead_b000, 4, Access::READ).unwrap_err();
    assert_eq!(guest.wait_event(), mapping_fault(0xdead_b000, READ), "the queue works on");
    daemon.stop();
    assert_eq!(daemon.counter("faults"), WAITING + 1);
    assert_eq!(daemon.counter("faults_dropped"), 400 - WAITING);
}

#[test]
fn faults_without_buffers_cost_no_processor_time() {
    let daemon = Daemon::start();
    let (guest, dma) = attached(&daemon);
    for page in 0..100 {
        dma.access(0x10_0000 + page * 0x1000, 4, Access::READ).unwrap_err();
    }
    dma.device.function_started().unwrap();
    let before = daemon.cpu_ticks();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let used = daemon.cpu_ticks() - before;
    assert!(used <= 5, "{used} of 50 clock ticks with nothing to do");
    drop(guest);
}

#[test]
fn a_buffer_too_small_for_a_report_goes_back_empty_and_the_next_gets_it() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    dma.access(0x8000, 4, Access::READ).unwrap_err();
    for (slot, bytes) in [(0, 23), (1, 1)] {
        guest.post_event_buffer(slot, bytes);
        assert_eq!(guest.events.wait_used(), Used { head: u32::from(slot), bytes: 0 });
    }
    guest.post_event_buffer(2, 4096);
    assert_eq!(guest.wait_event(), mapping_fault(0x8000, READ));
}

#[test]
fn faults_of_before_a_reset_are_not_told_after_it() {
    let daemon = Daemon::start();
    let (guest, dma) = attached(&daemon);
    dma.access(0x8000, 4, Access::READ).unwrap_err();
    dma.device.function_started().unwrap();
    let mut guest = guest.reboot();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    guest.post_event_buffer(0, 24);
    dma.access(0x9000, 4, Access::READ).unwrap_err();
    assert_eq!(guest.wait_event(), mapping_fault(0x9000, READ));
}

#[test]
fn faults_outlive_a_pause() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    dma.access(0x8000, 4, Access::READ).unwrap_err();
    dma.device.function_started().unwrap();
    let base = guest.vmm.stop();
    guest.vmm.begin(LINUX_FEATURES);
    guest.start_queues(base, 0);
    guest.post_event_buffer(0, 24);
    assert_eq!(guest.wait_event(), mapping_fault(0x8000, READ));
}

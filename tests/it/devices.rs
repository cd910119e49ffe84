//! Device processes behind the IOMMU: what they see, when, and who waits for whom.

use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use viommu_iotlb::{ConnectError, Device, FaultClass, Refused};
use viommu_pgtable::Access;

use crate::support::daemon::Daemon;
use crate::support::device::{Dma, Holder, translate};
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::LINUX_FEATURES;
use crate::support::wait_until;
use crate::support::wire::{self, BYPASS, OK, READ, WRITE};

/// Why a read of an unmapped page is refused.
const UNMAPPED: Result<u64, FaultClass> = Err(FaultClass::Mapping);

/// A guest with 0x1000..=0x1fff of domain 1 mapped to 0x5000, and a device.
fn mapped(daemon: &Daemon) -> (Guest, Dma) {
    let mut guest = Guest::start(daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ | WRITE), OK);
    (guest, Dma::connect(daemon))
}

#[test]
fn a_device_sees_what_the_guest_maps_from_the_answer_on() {
    let daemon = Daemon::start();
    let dma = Dma::connect(&daemon);
    assert_eq!(dma.page(0x1000), Ok(0x1000), "boot bypass");
    let mut guest = Guest::start(&daemon);
    assert_eq!(dma.page(0x1000), Ok(0x1000), "attached to nothing");
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(dma.page(0x1000), UNMAPPED);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    assert_eq!(dma.page(0x1000), Ok(0x5000));
    assert_eq!(guest.unmap(1, 0x1000, 0x1fff), OK);
    assert_eq!(dma.page(0x1000), UNMAPPED);
    assert_eq!(guest.send(&wire::attach(0, ENDPOINT, BYPASS), 4).status(), OK);
    assert_eq!(dma.page(0x1000), Ok(0x1000), "a bypass domain");
    assert_eq!(guest.detach(0, ENDPOINT), OK);
    guest.vmm.write_bypass(0).unwrap();
    assert_eq!(dma.page(0x1000), Err(FaultClass::NotAttached));
    guest.vmm.write_bypass(1).unwrap();
    assert_eq!(dma.page(0x1000), Ok(0x1000));
}

#[test]
fn an_access_over_several_mappings_comes_in_pieces_and_rights_hold() {
    let daemon = Daemon::start();
    let (mut guest, dma) = mapped(&daemon);
    assert_eq!(guest.map(1, 0x2000, 0x2fff, 0x9000, READ), OK);
    let both = dma.access(0x1800, 0x1000, Access::READ).unwrap();
    assert_eq!(both, [(0x5800, 0x800), (0x9000, 0x800)]);
    let fault = dma.access(0x1800, 0x1000, Access::WRITE).unwrap_err();
    assert_eq!((fault.iova.raw(), fault.access), (0x2000, Access::WRITE));
}

#[test]
fn an_unmap_is_answered_only_when_the_last_reader_has_left() {
    let daemon = Daemon::start();
    let (mut guest, dma) = mapped(&daemon);
    let guard = dma.reader.enter().unwrap();
    assert_eq!(translate(&guard, 0x1000, 1, Access::READ).unwrap(), [(0x5000, 1)]);
    guest.queue_request(0, &wire::unmap(1, 0x1000, 0x1fff), 4);
    guest.queue_request(1, &wire::map(1, 0x1000, 0x1fff, 0x7000, READ), 4);
    guest.requests.notify();
    assert_stays_silent(&mut guest);
    drop(guard);
    assert_eq!(guest.requests.wait_used().bytes, 4);
    assert_eq!(guest.requests.wait_used().bytes, 4);
    assert_eq!(dma.page(0x1000), Ok(0x7000));
}

/// No used entry comes for as long as a guard is held.
fn assert_stays_silent(guest: &mut Guest) {
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        assert_eq!(guest.requests.take_used(), None, "answered under a reader");
    }
}

#[test]
fn attach_elsewhere_and_bypass_off_wait_for_readers_too() {
    let daemon = Daemon::start();
    let (mut guest, dma) = mapped(&daemon);
    let guard = dma.reader.enter().unwrap();
    guest.queue_request(0, &wire::attach(2, ENDPOINT, 0), 4);
    guest.requests.notify();
    assert_stays_silent(&mut guest);
    drop(guard);
    assert_eq!(guest.requests.wait_used().bytes, 4);
    assert_eq!(dma.page(0x1000), UNMAPPED);
    assert_eq!(guest.detach(2, ENDPOINT), OK);
    answers_after_the_reader(&dma, || guest.vmm.write_bypass(0).unwrap());
    assert_eq!(dma.page(0x1000), Err(FaultClass::NotAttached));
}

#[test]
fn a_new_memory_table_waits_for_readers() {
    let daemon = Daemon::start();
    let (guest, dma) = mapped(&daemon);
    let low = guest.vmm.memory.piece(0, 32 << 20);
    answers_after_the_reader(&dma, || guest.vmm.front_end.set_mem_table(&[low]).map(drop).unwrap());
    assert_eq!(dma.page(0x1000), Ok(0x5000));
}

/// `act`, which waits for the daemon's answer, ends only after a guard of `dma` is gone.
fn answers_after_the_reader(dma: &Dma, act: impl FnOnce() + Send) {
    let guard = dma.reader.enter().unwrap();
    let has_left = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let acting = scope.spawn(|| {
            act();
            // Acquire: pairs with the store below.
            assert!(has_left.load(Ordering::Acquire), "answered under a reader");
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(100) && !acting.is_finished() {
            std::thread::yield_now();
        }
        // Release: pairs with the load above; stored before the guard is dropped.
        has_left.store(true, Ordering::Release);
        drop(guard);
        acting.join().unwrap();
    });
}

#[test]
fn a_device_process_that_is_killed_in_a_guard_holds_up_nobody() {
    let daemon = Daemon::with(&["--stuck-ms", "50000"]);
    let (mut guest, _dma) = mapped(&daemon);
    let mut holder = Holder::start(&daemon);
    guest.queue_request(0, &wire::unmap(1, 0x1000, 0x1fff), 4);
    guest.requests.notify();
    assert_stays_silent(&mut guest);
    holder.kill();
    assert_eq!(guest.requests.wait_used().bytes, 4);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0, READ), OK);
    daemon.wait_for_log("device process of 0000:00:02.0 left");
}

#[test]
fn a_stuck_device_process_is_killed_and_the_guest_goes_on() {
    let mut daemon = Daemon::with(&["--stuck-ms", "200"]);
    let (mut guest, _dma) = mapped(&daemon);
    let mut holder = Holder::start(&daemon);
    assert_eq!(guest.unmap(1, 0x1000, 0x1fff), OK);
    assert_eq!(holder.wait().signal(), Some(libc::SIGKILL));
    daemon.stop();
    assert_eq!((daemon.counter("killed"), daemon.counter("cut_off")), (1, 0));
}

#[test]
fn a_stuck_device_process_is_cut_off_until_the_next_reset_if_that_is_asked_for() {
    let mut daemon = Daemon::with(&["--stuck-ms", "200", "--stuck-device", "disconnect"]);
    let (mut guest, dma) = mapped(&daemon);
    let _holder = Holder::start(&daemon);
    assert_eq!(guest.unmap(1, 0x1000, 0x1fff), OK);
    let again = Device::connect(daemon.device_socket());
    assert!(matches!(again, Err(ConnectError::CutOff)), "{again:?}");
    drop(dma);
    let _guest = guest.reboot();
    assert_eq!(Dma::connect(&daemon).page(0x1000), Ok(0x1000));
    daemon.stop();
    assert_eq!((daemon.counter("killed"), daemon.counter("cut_off")), (0, 1));
}

#[test]
fn a_pause_parks_accesses_and_go_on_restores_them() {
    let daemon = Daemon::start();
    let (mut guest, dma) = mapped(&daemon);
    let base = guest.vmm.stop();
    assert_eq!(dma.reader.try_enter().err(), Some(Refused::Parked));
    let waiting = AtomicBool::new(true);
    std::thread::scope(|scope| {
        let access = scope.spawn(|| {
            let reader = dma.device.reader().unwrap();
            let guard = reader.enter().unwrap();
            // Acquire: pairs with the store below.
            assert!(!waiting.load(Ordering::Acquire), "an access did not wait");
            translate(&guard, 0x1000, 1, Access::READ)
        });
        guest.vmm.begin(LINUX_FEATURES);
        // Release: pairs with the load above; stored before accesses can go on.
        waiting.store(false, Ordering::Release);
        guest.start_queues(base, 0);
        assert_eq!(access.join().unwrap().unwrap(), [(0x5000, 1)]);
    });
    assert_eq!(guest.unmap(1, 0x1000, 0x1fff), OK);
}

#[test]
fn an_endpoint_that_is_attached_to_nothing_is_not_parked() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let dma = Dma::connect(&daemon);
    guest.vmm.stop();
    assert_eq!(dma.page(0x1000), Ok(0x1000));
}

#[test]
fn a_device_process_that_comes_during_a_pause_waits_like_the_others() {
    let daemon = Daemon::start();
    let (mut guest, _dma) = mapped(&daemon);
    let base = guest.vmm.stop();
    let late = Dma::connect(&daemon);
    assert_eq!(late.reader.try_enter().err(), Some(Refused::Parked));
    guest.vmm.begin(LINUX_FEATURES);
    guest.start_queues(base, 0);
    assert_eq!(late.page(0x1000), Ok(0x5000));
}

#[test]
fn a_reboot_leads_back_to_boot_bypass() {
    let daemon = Daemon::start();
    let (guest, dma) = mapped(&daemon);
    let mut guest = guest.reboot();
    assert_eq!(dma.page(0x1000), Ok(0x1000));
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(dma.page(0x1000), UNMAPPED, "nothing of before");
}

#[test]
fn a_front_end_that_leaves_takes_its_mappings_along() {
    let daemon = Daemon::start();
    let (guest, dma) = mapped(&daemon);
    drop(guest);
    daemon.wait_for_log("the front-end has left");
    assert_eq!(dma.page(0x1000), Ok(0x1000));
}

#[test]
fn a_daemon_that_is_told_to_end_leaves_no_device_behind_that_translates() {
    let mut daemon = Daemon::start();
    let (_guest, dma) = mapped(&daemon);
    assert_eq!(dma.page(0x1000), Ok(0x5000));
    assert!(daemon.stop().success());
    // it has not looked at its socket
    assert_eq!(dma.reader.try_enter().err(), Some(Refused::Disconnected));
}

#[test]
fn firmware_gets_the_disk_of_a_function_that_was_reset_while_stopped() {
    let daemon = Daemon::start();
    let (mut guest, dma) = mapped(&daemon);
    guest.vmm.stop();
    dma.device.function_reset().unwrap();
    assert_eq!(dma.page(0x1000), Ok(0x1000), "the next boot's firmware reads it");
    dma.device.function_started().unwrap();
    assert_eq!(dma.page(0x1000), Ok(0x1000));
}

#[test]
fn a_function_reset_under_a_running_driver_opens_nothing() {
    let daemon = Daemon::start();
    let (mut guest, dma) = mapped(&daemon);
    dma.device.function_reset().unwrap();
    assert_eq!(dma.page(0x1000), Ok(0x5000));
    assert_eq!(dma.page(0x3000), UNMAPPED);
    dma.device.function_started().unwrap();
    assert_eq!(guest.unmap(1, 0x1000, 0x1fff), OK);
    assert_eq!(dma.page(0x1000), UNMAPPED);
}

#[test]
fn a_pause_with_a_function_reset_in_it_restores_the_attachment() {
    let daemon = Daemon::start();
    let (mut guest, dma) = mapped(&daemon);
    let base = guest.vmm.stop();
    dma.device.function_reset().unwrap();
    guest.vmm.begin(LINUX_FEATURES);
    guest.start_queues(base, 0);
    assert_eq!(dma.page(0x1000), Ok(0x5000));
    assert_eq!(dma.page(0x3000), UNMAPPED);
}

#[test]
fn two_hundred_device_connections_leave_no_descriptor_behind() {
    let daemon = Daemon::start();
    let (_guest, dma) = mapped(&daemon);
    // Answered by the daemon's one thread: it is done with the greeting.
    dma.device.function_started().unwrap();
    let before = daemon.open_fds();
    for _ in 0..200 {
        assert_eq!(Dma::connect(&daemon).page(0x1000), Ok(0x5000));
    }
    wait_until("all are gone", || daemon.open_fds() == before);
    assert_eq!(dma.page(0x1000), Ok(0x5000));
}

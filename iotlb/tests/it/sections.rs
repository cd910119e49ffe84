//! Guards and pins against drains.

use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use viommu_iotlb::{Device, DrainReport, HubConfig, Refused, State, StuckPolicy};
use viommu_pgtable::{Access, Iova, IovaRange};

use crate::support::{Daemon, ENDPOINT, PATIENCE};
use crate::translation::pieces;

/// Long enough to see that something waits, short enough to wait for.
const A_WHILE: Duration = Duration::from_millis(30);

fn patient() -> Daemon {
    let daemon = Daemon::start(HubConfig { stuck: PATIENCE, ..HubConfig::default() });
    daemon.run(|world| world.map(0x1000, 0x3000, 0x10_0000, Access::RW));
    daemon
}

/// Returns when the page is out of the tables and the daemon is about to drain.
fn unmap_and_drain(daemon: &Daemon, iova: u64) -> std::sync::mpsc::Receiver<DrainReport> {
    let (unmapped, is_unmapped) = std::sync::mpsc::channel();
    let drained = daemon.begin(move |world| {
        world.unmap(iova, 0x1000);
        unmapped.send(()).unwrap();
        world.hub.drain()
    });
    is_unmapped.recv_timeout(PATIENCE).unwrap();
    drained
}

fn range(iova: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(iova), 0x1000).unwrap()
}

/// A daemon with three pages mapped one by one.
fn three_pages() -> Daemon {
    let daemon = Daemon::start(HubConfig { stuck: PATIENCE, ..HubConfig::default() });
    daemon.run(|world| {
        for page in 1..4 {
            world.map(page << 12, 0x1000, page << 20, Access::RW);
        }
    });
    daemon
}

#[test]
fn a_drain_returns_only_after_the_guard_is_dropped() {
    let daemon = three_pages();
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    assert_eq!(pieces(&guard, None, (0x1000, 8), Access::READ).1, None);
    let drained = unmap_and_drain(&daemon, 0x1000);
    assert_eq!(drained.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
    // the section still sees what it saw
    assert_eq!(pieces(&guard, None, (0x1000, 8), Access::READ).1, None);
    drop(guard);
    let report = drained.recv_timeout(PATIENCE).unwrap();
    assert_eq!((report.killed, report.cut_off), (0, 0));
    assert!(pieces(&reader.enter().unwrap(), None, (0x1000, 8), Access::READ).1.is_some());
}

#[test]
fn an_inner_guard_neither_ends_nor_renews_the_outer_section() {
    let daemon = three_pages();
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let outer = reader.enter().unwrap();
    let drained = unmap_and_drain(&daemon, 0x1000);
    drop(reader.enter().unwrap());
    let inner = reader.enter().unwrap();
    assert_eq!(drained.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
    drop(outer);
    assert_eq!(drained.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
    drop(inner);
    drained.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_guard_of_the_new_epoch_does_not_delay_the_drain_that_began_it() {
    let daemon = three_pages();
    let device = daemon.connect();
    let (old, new) = (device.reader().unwrap(), device.reader().unwrap());
    let old_guard = old.enter().unwrap();
    let drained = unmap_and_drain(&daemon, 0x1000);
    assert_eq!(drained.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
    let new_guard = new.enter().unwrap();
    assert!(pieces(&new_guard, None, (0x1000, 8), Access::READ).1.is_some());
    drop(old_guard);
    drained.recv_timeout(PATIENCE).unwrap();
    drop(new_guard);
}

#[test]
fn a_pin_delays_the_withdrawal_of_what_it_covers_and_nothing_else() {
    let daemon = three_pages();
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let pin = guard.pin(None, range(0x2000)).unwrap();
    drop(guard);
    unmap_and_drain(&daemon, 0x1000).recv_timeout(PATIENCE).unwrap();
    let drained = unmap_and_drain(&daemon, 0x2000);
    assert_eq!(drained.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
    drop(pin);
    drained.recv_timeout(PATIENCE).unwrap();
}

#[test]
fn a_pin_of_a_later_section_is_no_reason_to_wait() {
    let daemon = three_pages();
    let device = daemon.connect();
    let (old, new) = (device.reader().unwrap(), device.reader().unwrap());
    let old_guard = old.enter().unwrap();
    let drained = unmap_and_drain(&daemon, 0x1000);
    assert_eq!(drained.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
    let pin = new.enter().unwrap().pin(None, range(0x1000)).unwrap();
    drop(old_guard);
    drained.recv_timeout(PATIENCE).unwrap();
    drop(pin);
}

#[test]
fn pins_and_readers_are_limited_and_come_back() {
    let daemon = patient();
    let device = daemon.connect();
    for _ in 0..2 {
        let readers: Vec<_> =
            (0..viommu_iotlb::abi::READER_SLOTS).map(|_| device.reader().unwrap()).collect();
        assert!(device.reader().is_err());
        let guard = readers[0].enter().unwrap();
        let pins: Vec<_> = (0..viommu_iotlb::abi::PIN_SLOTS)
            .map(|_| guard.pin(None, range(0x2000)).unwrap())
            .collect();
        assert!(guard.pin(None, range(0x2000)).is_err());
        drop(pins);
    }
    assert_eq!(daemon.drain().cut_off, 0);
}

#[test]
fn parked_readers_wait_and_go_on_when_accesses_run_again() {
    let daemon = patient();
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    daemon.run(|world| {
        world.hub.set_state(ENDPOINT, State::Parked);
        world.hub.drain();
    });
    assert_eq!(reader.try_enter().unwrap_err(), Refused::Parked);
    assert!(!reader.wait_running(A_WHILE));
    let late = daemon.connect();
    assert_eq!(late.reader().unwrap().try_enter().unwrap_err(), Refused::Parked);
    std::thread::scope(|scope| {
        let (entered, seen) = std::sync::mpsc::channel();
        scope.spawn(move || entered.send(reader.enter().map(|_| ())).unwrap());
        assert_eq!(seen.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
        // a drain has nobody to wait for
        daemon.run(|world| {
            world.unmap(0x1000, 0x3000);
            world.hub.drain();
            world.hub.set_state(ENDPOINT, State::Running);
        });
        assert_eq!(seen.recv_timeout(PATIENCE).unwrap(), Ok(()));
    });
}

#[test]
fn a_guard_that_is_kept_too_long_is_revoked_then_cut_off_until_readmitted() {
    let stuck = Duration::from_millis(60);
    let policy = StuckPolicy::Disconnect;
    let daemon = Daemon::start(HubConfig { stuck, policy, ..HubConfig::default() });
    daemon.run(|world| world.map(0x1000, 0x1000, 0x10_0000, Access::RW));
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let report = unmap_and_drain(&daemon, 0x1000).recv_timeout(PATIENCE).unwrap();
    assert_eq!((report.killed, report.cut_off), (0, 1));
    assert!(report.took >= stuck, "{report:?}");
    let notice = device.dispatch();
    assert_eq!((notice.revoked, notice.connected), (true, false));
    drop(guard);
    assert!(matches!(reader.enter(), Err(Refused::Disconnected | Refused::CutOff)));
    let again = viommu_iotlb::Device::connect(&daemon.socket).unwrap_err();
    assert!(matches!(again, viommu_iotlb::ConnectError::CutOff), "{again}");
    daemon.run(|world| world.hub.readmit_all());
    let device = daemon.connect();
    assert!(device.reader().unwrap().enter().is_ok());
}

/// A daemon with three pages that cuts stuck processes off soon, and a device that is stuck in a
/// section until it is dropped.
fn impatient() -> (Daemon, Device) {
    let (stuck, policy) = (Duration::from_millis(150), StuckPolicy::Disconnect);
    let daemon = Daemon::start(HubConfig { stuck, policy, ..HubConfig::default() });
    daemon.run(|world| {
        for page in 1..4 {
            world.map(page << 12, 0x1000, page << 20, Access::RW);
        }
    });
    let stuck = daemon.connect();
    (daemon, stuck)
}

#[test]
fn an_honest_process_of_a_cut_off_endpoint_is_refused_as_soon_as_the_drain_returns() {
    let (daemon, stuck) = impatient();
    let (stuck, honest) = (stuck.reader().unwrap(), daemon.connect());
    let reader = honest.reader().unwrap();
    let _guard = stuck.enter().unwrap();
    let drained = unmap_and_drain(&daemon, 0x1000);
    // it has met the epoch of the drain before anybody is cut off
    while pieces(&reader.enter().unwrap(), None, (0x1000, 8), Access::READ).1.is_none() {}
    assert_eq!(drained.recv_timeout(PATIENCE).unwrap().cut_off, 1);
    // the daemon's thread may have drained once more, and hung up
    let refused = reader.try_enter().err();
    assert!(matches!(refused, Some(Refused::CutOff | Refused::Disconnected)), "{refused:?}");
}

#[test]
fn a_pin_of_an_honest_process_of_a_cut_off_endpoint_is_waited_for_as_long_as_it_is_held() {
    let (daemon, stuck) = impatient();
    let (stuck, honest) = (stuck.reader().unwrap(), daemon.connect());
    let reader = honest.reader().unwrap();
    let pin = reader.enter().unwrap().pin(None, range(0x2000)).unwrap();
    let _guard = stuck.enter().unwrap();
    let first = unmap_and_drain(&daemon, 0x1000).recv_timeout(PATIENCE).unwrap();
    assert_eq!((first.killed, first.cut_off), (0, 1));
    let elsewhere = unmap_and_drain(&daemon, 0x3000).recv_timeout(PATIENCE).unwrap();
    assert_eq!((elsewhere.killed, elsewhere.cut_off), (0, 0));
    let drained = unmap_and_drain(&daemon, 0x2000);
    assert_eq!(drained.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
    drop(pin);
    let report = drained.recv_timeout(PATIENCE).unwrap();
    assert_eq!((report.killed, report.cut_off), (0, 0));
    daemon.drain();
    assert_eq!(daemon.run(|world| world.hub.connected()), 0, "nothing is left of it");
}

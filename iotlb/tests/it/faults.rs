//! What the daemon hears of refused accesses.

use std::sync::mpsc::{Sender, channel};

use viommu_iotlb::{DeviceEvent, FaultClass, FaultRecord, HubConfig};
use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Iova};

use crate::support::{Daemon, ENDPOINT, PATIENCE};
use crate::translation::pieces;

fn records(events: &[DeviceEvent]) -> Vec<FaultRecord> {
    let record = |event: &DeviceEvent| match event {
        DeviceEvent::Fault { endpoint: ENDPOINT, record } => Some(*record),
        _ => None,
    };
    events.iter().filter_map(record).collect()
}

/// Keeps the daemon's thread from everything else until what this returns is dropped: from now on it
/// hears nothing.
fn hold(daemon: &Daemon) -> Sender<()> {
    let (go, wait) = channel::<()>();
    let (begun, has_begun) = channel();
    daemon.begin(move |_| {
        begun.send(()).unwrap();
        _ = wait.recv();
    });
    has_begun.recv_timeout(PATIENCE).unwrap();
    go
}

#[test]
fn a_reported_fault_arrives_with_the_connections_endpoint() {
    let daemon = Daemon::start(HubConfig::default());
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let seven = Pasid::new(7);
    for (pasid, iova, access) in [(None, 0x5000, Access::WRITE), (seven, 0x6000, Access::READ)] {
        let fault = pieces(&guard, pasid, (iova, 8), access).1.unwrap();
        assert!(guard.report(&fault));
    }
    let events = daemon.events(|events| records(events).len() == 2);
    let record = |pasid, iova, access, class| {
        let iova = Iova::new(iova);
        FaultRecord { pasid, iova, access, class, second_level: false }
    };
    assert_eq!(
        records(&events),
        [
            record(None, 0x5000, Access::WRITE, FaultClass::Mapping),
            record(seven, 0x6000, Access::READ, FaultClass::NotAttached),
        ]
    );
}

#[test]
fn a_full_ring_drops_and_says_so_and_goes_on_when_it_was_emptied() {
    let daemon = Daemon::start(HubConfig::default());
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let fault = pieces(&guard, None, (0x5000, 8), Access::READ).1.unwrap();
    let full = viommu_iotlb::abi::FAULT_RECORDS;
    let held = hold(&daemon);
    assert!((0..full).all(|_| guard.report(&fault)));
    assert!(!guard.report(&fault));
    drop(held);
    daemon.events(|events| records(events).len() == full);
    assert!(guard.report(&fault));
    daemon.events(|events| records(events).len() == full + 1);
}

#[test]
fn a_device_that_reports_and_leaves_at_once_is_heard_before_its_end_is_told() {
    let daemon = Daemon::start(HubConfig::default());
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let fault = pieces(&guard, None, (0x5000, 8), Access::READ).1.unwrap();
    let held = hold(&daemon);
    assert!(guard.report(&fault));
    drop(guard);
    drop((reader, device));
    drop(held);
    let gone = DeviceEvent::Disconnected { endpoint: ENDPOINT };
    let events = daemon.events(|events| events.contains(&gone));
    let fault = DeviceEvent::Fault { endpoint: ENDPOINT, record: FaultRecord::from(&fault) };
    assert_eq!(events[1..], [fault, gone]);
}

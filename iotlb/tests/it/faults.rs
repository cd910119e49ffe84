//! What the daemon hears of refused accesses.

use viommu_iotlb::{DeviceEvent, FaultClass, FaultRecord, HubConfig};
use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Iova};

use crate::support::{Daemon, ENDPOINT};
use crate::translation::pieces;

fn records(events: &[DeviceEvent]) -> Vec<FaultRecord> {
    let record = |event: &DeviceEvent| match event {
        DeviceEvent::Fault { endpoint: ENDPOINT, record } => Some(*record),
        _ => None,
    };
    events.iter().filter_map(record).collect()
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
    let record =
        |pasid, iova, access, class| FaultRecord { pasid, iova: Iova::new(iova), access, class };
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
    let (hold, go) = std::sync::mpsc::channel::<()>();
    let held = daemon.begin(move |_| _ = go.recv());
    assert!((0..full).all(|_| guard.report(&fault)));
    assert!(!guard.report(&fault));
    drop(hold);
    held.recv().unwrap();
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
    let (hold, go) = std::sync::mpsc::channel::<()>();
    let held = daemon.begin(move |_| _ = go.recv());
    assert!(guard.report(&fault));
    drop(guard);
    drop((reader, device));
    drop(hold);
    held.recv().unwrap();
    let gone = DeviceEvent::Disconnected { endpoint: ENDPOINT };
    let events = daemon.events(|events| events.contains(&gone));
    let fault = DeviceEvent::Fault { endpoint: ENDPOINT, record: FaultRecord::from(&fault) };
    assert_eq!(events[1..], [fault, gone]);
}

//! The daemon's side of each test.

use std::time::Duration;

use viommu_iotlb::{DeviceEvent, FaultClass, FaultRecord, StuckPolicy};
use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Iova};

use super::device::FORGED;
use crate::support::{Daemon, ENDPOINT, PATIENCE};
use crate::tests::{Process, STUCK, daemon, unmap_and_drain};
use crate::witness::{WITNESS, Witness};

/// Starts a hostile device and waits until it says that it is done; the witness is well meanwhile, and
/// the daemon drains for others.
pub(super) fn hostile(role: &str, daemon: &Daemon, witness: &mut Witness) -> Process {
    let mut process = Process::start(role, daemon);
    let (done, told) = std::sync::mpsc::channel();
    let listener = std::thread::spawn(move || {
        done.send(process.hear()).unwrap();
        process
    });
    let said = loop {
        daemon.drain();
        witness.is_well(daemon);
        if let Ok(said) = told.try_recv() {
            break said;
        }
    };
    assert_eq!(said, "done");
    listener.join().unwrap()
}

/// Unmaps a page of the endpoint under attack, while the witness translates.
fn unmap_beside(daemon: &Daemon, witness: &Witness, iova: u64) -> viommu_iotlb::DrainReport {
    let drained = unmap_and_drain(daemon, iova);
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        witness.translates();
        match drained.try_recv() {
            Ok(report) => return report,
            Err(_) => assert!(std::time::Instant::now() < until, "a drain without end"),
        }
    }
}

pub(crate) fn forged_slots() {
    let daemon = daemon(STUCK, StuckPolicy::Disconnect);
    let mut witness = Witness::new(&daemon);
    let honest = daemon.connect();
    let reader = honest.reader().unwrap();
    let _hostile = Process::start("forges-slots", &daemon);
    let first = unmap_beside(&daemon, &witness, 0x1000);
    assert_eq!((first.killed, first.cut_off), (0, 1));
    assert!(first.took >= STUCK && first.took < 2 * STUCK + Duration::from_secs(1), "{first:?}");
    let second = unmap_beside(&daemon, &witness, 0x2000);
    assert!(second.took < STUCK, "{second:?}");
    assert_eq!(second.cut_off, 0);
    // both serve the endpoint that is now refused, and the honest one is told in order
    assert!(reader.enter().is_err());
    witness.is_well(&daemon);
}

/// One that never leaves its section holds up one request, and no later one, under either policy.
pub(crate) fn never_leaves() {
    for (policy, ended) in [(StuckPolicy::Kill, (1, 0)), (StuckPolicy::Disconnect, (0, 1))] {
        let daemon = daemon(STUCK, policy);
        let mut witness = Witness::new(&daemon);
        let hostile = Process::start("never-leaves", &daemon);
        let first = unmap_beside(&daemon, &witness, 0x1000);
        assert_eq!((first.killed, first.cut_off), ended);
        assert!(first.took >= STUCK, "{first:?}");
        for page in [0x2000, 0x3000] {
            let later = unmap_beside(&daemon, &witness, page);
            assert_eq!((later.killed, later.cut_off), (0, 0));
        }
        let counters = daemon.run(|world| world.hub.counters());
        assert_eq!(counters.longest_drain, first.took, "no later one waited as long");
        assert_eq!((counters.killed, counters.cut_off), (ended.0.into(), ended.1.into()));
        witness.is_well(&daemon);
        drop(hostile);
    }
}

pub(crate) fn forged_rings() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut witness = Witness::new(&daemon);
    drop(hostile("forges-rings", &daemon, &mut witness));
    let counters = daemon.run(|world| world.hub.counters());
    assert!(counters.bad_faults > 0, "{counters:?}");
}

/// What of [`FORGED`] is a record: it is the connection's endpoint's, whatever it says.
fn forged() -> [DeviceEvent; 3] {
    let record = |pasid, iova, access, class, second_level| {
        let record = FaultRecord { pasid, iova: Iova::new(iova), access, class, second_level };
        DeviceEvent::Fault { endpoint: ENDPOINT, record }
    };
    let unknown = FaultClass::Unknown;
    [
        record(Pasid::new(0x20), 0x20, Access::PRIVILEGED_WRITE, unknown, false),
        record(None, u64::MAX, Access::all(), unknown, true),
        record(Pasid::new(0x7_ffff), 0x2000, Access::READ, FaultClass::NotAttached, false),
    ]
}

pub(crate) fn forged_faults() {
    const BATCHES: usize = 200;
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut witness = Witness::new(&daemon);
    let mut hostile = Process::start("forges-faults", &daemon);
    let theirs = |event: &DeviceEvent| matches!(event, DeviceEvent::Fault { endpoint, .. } if *endpoint != WITNESS);
    let mut events = Vec::new();
    for batch in 1..=BATCHES {
        hostile.tell();
        let all = batch * forged().len();
        let heard = daemon.events(|events| events.iter().filter(|e| theirs(e)).count() >= all);
        events = heard.into_iter().filter(theirs).collect();
        witness.is_well(&daemon);
    }
    assert_eq!(events, forged().repeat(BATCHES));
    let counters = daemon.run(|world| world.hub.counters());
    let bad = (FORGED.len() - forged().len()) * BATCHES;
    assert_eq!(counters.bad_faults, bad as u64);
}

pub(crate) fn flooded_doorbell() {
    const VISITS: usize = 200;
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut witness = Witness::new(&daemon);
    let mut hostile = Process::start("floods-doorbell", &daemon);
    for page in 0..VISITS as u64 {
        let iova = (1 << 30) + (page << 12);
        daemon.run(move |world| world.map(iova, 0x1000, 0, Access::READ));
        let report = unmap_beside(&daemon, &witness, iova);
        assert_eq!((report.killed, report.cut_off), (0, 0));
        witness.is_well(&daemon);
    }
    hostile.kill();
}

pub(crate) fn flooded_questions() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut witness = Witness::new(&daemon);
    let honest = daemon.connect();
    let reader = honest.reader().unwrap();
    let mut hostile = Process::start("floods-questions", &daemon);
    honest.function_reset().unwrap();
    witness.is_well(&daemon);
    assert_eq!(hostile.hear(), "refused");
    assert!(crate::device::read(&reader.enter().unwrap(), 0x1000));
    assert_eq!(daemon.run(|world| world.hub.connected()), 2);
    witness.is_well(&daemon);
}

pub(crate) fn tables_are_read_only() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut witness = Witness::new(&daemon);
    assert!(Process::start("writes-tables", &daemon).end());
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    assert!(crate::device::read(&reader.enter().unwrap(), 0x1000), "the tables are as before");
    witness.is_well(&daemon);
}

pub(crate) fn blocking_doorbell() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut witness = Witness::new(&daemon);
    let _hostile = hostile("blocks-doorbell", &daemon, &mut witness);
    assert_eq!(daemon.drain().cut_off, 0);
}

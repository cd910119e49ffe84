//! A reader over SMMUv3's structures.

use std::sync::atomic::Ordering;
use std::sync::mpsc::channel;
use std::time::Duration;

use viommu_iotlb::{Arch, Device, FaultReason, GuestTables, Hub, HubConfig};
use viommu_pasid::smmuv3::{
    ContextControls, ContextDescriptor, ContextTable, Stage1Table, Stage1Tables, StreamConfig,
    StreamEntry, StreamTable, Untagged,
};
use viommu_pasid::{EndpointId, Pasid, Structures};
use viommu_pgtable::{
    Access, ArmStage1, FaultKind, Granule, Iova, IovaRange, Mapping, PhysAddr, Stage, Table,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::support::ENDPOINT;
use crate::translation::pieces;

/// Where the tables are: addresses in SMMUv3's structures have 48 bits.
const BASE: u64 = 1 << 47;

/// A function whose stream table entry says bypass.
const BYPASSED: EndpointId = EndpointId::new(0x19);

/// Where the root is of the table that is bound for PASID 9: in guest memory.
const BOUND: u64 = 0x10_0000;

/// A hub with PASID 7 of [`ENDPOINT`] in a stage-1 table: 0x1000 read-only, 0x2000 both. PASID 9 has
/// a table of the guest's.
fn hub() -> (Hub, StreamTable) {
    let config =
        HubConfig { arch: Arch::SmmuV3, table_base: PhysAddr::new(BASE), ..HubConfig::default() };
    let mut hub = Hub::new(config).unwrap();
    let store = hub.region_mut();
    let format = ArmStage1::new(Granule::K4, 48, 48).unwrap();
    let mut table = Table::new(format, store).unwrap();
    for (iova, access) in [(0x1000, Access::READ), (0x2000, Access::RW)] {
        let range = IovaRange::with_len(Iova::new(iova), 0x1000).unwrap();
        let mapping = Mapping::new(range, PhysAddr::new(iova << 8), access).unwrap();
        table.map(store, &mapping).unwrap();
    }
    let contexts = ContextTable::new(store, 8).unwrap();
    let descriptor = ContextDescriptor {
        tables: Stage1Tables::lower_only(Stage1Table::new(table.root(), format).unwrap()),
        asid: 1,
        mair: 0xff,
        controls: ContextControls::empty(),
    };
    contexts.set(store, 7, &descriptor).unwrap();
    let bound = Stage1Table::new(PhysAddr::new(BOUND), format).unwrap();
    let bound = ContextDescriptor { tables: Stage1Tables::lower_only(bound), ..descriptor };
    contexts.set(store, 9, &bound).unwrap();
    let streams = StreamTable::new(store).unwrap();
    let stage1 = StreamConfig::Stage1(contexts.stage1(Untagged::Terminate).unwrap());
    for (endpoint, config) in [(ENDPOINT, stage1), (BYPASSED, StreamConfig::Bypass)] {
        streams.set(store, endpoint.bdf(), &StreamEntry { vmid: 0, config }).unwrap();
    }
    (hub, streams)
}

fn connect(hub: &mut Hub, streams: StreamTable, endpoint: EndpointId) -> Device {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    hub.listen(endpoint, Structures::SmmuV3(streams.root()), 8, &socket).unwrap();
    let (done, device) = channel();
    std::thread::spawn(move || done.send(Device::connect(socket)).unwrap());
    loop {
        hub.dispatch(&mut |_| {});
        if let Ok(device) = device.recv_timeout(Duration::from_millis(1)) {
            return device.unwrap();
        }
    }
}

#[test]
fn a_stage_1_table_in_the_region_translates_its_pasid_and_no_other() {
    let (mut hub, streams) = hub();
    let device = connect(&mut hub, streams, ENDPOINT);
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let seven = Pasid::new(7);
    for _cold_then_warm in 0..2 {
        let found = pieces(&guard, seven, (0x1ff8, 0x10), Access::READ);
        assert_eq!(found, (vec![(0x10_0ff8, 8), (0x20_0000, 8)], None));
        let written = pieces(&guard, seven, (0x2000, 8), Access::WRITE);
        assert_eq!(written, (vec![(0x20_0000, 8)], None));
        let denied = pieces(&guard, seven, (0x1000, 8), Access::WRITE).1.unwrap();
        let FaultReason::Mapping(walk) = denied.reason else { panic!("{denied:?}") };
        assert!(matches!(walk.kind, FaultKind::Denied { .. }), "{walk:?}");
        for pasid in [None, Pasid::new(8), Pasid::new(256)] {
            let fault = pieces(&guard, pasid, (0x1000, 8), Access::READ).1.unwrap();
            assert_eq!(fault.reason, FaultReason::NotAttached, "{pasid:?}");
        }
    }
}

#[test]
fn a_bypassed_stream_passes_up_to_the_tables() {
    let (mut hub, streams) = hub();
    let device = connect(&mut hub, streams, BYPASSED);
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    for _cold_then_warm in 0..2 {
        let (found, fault) = pieces(&guard, None, (BASE - 8, 16), Access::RW);
        assert_eq!(found, [(BASE - 8, 8)]);
        assert_eq!(fault.unwrap().reason, FaultReason::OutOfRange);
    }
}

#[test]
fn structures_of_the_other_architecture_are_refused() {
    let (mut hub, streams) = hub();
    let path = std::path::Path::new("/nonexistent/socket");
    let vtd = Structures::Vtd { root: streams.root().base() };
    let error = hub.listen(ENDPOINT, vtd, 0, path).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn tables_above_what_their_entries_can_name_are_refused() {
    let config = HubConfig { arch: Arch::SmmuV3, ..HubConfig::default() };
    assert_eq!(Hub::new(config).unwrap_err().kind(), std::io::ErrorKind::InvalidInput);
}

#[test]
fn a_clear_access_flag_in_a_guests_table_is_a_fault_until_software_sets_it() {
    const TABLE: u64 = 0b11;
    const OTHERS: u64 = 1 << 6;
    const ACCESS_FLAG: u64 = 1 << 10;
    let (mut hub, streams) = hub();
    let device = connect(&mut hub, streams, ENDPOINT);
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 << 20)]).unwrap();
    let put = |at: u64, word: u64| memory.store(word, GuestAddress(at), Ordering::Release).unwrap();
    for level in 0..3 {
        put(BOUND + (level << 12), (BOUND + ((level + 1) << 12)) | TABLE);
    }
    let leaf = BOUND + (3 << 12) + 8 * 5;
    let tables = GuestTables::new(&memory);
    let ask = || {
        let pasid = Pasid::new(9);
        guard.translate_with(&tables, pasid, Iova::new(0x5000), 8, Access::RW).next().unwrap()
    };
    put(leaf, 0x20_0000 | TABLE | OTHERS);
    let FaultReason::Mapping(walk) = ask().unwrap_err().reason else { panic!() };
    assert_eq!((walk.stage, walk.kind), (Stage::First, FaultKind::AccessFlag));
    let left: u64 = memory.load(GuestAddress(leaf), Ordering::Acquire).unwrap();
    assert_eq!(left & ACCESS_FLAG, 0, "nobody but the guest sets it");
    put(leaf, 0x20_0000 | TABLE | OTHERS | ACCESS_FLAG);
    assert_eq!(ask().map(|piece| piece.gpa), Ok(PhysAddr::new(0x20_0000)));
    let blind = pieces(&guard, Pasid::new(9), (0x6000, 8), Access::READ).1.unwrap();
    let FaultReason::Mapping(walk) = blind.reason else { panic!("{blind:?}") };
    assert_eq!(walk.kind, FaultKind::Unreadable);
}

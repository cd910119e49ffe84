//! A reader that shares no code with ours.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use viommu_iotlb::{Arch, DeviceEvent, FaultClass, FaultRecord, Hub, HubConfig};
use viommu_pasid::smmuv3::{
    ContextControls, ContextDescriptor, ContextTable, Stage1Table, Stage1Tables, Stage2,
    StreamConfig, StreamEntry, StreamTable, Untagged,
};
use viommu_pasid::vtd::Translation;
use viommu_pasid::{EndpointId, Pasid, Structures};
use viommu_pgtable::{
    Access, ArmStage1, ArmStage2, Format, Granule, Iova, IovaRange, Mapping, PhysAddr, Table,
};

use crate::support::{Daemon, ENDPOINT};

/// The reader in C, compiled; `None` where there is no compiler, which is said past the harness's
/// capture.
fn compile(folder: &Path) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/reader.c");
    let reader = folder.join("reader");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-O2", "-o"]);
    match compiler.arg(&reader).arg(source).status() {
        Ok(status) => {
            assert!(status.success());
            Some(reader)
        }
        Err(error) => {
            let text = format!("skipped: no C compiler here: {error}\n");
            rustix::io::write(rustix::stdio::stderr(), text.as_bytes()).unwrap();
            None
        }
    }
}

/// A read of `iova` with `pasid`, 0 for none, that was refused.
fn told(endpoint: EndpointId, pasid: u32, iova: u64, class: FaultClass) -> DeviceEvent {
    let (pasid, iova, access) = (Pasid::new(pasid), Iova::new(iova), Access::READ);
    let record = FaultRecord { pasid, iova, access, class, second_level: false };
    DeviceEvent::Fault { endpoint, record }
}

/// Asks and expected answers, apart.
fn split<'t>(cases: &[(&'t str, &'t str)]) -> (Vec<&'t str>, String) {
    let answers = cases.iter().map(|(_, answer)| format!("{answer}\n")).collect();
    (cases.iter().map(|(ask, _)| *ask).collect(), answers)
}

#[test]
fn a_reader_written_in_c_from_the_abi_page_alone_finds_what_is_mapped_and_reports_what_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let Some(reader) = compile(folder.path()) else { return };
    let daemon = Daemon::start(HubConfig::default());
    daemon.run(|world| {
        world.map(0x1000, 0x1000, 0x10_0000, Access::RW);
        world.map(0x4000_0000, 0x4000_0000, 0x1_4000_0000, Access::READ);
        world.map(0x7fff_ffff_f000, 0x1000, 0x20_0000, Access::READ);
        world.map(0x20_0000, 0x20_0000, 0x60_0000, Access::READ);
        world.map(0x3000, 0x1000, 0x30_0000, Access::WRITE);
        // the second is in another leaf than the others
        world.attach(Pasid::new(7));
        world.attach(Pasid::new(0x4_0007));
        world.set(Pasid::new(8), Some(Translation::PassThrough));
    });
    let cases = [
        ("0x1008", "0x100008"),
        ("0x52345678", "0x152345678"),
        ("0x7fffffffffff", "0x200fff"),
        ("0x3ffff8", "0x7ffff8"),
        ("0x3000", "fault"),
        ("0x5000", "fault"),
        ("0x1000000000000", "fault"),
        ("7:0x1008", "0x100008"),
        ("0x40007:0x3ffff8", "0x7ffff8"),
        ("7:0x5000", "fault"),
        ("8:0x5000", "0x5000"),
        ("9:0x1000", "fault"),
        ("0x40008:0x1000", "fault"),
        // where the tables are
        ("8:0x8000000000000", "fault"),
    ];
    let (asks, answers) = split(&cases);
    let output = Command::new(&reader).arg(&daemon.socket).args(asks).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(String::from_utf8(output.stdout).unwrap(), answers);
    let (mapping, not_attached) = (FaultClass::Mapping, FaultClass::NotAttached);
    let expected = [
        (0, 0x3000, mapping),
        (0, 0x5000, mapping),
        (0, 1 << 48, mapping),
        (7, 0x5000, mapping),
        (9, 0x1000, not_attached),
        (0x4_0008, 0x1000, not_attached),
        (8, 1 << 51, FaultClass::Unknown),
    ];
    let expected = expected.map(|(pasid, iova, class)| told(ENDPOINT, pasid, iova, class));
    let is_fault = |event: &&DeviceEvent| matches!(event, DeviceEvent::Fault { .. });
    let count = |events: &[DeviceEvent]| events.iter().filter(is_fault).count();
    let events = daemon.events(|events| count(events) == expected.len());
    assert_eq!(events.iter().filter(is_fault).copied().collect::<Vec<_>>(), expected);
}

/// Endpoints of an SMMU: with descriptors for untagged accesses and PASIDs, in bypass, with stage 2
/// alone, and with nothing.
const STAGE1: EndpointId = EndpointId::new(0x20);
const BYPASSED: EndpointId = EndpointId::new(0x28);
const STAGE2: EndpointId = EndpointId::new(0x130);
const ABSENT: EndpointId = EndpointId::new(0x138);

/// A table of `format` in which 0x1000 leads to `to`, and 2 MiB at 0x20_0000 to 0x4000_0000.
fn table<F: Format>(hub: &mut Hub, format: F, to: u64) -> PhysAddr {
    let mut table = Table::new(format, hub.region_mut()).unwrap();
    for (iova, bytes, to) in [(0x1000, 0x1000, to), (0x20_0000, 0x20_0000, 0x4000_0000)] {
        let range = IovaRange::with_len(Iova::new(iova), bytes).unwrap();
        let mapping = Mapping::new(range, PhysAddr::new(to), Access::RW).unwrap();
        table.map(hub.region_mut(), &mapping).unwrap();
    }
    table.root()
}

fn descriptor(root: PhysAddr, format: ArmStage1) -> ContextDescriptor {
    let tables = Stage1Tables::lower_only(Stage1Table::new(root, format).unwrap());
    ContextDescriptor { tables, asid: 1, mair: 0xff, controls: ContextControls::empty() }
}

fn smmu() -> (Hub, StreamTable) {
    let table_base = PhysAddr::new(1 << 47);
    let mut hub =
        Hub::new(HubConfig { arch: Arch::SmmuV3, table_base, ..HubConfig::default() }).unwrap();
    let contexts = ContextTable::new(hub.region_mut(), 10).unwrap();
    for (index, bits, to) in [(0, 48, 0x10_0000), (7, 39, 0x70_0000), (0x207, 48, 0x20_7000)] {
        let format = ArmStage1::new(Granule::K4, bits, 48).unwrap();
        let descriptor = descriptor(table(&mut hub, format, to), format);
        contexts.set(hub.region_mut(), index, &descriptor).unwrap();
    }
    let below = ArmStage2::new(Granule::K4, 3, 39, 48).unwrap();
    let second = Stage2::new(table(&mut hub, below, 0x50_0000), below).unwrap();
    let streams = StreamTable::new(hub.region_mut()).unwrap();
    let first = contexts.stage1(Untagged::Context0).unwrap();
    for (endpoint, config) in [
        (STAGE1, StreamConfig::Stage1(first)),
        (BYPASSED, StreamConfig::Bypass),
        (STAGE2, StreamConfig::Stage2(second)),
    ] {
        let entry = StreamEntry { vmid: 2, config };
        streams.set(hub.region_mut(), endpoint.bdf(), &entry).unwrap();
    }
    (hub, streams)
}

/// Runs the reader for `endpoint`: what it said, and the faults that the hub heard.
fn read(hub: &mut Hub, mut command: Command) -> (Output, Vec<DeviceEvent>) {
    let pipes = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let mut events = Vec::new();
    while child.try_wait().unwrap().is_none() {
        hub.dispatch(&mut |event| events.push(event));
        hub.drain();
    }
    while hub.connected() > 0 {
        hub.dispatch(&mut |event| events.push(event));
    }
    events.retain(|event| matches!(event, DeviceEvent::Fault { .. }));
    (child.wait_with_output().unwrap(), events)
}

#[test]
fn the_reader_in_c_walks_an_smmus_structures_as_well() {
    let folder = tempfile::tempdir().unwrap();
    let Some(reader) = compile(folder.path()) else { return };
    let (mut hub, streams) = smmu();
    let (mapping, not_attached) = (FaultClass::Mapping, FaultClass::NotAttached);
    let stage1 = [
        ("0x1008", "0x100008"),
        ("0x3ffff8", "0x401ffff8"),
        ("0x2000", "fault"),
        ("7:0x1008", "0x700008"),
        ("7:0x8000001000", "fault"),
        ("0x207:0x1ff8", "0x207ff8"),
        ("8:0x1000", "fault"),
        ("0x400:0x1000", "fault"),
    ];
    let stage1_faults = vec![
        told(STAGE1, 0, 0x2000, mapping),
        told(STAGE1, 7, 0x80_0000_1000, mapping),
        told(STAGE1, 8, 0x1000, not_attached),
        told(STAGE1, 0x400, 0x1000, not_attached),
    ];
    let bypassed = [("0x1008", "0x1008"), ("0x800000000000", "fault"), ("7:0x1000", "fault")];
    let bypassed_faults = vec![
        told(BYPASSED, 0, 1 << 47, FaultClass::Unknown),
        told(BYPASSED, 7, 0x1000, not_attached),
    ];
    let stage2 = [("0x1008", "0x500008"), ("0x200008", "0x40000008"), ("0x3000", "fault")];
    let stage2_faults = vec![told(STAGE2, 0, 0x3000, mapping)];
    let absent = [("0x1008", "fault")];
    let absent_faults = vec![told(ABSENT, 0, 0x1008, not_attached)];
    for (endpoint, cases, faults) in [
        (STAGE1, &stage1[..], stage1_faults),
        (BYPASSED, &bypassed, bypassed_faults),
        (STAGE2, &stage2, stage2_faults),
        (ABSENT, &absent, absent_faults),
    ] {
        let socket = folder.path().join(endpoint.to_string());
        hub.listen(endpoint, Structures::SmmuV3(streams.root()), 10, &socket).unwrap();
        let (asks, answers) = split(cases);
        let mut command = Command::new(&reader);
        command.arg(socket).args(asks);
        let (output, told) = read(&mut hub, command);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), answers, "{endpoint}");
        assert_eq!(told, faults, "{endpoint}");
    }
}

//! A reader that shares no code with ours.

use std::path::Path;
use std::process::Command;

use viommu_iotlb::{DeviceEvent, FaultClass, FaultRecord, HubConfig};
use viommu_pgtable::{Access, Iova};

use crate::support::{Daemon, ENDPOINT};

#[test]
fn a_reader_written_in_c_from_the_abi_page_alone_finds_what_is_mapped_and_reports_what_is_not() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/reader.c");
    let folder = tempfile::tempdir().unwrap();
    let reader = folder.path().join("reader");
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-O2", "-o"]);
    let compiled = match compiler.arg(&reader).arg(source).status() {
        Ok(status) => status,
        Err(error) => {
            // past the harness's capture
            return rustix::io::write(
                rustix::stdio::stderr(),
                format!("skipped: no C compiler here: {error}\n").as_bytes(),
            )
            .map(drop)
            .unwrap();
        }
    };
    assert!(compiled.success());

    let daemon = Daemon::start(HubConfig::default());
    daemon.run(|world| {
        world.map(0x1000, 0x1000, 0x10_0000, Access::RW);
        world.map(0x4000_0000, 0x4000_0000, 0x1_4000_0000, Access::READ);
        world.map(0x7fff_ffff_f000, 0x1000, 0x20_0000, Access::READ);
        world.map(0x20_0000, 0x20_0000, 0x60_0000, Access::READ);
        world.map(0x3000, 0x1000, 0x30_0000, Access::WRITE);
    });
    let iovas = ["0x1008", "0x52345678", "0x7fffffffffff", "0x3ffff8", "0x3000", "0x5000"];
    let output = Command::new(&reader).arg(&daemon.socket).args(iovas).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = String::from_utf8(output.stdout).unwrap();
    let expected = ["0x100008", "0x152345678", "0x200fff", "0x7ffff8", "fault", "fault"];
    assert_eq!(found.lines().collect::<Vec<_>>(), expected);

    let record = |iova| FaultRecord {
        iova: Iova::new(iova),
        pasid: None,
        access: Access::READ,
        class: FaultClass::Mapping,
        second_level: false,
    };
    let told = |iova| DeviceEvent::Fault { endpoint: ENDPOINT, record: record(iova) };
    daemon.events(|events| [0x3000, 0x5000].iter().all(|iova| events.contains(&told(*iova))));
}

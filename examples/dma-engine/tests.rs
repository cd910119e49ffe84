//! The whole device behind its socket, driven as a guest's driver does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use viommu_pgtable::Access;

use super::support::DmaPort;
use super::support::rig::{Daemon, RAM, RAM_BYTES, Served, Vmm};

const PAGE: u64 = 4096;

const BUSY: u32 = 1;
const DONE: u32 = 2;
const FAULT: u32 = 4;
const REFUSED: u32 = 8;

/// FAULT_INFO.
const READ: u64 = 0;
const WRITE: u64 = 1;
const NO_IOMMU: u64 = 2;

/// The device, its VMM and a driver.
struct Rig {
    served: Served,
    vmm: Vmm,
}

impl Rig {
    fn direct() -> Self {
        let dma = Arc::new(DmaPort::connect(None).unwrap());
        let served = Served::new(super::function(dma).unwrap(), 1);
        let vmm = Vmm::new(&served, 1);
        Self { served, vmm }
    }

    fn behind(daemon: &Daemon, socket: &Path) -> Self {
        let dma = Arc::new(DmaPort::connect(Some(socket)).unwrap());
        let served = Served::new(super::function(dma).unwrap(), 1);
        let vmm = Vmm::behind(daemon, &served, 1);
        Self { served, vmm }
    }

    fn begin(&mut self, source: u64, destination: u64, bytes: u64) {
        for (register, value) in [(0x08, source), (0x10, destination), (0x18, bytes)] {
            self.vmm.write_bar(register, &value.to_le_bytes());
        }
        self.vmm.write_bar(0x20, &1u32.to_le_bytes());
    }

    /// Copies and waits for the end. Returns STATUS.
    fn copy(&mut self, source: u64, destination: u64, bytes: u64) -> u32 {
        self.begin(source, destination, bytes);
        self.vmm.wait(0);
        self.status()
    }

    fn status(&mut self) -> u32 {
        u32::from_le_bytes(self.vmm.read_bar(0x24, 4).try_into().unwrap())
    }

    fn wide(&mut self, register: u64) -> u64 {
        u64::from_le_bytes(self.vmm.read_bar(register, 8).try_into().unwrap())
    }

    /// FAULT_ADDR, FAULT_INFO, COPIED.
    fn fault(&mut self) -> (u64, u64, u64) {
        (self.wide(0x28), self.wide(0x30), self.wide(0x38))
    }

    fn end(self) {
        self.vmm.leave();
        self.served.join();
    }
}

fn socket(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("iotlb")
}

fn pattern(bytes: usize) -> Vec<u8> {
    (0..=250).cycle().take(bytes).collect()
}

#[test]
fn a_copy_ends_with_an_interrupt() {
    let mut rig = Rig::direct();
    let data = pattern(100_000);
    rig.vmm.write_ram(RAM + 5, &data);
    assert_eq!(rig.copy(RAM + 5, RAM + 0x10_0000, 100_000), DONE);
    assert_eq!(rig.vmm.read_ram(RAM + 0x10_0000, 100_000), data);
    assert_eq!(rig.fault(), (0, 0, 100_000));
    assert_eq!(rig.copy(RAM + RAM_BYTES, RAM, 1), FAULT);
    assert_eq!(rig.fault(), (RAM + RAM_BYTES, READ, 0));
    rig.end();
}

#[test]
fn an_impossible_copy_is_refused_at_once() {
    let mut rig = Rig::direct();
    rig.begin(RAM, RAM, 0);
    assert_eq!(rig.status(), REFUSED);
    assert_eq!(rig.copy(RAM, RAM + PAGE, 16), DONE);
    rig.end();
}

#[test]
fn a_copy_is_split_where_pages_lie_apart() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    let data = pattern(5 * 4096);
    rig.vmm.write_ram(RAM + 100, &data);
    assert_eq!(rig.copy(RAM + 100, RAM + 0x10_0ff8, 5 * PAGE), DONE);
    assert_eq!(rig.vmm.read_ram(RAM + 0x10_0ff8, 5 * 4096), data);
    rig.end();
}

#[test]
fn an_unmapped_page_stops_the_copy_at_its_first_byte_and_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    let (hole, target) = (RAM + 3 * PAGE, RAM + 0x10_0000);
    daemon.unmap(hole, rig.vmm.gpa(hole), PAGE);

    assert_eq!(rig.copy(hole - 0x30, target, 0x100), FAULT);
    assert_eq!(rig.fault(), (hole, READ, 0x30));
    assert_eq!(daemon.fault(), (hole, Access::READ));
    assert_eq!(rig.copy(target, hole - 0x40, 0x100), FAULT);
    assert_eq!(rig.fault(), (hole, WRITE, 0x40));
    assert_eq!(daemon.fault(), (hole, Access::WRITE));

    daemon.map_for(hole, rig.vmm.gpa(hole), PAGE, Access::READ);
    assert_eq!(rig.copy(hole, target, PAGE), DONE);
    assert_eq!(rig.copy(target, hole, PAGE), FAULT);
    assert_eq!(rig.fault(), (hole, WRITE, 0));
    rig.end();
}

#[test]
fn a_reset_ends_a_copy_that_waits_and_tells_the_iommu() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    daemon.park();
    rig.begin(RAM, RAM + 0x10_0000, PAGE);
    assert_eq!(rig.status(), BUSY);
    rig.vmm.reset_function();
    assert_eq!((rig.status(), rig.fault()), (0, (0, 0, 0)));
    assert_eq!(daemon.functions(), [false]);

    daemon.resume();
    assert_eq!(rig.copy(RAM, RAM + 0x10_0000, PAGE), DONE);
    assert_eq!(daemon.functions(), [false, true]);
    rig.end();
}

#[test]
fn parked_copies_go_on_when_accesses_do() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    rig.vmm.write_ram(RAM, b"waits");
    daemon.park();
    rig.begin(RAM, RAM + 0x10_0000, 5);
    assert_eq!(rig.status(), BUSY);
    daemon.resume();
    rig.vmm.wait(0);
    assert_eq!(rig.status(), DONE);
    assert_eq!(rig.vmm.read_ram(RAM + 0x10_0000, 5), b"waits");
    rig.end();
}

#[test]
fn without_its_daemon_a_copy_fails_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    assert_eq!(rig.copy(RAM, RAM + PAGE, 16), DONE);
    drop(daemon);
    // a copy that begins before the end is seen still succeeds
    let failed = (0..10_000).any(|_| rig.copy(RAM, RAM + PAGE, 16) == FAULT);
    assert!(failed);
    assert_eq!(rig.fault(), (RAM, NO_IOMMU, 0));
    assert_eq!(rig.copy(RAM, RAM + PAGE, 16), FAULT);
    rig.end();
}

//! The disk behind the IOMMU: each page that the device sees lies somewhere else in memory.

use std::path::Path;

use rustix::event::Timespec;
use viommu_pgtable::Access;

use super::machine::{RAM, RAM_BYTES, RINGS};
use super::*;
use crate::support::rig::Daemon;

/// Long enough for an answer to come that must not.
const A_MOMENT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };

const NEEDS_RESET: u8 = 0x40;
const PAGE: u64 = 4096;

/// An IOMMU, and a disk behind it whose driver is up.
struct Rig {
    folder: tempfile::TempDir,
    daemon: Daemon,
    served: Served,
    machine: Machine,
    image: tempfile::NamedTempFile,
}

impl Rig {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let daemon = Daemon::new(&socket(folder.path()));
        let dma = DmaPort::connect(Some(&socket(folder.path()))).unwrap();
        let image = image();
        let served = serve_through(&image, false, 1, dma);
        let mut machine = Machine::behind(&daemon, &served);
        machine.start(FEATURES);
        Self { folder, daemon, served, machine, image }
    }

    fn unmap(&self, iova: u64) {
        self.daemon.unmap(iova, self.machine.vmm.gpa(iova), PAGE);
    }

    fn map_for(&self, iova: u64, access: Access) {
        self.daemon.map_for(iova, self.machine.vmm.gpa(iova), PAGE, access);
    }

    fn end(self) {
        end(self.served, self.machine);
    }
}

fn socket(folder: &Path) -> std::path::PathBuf {
    folder.join("iotlb")
}

#[test]
fn data_that_crosses_pages_is_gathered_and_scattered() {
    let mut rig = Rig::new();
    let pattern: Vec<u8> = (0..=250).cycle().take(3 * 4096).collect();
    let machine = &mut rig.machine;
    machine.vmm.write_ram(DATA + 100, &pattern);
    assert_eq!(machine.request(WRITE, 3, &[(DATA + 100, 3 * 4096, false)]), (OK, 1));
    let back = DATA + 0x8000 - 8;
    assert_eq!(machine.request(READ, 3, &[(back, 3 * 4096, true)]), (OK, 3 * 4096 + 1));
    assert_eq!(machine.vmm.read_ram(back, 3 * 4096), pattern);
    assert_eq!(std::fs::read(rig.image.path()).unwrap()[3 * 512..27 * 512], pattern);
    rig.end();
}

#[test]
fn a_buffer_that_is_not_mapped_fails_its_request_and_is_reported() {
    let mut rig = Rig::new();
    rig.unmap(DATA + PAGE);
    let across = [(DATA, 8192, true)];
    assert_eq!(rig.machine.request(READ, 0, &across), (IO_ERROR, 1));
    assert_eq!(rig.daemon.fault(), (DATA + PAGE, Access::WRITE));
    assert_eq!(rig.machine.request(WRITE, 0, &[(DATA, 8192, false)]), (IO_ERROR, 1));
    assert_eq!(rig.daemon.fault(), (DATA + PAGE, Access::READ));

    rig.map_for(DATA + PAGE, Access::READ);
    assert_eq!(rig.machine.request(READ, 0, &across), (IO_ERROR, 1));
    assert_eq!(rig.daemon.fault(), (DATA + PAGE, Access::WRITE));
    rig.unmap(DATA + PAGE);
    rig.map_for(DATA + PAGE, Access::WRITE);
    assert_eq!(rig.machine.request(READ, 0, &across), (OK, 8193));
    rig.end();
}

#[test]
fn a_ring_that_is_not_mapped_needs_a_reset_and_serves_after_it() {
    let mut rig = Rig::new();
    rig.unmap(RINGS);
    rig.machine.publish(0, 0);
    rig.machine.notify(0);
    rig.machine.vmm.wait(0);
    assert_eq!(rig.machine.status(), 0x0f | NEEDS_RESET);
    assert_eq!(rig.daemon.fault(), (RINGS, Access::READ));
    rig.map_for(RINGS, Access::RW);
    rig.machine.start(FEATURES);
    assert_eq!(rig.machine.request(READ, 1, &[(DATA, 512, true)]), (OK, 513));
    rig.end();
}

#[test]
fn parked_accesses_wait_and_then_happen() {
    let mut rig = Rig::new();
    rig.daemon.park();
    rig.machine.vmm.write_ram(HEADER, &[0; 16]);
    let sector = [(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)];
    rig.machine.post(0, &sector, false);
    rig.machine.notify(0);
    assert!(!rig.machine.vmm.interrupted(1, &A_MOMENT));
    rig.daemon.resume();
    rig.machine.vmm.wait(1);
    assert_eq!(rig.machine.used(0), (0, 513));
    rig.end();
}

#[test]
fn a_reset_does_not_wait_for_parked_accesses_and_is_told_before_it_is_answered() {
    let mut rig = Rig::new();
    rig.daemon.park();
    rig.machine.notify(0);
    rig.machine.vmm.reset_function();
    assert_eq!(rig.daemon.functions(), [false]);
    rig.daemon.resume();
    rig.machine.start(FEATURES);
    assert_eq!(rig.daemon.functions(), [false, true]);
    rig.machine.start(FEATURES);
    assert_eq!(rig.daemon.functions(), [false, true], "a driver's reset is none of the function's");
    assert_eq!(rig.machine.request(READ, 1, &[(DATA, 512, true)]), (OK, 513));
    rig.end();
}

#[test]
fn without_its_daemon_the_disk_stops_and_finds_the_next_one() {
    let mut rig = Rig::new();
    let path = socket(rig.folder.path());
    drop(rig.daemon);
    // a look at the ring that begins before the end is seen still succeeds
    let refused = (0..400).any(|_| {
        rig.machine.notify(0);
        rig.machine.vmm.interrupted(0, &A_MOMENT)
    });
    assert!(refused);
    assert_eq!(rig.machine.status(), 0x0f | NEEDS_RESET);
    rig.machine.vmm.reset_function();
    let next = Daemon::new(&path);
    for page in (RAM..RAM + RAM_BYTES).step_by(4096) {
        next.map(page, rig.machine.vmm.gpa(page), PAGE);
    }
    rig.machine.start(FEATURES);
    assert_eq!(rig.machine.request(READ, 1, &[(DATA, 512, true)]), (OK, 513));
    end(rig.served, rig.machine);
}

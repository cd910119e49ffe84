//! The whole device behind its socket, driven as a guest's driver does.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use viommu_pasid::Pasid;
use viommu_pgtable::Access;

use super::support::DmaPort;
use super::support::rig::{Daemon, RAM, RAM_BYTES, Served, Vmm};

const PAGE: u64 = 4096;

/// One for the copy, one for each of eight queues.
const VECTORS: u32 = 9;

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
        let served = Served::new(super::device::function(dma).unwrap(), 1);
        let vmm = Vmm::new(&served, VECTORS);
        Self { served, vmm }
    }

    fn behind(daemon: &Daemon, socket: &Path) -> Self {
        let dma = Arc::new(DmaPort::connect(Some(socket)).unwrap());
        let served = Served::new(super::device::function(dma).unwrap(), 1);
        let vmm = Vmm::behind(daemon, &served, VECTORS);
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

/// A descriptor of a work queue, and what it is to come to.
struct Work {
    operation: u8,
    source: u64,
    destination: u64,
    bytes: u32,
}

/// RESULT, INFO, BYTES and FAULT_ADDR.
type Outcome = (u32, u32, u64, u64);

const COPY: u8 = 1;
const FILL: u8 = 2;
const COMPARE: u8 = 3;

impl Rig {
    fn queue_register(&mut self, queue: u64, register: u64) -> u32 {
        let bytes = self.vmm.read_bar(0x100 + 0x40 * queue + register, 4);
        u32::from_le_bytes(bytes.try_into().unwrap())
    }

    fn set_queue_register(&mut self, queue: u64, register: u64, value: u32) {
        self.vmm.write_bar(0x100 + 0x40 * queue + register, &value.to_le_bytes());
    }

    /// Puts work at place `slot` of a ring, with an interrupt at its end.
    fn put(&mut self, queue: u64, slot: u32, work: &Work) {
        let mut raw = vec![work.operation, 1, 0, 0];
        raw.extend(work.bytes.to_le_bytes());
        raw.extend([work.source, work.destination].into_iter().flat_map(u64::to_le_bytes));
        raw.extend(*b"pattern.");
        self.vmm.write_bar(0x1000 + 0x800 * queue + 64 * u64::from(slot), &raw);
    }

    fn outcome(&mut self, queue: u64, slot: u32) -> Outcome {
        let raw = self.vmm.read_bar(0x1000 + 0x800 * queue + 64 * u64::from(slot) + 0x20, 0x18);
        let word = |at: usize| u32::from_le_bytes(raw[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(raw[at..at + 8].try_into().unwrap());
        (word(0), word(4), long(8), long(16))
    }

    /// Enables a queue, which is off, and has it do `work` at place 0.
    fn work(&mut self, queue: u64, pasid: u32, work: &Work) -> Outcome {
        self.set_queue_register(queue, 0x00, pasid);
        self.set_queue_register(queue, 0x04, 1);
        assert_eq!((self.queue_register(queue, 4), self.queue_register(queue, 0x10)), (1, 0));
        self.put(queue, 0, work);
        self.set_queue_register(queue, 0x08, 1);
        self.vmm.wait(1 + usize::try_from(queue).unwrap());
        self.set_queue_register(queue, 0x04, 0);
        self.outcome(queue, 0)
    }
}

#[test]
fn a_work_queue_copies_fills_and_compares_and_interrupts_with_its_own_vector() {
    let mut rig = Rig::direct();
    rig.vmm.write_ram(RAM, &pattern(0x3000));
    let copy = Work { operation: COPY, source: RAM, destination: RAM + 0x10_0000, bytes: 0x3000 };
    assert_eq!(rig.work(0, 0, &copy), (1, 0, 0x3000, 0));
    assert_eq!(rig.vmm.read_ram(RAM + 0x10_0000, 0x3000), pattern(0x3000));
    let compare = Work { operation: COMPARE, ..copy };
    assert_eq!(rig.work(7, 0, &compare), (1, 0, 0x3000, 0));
    rig.vmm.write_ram(RAM + 0x1234, b"!");
    assert_eq!(rig.work(7, 0, &compare), (3, 0, 0x1234, 0));
    let fill = Work { operation: FILL, source: 0, destination: RAM + 4, bytes: 10 };
    assert_eq!(rig.work(3, 0, &fill), (1, 0, 10, 0));
    assert_eq!(rig.vmm.read_ram(RAM + 4, 11), b"pattern.pa\x0e");
    let impossible = Work { operation: 9, ..fill };
    assert_eq!(rig.work(3, 0, &impossible), (4, 0, 0, 0));
    rig.end();
}

#[test]
fn a_fault_ends_its_descriptor_and_the_queue_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    let (hole, target) = (RAM + 3 * PAGE, RAM + 0x10_0000);
    daemon.unmap(hole, rig.vmm.gpa(hole), PAGE);
    rig.set_queue_register(1, 0x04, 1);
    let works = [
        Work { operation: COPY, source: hole - 0x30, destination: target, bytes: 0x100 },
        Work { operation: FILL, source: 0, destination: hole - 0x10, bytes: 0x20 },
        Work { operation: COMPARE, source: RAM, destination: hole, bytes: 1 },
        Work { operation: FILL, source: 0, destination: target, bytes: 0x100 },
    ];
    for (slot, work) in (0..).zip(&works) {
        rig.put(1, slot, work);
    }
    rig.set_queue_register(1, 0x08, 4);
    while rig.queue_register(1, 0x0c) != 4 {
        rig.vmm.wait(2);
    }
    assert_eq!(rig.outcome(1, 0), (2, 0, 0x30, hole));
    assert_eq!(rig.outcome(1, 1), (2, 1, 0x10, hole));
    assert_eq!(rig.outcome(1, 2), (2, 0, 0, hole));
    assert_eq!(rig.outcome(1, 3), (1, 0, 0x100, 0));
    let faults = [Access::READ, Access::WRITE, Access::READ].map(|access| (hole, access));
    assert_eq!([daemon.fault(), daemon.fault(), daemon.fault()], faults);
    rig.end();
}

#[test]
fn without_an_iommu_there_are_no_pasids_to_tag_with() {
    let mut rig = Rig::direct();
    assert_eq!(rig.vmm.read_config(0x100, 4), [0; 4]);
    rig.set_queue_register(2, 0x00, 1 << 31 | 5);
    rig.set_queue_register(2, 0x04, 1);
    assert_eq!((rig.queue_register(2, 0x04), rig.queue_register(2, 0x10)), (0, 1));
    rig.end();
}

#[test]
fn a_queue_that_is_disabled_or_reset_leaves_the_descriptor_it_was_at() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    let work = Work { operation: FILL, source: 0, destination: RAM, bytes: 8 };
    daemon.park();
    rig.set_queue_register(0, 0x04, 1);
    rig.put(0, 0, &work);
    rig.set_queue_register(0, 0x08, 1);
    rig.set_queue_register(0, 0x04, 0);
    assert_eq!((rig.queue_register(0, 0x04), rig.queue_register(0, 0x0c)), (0, 0));
    assert_eq!(rig.outcome(0, 0), (0, 0, 0, 0));
    rig.set_queue_register(0, 0x04, 1);
    rig.set_queue_register(0, 0x08, 1);
    rig.vmm.reset_function();
    assert_eq!((rig.queue_register(0, 0x04), rig.queue_register(0, 0x08)), (0, 0));
    daemon.resume();
    assert_eq!(rig.work(0, 0, &work), (1, 0, 8, 0));
    rig.end();
}

/// PASID register of a tagged queue.
const TAGGED: u32 = 1 << 31;

/// The PASID capability's control register, and its enable bit.
const PASID_CONTROL: u64 = 0x106;
const ENABLED: [u8; 2] = [1, 0];

#[test]
fn a_tagged_queue_reaches_what_its_pasid_is_attached_to_and_no_other_does() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    daemon.attach(Pasid::new(5).unwrap());
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    assert_eq!(rig.vmm.read_config(0x104, 4), [0, Daemon::PASID_BITS, 0, 0]);
    rig.vmm.write_config(PASID_CONTROL, &ENABLED);
    let work = Work { operation: FILL, source: 0, destination: RAM + PAGE, bytes: 8 };
    assert_eq!(rig.work(0, TAGGED | 5, &work), (1, 0, 8, 0));
    assert_eq!(rig.vmm.read_ram(RAM + PAGE, 8), b"pattern.");
    assert_eq!(rig.work(1, TAGGED | 6, &work), (2, 1, 0, RAM + PAGE));
    assert_eq!(daemon.fault(), (RAM + PAGE, Access::WRITE));
    rig.end();
}

#[test]
fn tags_are_refused_until_software_allows_them_and_end_when_it_no_longer_does() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(&socket(&folder));
    let mut rig = Rig::behind(&daemon, &socket(&folder));
    let enable = |rig: &mut Rig, queue, pasid| {
        rig.set_queue_register(queue, 0x00, pasid);
        rig.set_queue_register(queue, 0x04, 1);
        (rig.queue_register(queue, 0x04), rig.queue_register(queue, 0x10))
    };
    assert_eq!(enable(&mut rig, 0, TAGGED | 5), (0, 1), "not allowed yet");
    rig.vmm.write_config(PASID_CONTROL, &ENABLED);
    assert_eq!(enable(&mut rig, 0, TAGGED), (0, 1), "PASID 0");
    assert_eq!(enable(&mut rig, 0, TAGGED | 5), (1, 0));
    assert_eq!(enable(&mut rig, 1, 0), (1, 0));
    rig.vmm.write_config(PASID_CONTROL, &[0, 0]);
    assert_eq!((rig.queue_register(0, 0x04), rig.queue_register(1, 0x04)), (0, 1));
    rig.end();
}

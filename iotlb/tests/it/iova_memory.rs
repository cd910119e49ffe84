//! vm-memory and virtio-queue on top of a reader.

use std::io::{Read, Write};

use viommu_iotlb::{AccessFault, DeviceEvent, HubConfig, IovaMemory};
use viommu_pgtable::{Access, Iova};
use virtio_queue::desc::RawDescriptor;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::guest_memory::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use crate::support::Daemon;

const PAGE: u64 = 0x1000;
/// Pages of guest memory.
const PAGES: u64 = 64;
/// The descriptor's flags (virtio 1.4, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Two regions that touch: a piece may span them.
fn memory() -> GuestMemoryMmap {
    let half = usize::try_from(PAGES / 2 * PAGE).unwrap();
    let second = GuestAddress(PAGES / 2 * PAGE);
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), half), (second, half)]).unwrap()
}

/// Where page `page` of the IOVA space lies: neighbours are never neighbours.
const fn scattered(page: u64) -> u64 {
    (page * 27 + 5) % PAGES
}

/// A daemon in which each page of the IOVA space from `base` on is mapped to a page elsewhere.
fn scatter(base: u64) -> Daemon {
    let daemon = Daemon::start(HubConfig::default());
    daemon.run(move |world| {
        for page in 0..PAGES {
            world.map(base + page * PAGE, PAGE, scattered(page) * PAGE, Access::RW);
        }
    });
    daemon
}

#[test]
fn bytes_written_by_iova_lie_where_the_mappings_lead() {
    let base = 0x7_0000_0000;
    let daemon = scatter(base);
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let (guard, memory) = (reader.enter().unwrap(), memory());
    let iovas = IovaMemory::new(&guard, None, &memory);
    let text: Vec<u8> = (0..3 * PAGE).map(|n| u8::try_from(n % 251).unwrap()).collect();
    iovas.write_slice(&text, GuestAddress(base + PAGE / 2)).unwrap();
    let mut back = vec![0; text.len()];
    iovas.read_slice(&mut back, GuestAddress(base + PAGE / 2)).unwrap();
    assert_eq!(back, text);
    let mut second = vec![0; 0x1000];
    memory.read_slice(&mut second, GuestAddress(scattered(1) * PAGE)).unwrap();
    assert_eq!(second, text[0x800..0x1800]);
    assert_eq!(iovas.fault(), None);
}

#[test]
fn a_piece_may_span_regions_of_guest_memory() {
    let daemon = Daemon::start(HubConfig::default());
    daemon.run(|world| world.map(0, PAGES * PAGE, 0, Access::RW));
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let (guard, memory) = (reader.enter().unwrap(), memory());
    let iovas = IovaMemory::new(&guard, None, &memory);
    let middle = GuestAddress(PAGES / 2 * PAGE - 4);
    let lens: Vec<_> = iovas
        .get_slices(middle, 8, Permissions::Write)
        .unwrap()
        .map(|slice| slice.unwrap().len())
        .collect();
    assert_eq!(lens, [4, 4]);
    iovas.write_obj(0x0123_4567_89ab_cdef_u64, middle).unwrap();
    assert_eq!(memory.read_obj::<u64>(middle).unwrap(), 0x0123_4567_89ab_cdef);
}

#[test]
fn a_refused_access_is_an_error_with_the_fault_inside_and_reaches_the_daemon() {
    let daemon = Daemon::start(HubConfig::default());
    daemon.run(|world| {
        world.map(0, PAGE, 0, Access::READ);
        world.map(PAGE, PAGE, PAGES * PAGE, Access::RW);
    });
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let (guard, memory) = (reader.enter().unwrap(), memory());
    let iovas = IovaMemory::new(&guard, None, &memory);
    assert!(iovas.check_range(GuestAddress(0), 16, Permissions::Read));
    assert!(!iovas.check_range(GuestAddress(0), 16, Permissions::Write));
    assert!(!iovas.check_range(GuestAddress(PAGE), 16, Permissions::Read), "not in guest memory");
    assert_eq!(iovas.fault(), None, "a question is no access");
    // mapped, but to where the guest has no memory: the VMM's business
    assert!(iovas.write_obj(1u32, GuestAddress(PAGE)).is_err());
    assert_eq!(iovas.fault(), None);
    let Error::IOError(error) = iovas.write_obj(1u32, GuestAddress(8)).unwrap_err() else {
        panic!("another error");
    };
    let fault = *error.get_ref().unwrap().downcast_ref::<AccessFault>().unwrap();
    assert_eq!((fault.iova, fault.access), (Iova::new(8), Access::WRITE));
    assert_eq!(iovas.fault(), Some(fault));
    let is_ours = |event: &DeviceEvent| match event {
        DeviceEvent::Fault { record, .. } => record.iova == Iova::new(8),
        _ => false,
    };
    daemon.events(|events| events.iter().any(is_ours));
}

/// The driver's side of a split ring at IOVA `at`, in guest memory as the IOMMU scatters it.
struct Driver<'a> {
    iovas: &'a IovaMemory<'a, GuestMemoryMmap>,
    at: u64,
}

impl Driver<'_> {
    const SIZE: u16 = 256;

    /// Descriptors at a page's last 64 bytes, so that the table crosses pages.
    const fn table(&self) -> u64 {
        self.at + PAGE - 64
    }

    const fn avail(&self) -> u64 {
        self.table() + 16 * Self::SIZE as u64
    }

    const fn used(&self) -> u64 {
        self.avail() + 0x1000
    }

    fn put(&self, table: u64, index: u64, (addr, len): (u64, u32), (flags, next): (u16, u16)) {
        let descriptor = RawDescriptor::from(Descriptor::new(addr, len, flags, next));
        self.iovas.write_obj(descriptor, GuestAddress(table + 16 * index)).unwrap();
    }

    fn offer(&self, head: u16) {
        self.iovas.write_obj(head, GuestAddress(self.avail() + 4)).unwrap();
        self.iovas.write_obj(1u16, GuestAddress(self.avail() + 2)).unwrap();
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(Self::SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(self.table())).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(self.avail())).unwrap();
        queue.try_set_used_ring_address(GuestAddress(self.used())).unwrap();
        queue.set_ready(true);
        queue
    }
}

#[test]
fn a_queue_in_scattered_pages_pops_an_indirect_chain_and_returns_it() {
    let base = 0x9_0000_0000;
    let daemon = scatter(base);
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let (guard, memory) = (reader.enter().unwrap(), memory());
    let iovas = IovaMemory::new(&guard, None, &memory);
    let driver = Driver { iovas: &iovas, at: base };
    // an indirect table, a request and a reply, each across a page's end
    let (table, request, reply) =
        (base + 11 * PAGE - 16, base + 21 * PAGE - 5, base + 31 * PAGE - 3);
    driver.put(driver.table(), 200, (table, 32), (INDIRECT, 0));
    driver.put(table, 0, (request, 10), (NEXT, 1));
    driver.put(table, 1, (reply, 10), (WRITE, 0));
    iovas.write_slice(b"a question", GuestAddress(request)).unwrap();
    driver.offer(200);

    let mut queue = driver.queue();
    assert!(queue.is_valid(&iovas));
    let chain = queue.pop_descriptor_chain(&iovas).unwrap();
    let head = chain.head_index();
    let mut asked = String::new();
    chain.clone().reader(&iovas).unwrap().read_to_string(&mut asked).unwrap();
    assert_eq!(asked, "a question");
    chain.writer(&iovas).unwrap().write_all(b"the answer").unwrap();
    queue.add_used(&iovas, head, 10).unwrap();

    let mut answer = [0; 10];
    iovas.read_slice(&mut answer, GuestAddress(reply)).unwrap();
    assert_eq!(&answer, b"the answer");
    let used: u32 = iovas.read_obj(GuestAddress(driver.used() + 4)).unwrap();
    assert_eq!(used, 200);
    assert!(queue.pop_descriptor_chain(&iovas).is_none());
    assert_eq!(iovas.fault(), None);
}

#[test]
fn a_chain_that_leads_to_what_is_not_mapped_ends_in_a_fault_and_no_panic() {
    let base = 0x9_0000_0000;
    let daemon = scatter(base);
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let (guard, memory) = (reader.enter().unwrap(), memory());
    let iovas = IovaMemory::new(&guard, None, &memory);
    let driver = Driver { iovas: &iovas, at: base };
    driver.put(driver.table(), 3, (0xdead_0000, 64), (0, 0));
    driver.offer(3);
    let mut queue = driver.queue();
    let chain = queue.pop_descriptor_chain(&iovas).unwrap();
    let mut bytes = Vec::new();
    let read = chain.reader(&iovas).map(|mut reader| reader.read_to_end(&mut bytes));
    assert!(read.is_err() || bytes.is_empty());
    assert_eq!(iovas.fault().unwrap().iova, Iova::new(0xdead_0000));
}

//! A VMM and a guest's virtio driver, small enough for a test: the device under test runs behind a
//! real vfio-user socket, with guest memory in a file that both sides map.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use vfio_user::{Client, Server};

use super::super::disk::Disk;
use super::super::support::DmaPort;

/// Where guest memory begins and how much there is.
pub(crate) const RAM: u64 = 0x8000_0000;
pub(crate) const RAM_BYTES: u64 = 2 << 20;

/// Guest-physical places of what a test needs.
pub(crate) const RINGS: u64 = RAM;
const INDIRECT: u64 = RAM + 0x8000;
pub(crate) const HEADER: u64 = RAM + 0x9000;
pub(crate) const STATUS: u64 = RAM + 0x9100;
pub(crate) const DATA: u64 = RAM + 0x10000;

pub(crate) const QUEUE_SIZE: u16 = 8;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const RING_STRIDE: u64 = 0x3000;

const COMMON: u64 = 0;
const NOTIFY: u64 = 0x3000;
const CONFIG_REGION: u32 = 7;
const MSIX_INDEX: u32 = 2;
/// Trigger by eventfd.
const SET_EVENTFD: u32 = 0x24;

/// How long an interrupt may take before a test has failed.
const PATIENCE: Timespec = Timespec { tv_sec: 20, tv_nsec: 0 };

/// VERSION_1, ACCESS_PLATFORM, INDIRECT_DESC, EVENT_IDX.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 33 | 1 << 28 | 1 << 29;

/// A buffer of a chain: address, bytes, written by the device.
pub(crate) type Buffer = (u64, u32, bool);

/// The device process's side: serves as many VMMs as it is told.
pub(crate) struct Served {
    folder: tempfile::TempDir,
    thread: JoinHandle<()>,
}

impl Served {
    /// Serves `disk` behind 2 queues to `clients` VMMs, one after the other.
    pub(crate) fn new(disk: Disk, clients: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let dma = Arc::new(DmaPort::connect(None).unwrap());
        let mut function = super::super::function(disk, dma, 2).unwrap();
        let path = folder.path().join("socket");
        let server = Server::new(&path, true, function.irqs(), function.regions()).unwrap();
        let thread = thread::spawn(move || {
            for _ in 0..clients {
                server.run(&mut function).unwrap();
                function.disconnect();
            }
        });
        Self { folder, thread }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Returns when all VMMs were served.
    pub(crate) fn join(self) {
        self.thread.join().unwrap();
    }
}

/// The VMM and the guest in it.
pub(crate) struct Machine {
    client: Client,
    memory: File,
    interrupts: Vec<OwnedFd>,
    rings: [DriverRing; 2],
}

/// The driver's side of a queue.
#[derive(Debug, Clone, Copy, Default)]
struct DriverRing {
    available: u16,
    used: u16,
}

impl Machine {
    /// Connects and gives the device its memory and its interrupts.
    pub(crate) fn new(served: &Served) -> Self {
        Self::connect(&served.socket())
    }

    fn connect(socket: &Path) -> Self {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(RAM_BYTES).unwrap();
        let mut client = Client::new(socket).unwrap();
        client.dma_map(0, RAM, RAM_BYTES, memory.as_raw_fd()).unwrap();
        let interrupts = (0..3).map(|_| eventfd(0, EventfdFlags::empty()).unwrap()).collect();
        let mut machine = Self { client, memory, interrupts, rings: Default::default() };
        machine.wire_interrupts();
        machine
    }

    /// As QEMU does: enable first, with nothing to trigger, then vector by vector.
    fn wire_interrupts(&mut self) {
        self.client.region_write(CONFIG_REGION, 0x42, &0x8000u16.to_le_bytes()).unwrap();
        self.client.set_irqs(MSIX_INDEX, SET_EVENTFD, 0, 1, &[]).unwrap();
        for (vector, interrupt) in (0..).zip(&self.interrupts) {
            let fds = [interrupt.as_raw_fd()];
            self.client.set_irqs(MSIX_INDEX, SET_EVENTFD, vector, 1, &fds).unwrap();
        }
    }

    /// Brings the driver up with `features`; queue n uses vector n + 1, configuration vector 0.
    pub(crate) fn start(&mut self, features: u64) {
        self.set_status(0);
        self.rings = Default::default();
        self.write_ram(RINGS, &[0; 0x8000]);
        self.set_status(3);
        self.accept(features);
        self.set_status(0x0b);
        assert_eq!(self.status(), 0x0b, "features were refused");
        self.write_common(0x10, &0u16.to_le_bytes());
        for queue in 0..2 {
            self.set_up_queue(queue);
        }
        self.set_status(0x0f);
    }

    pub(crate) fn accept(&mut self, features: u64) {
        for (half, bits) in (0u32..).zip(features.to_le_bytes().chunks(4)) {
            self.write_common(0x08, &half.to_le_bytes());
            self.write_common(0x0c, bits);
        }
    }

    fn set_up_queue(&mut self, queue: u16) {
        let ring = RINGS + u64::from(queue) * RING_STRIDE;
        self.write_common(0x16, &queue.to_le_bytes());
        self.write_common(0x18, &QUEUE_SIZE.to_le_bytes());
        self.write_common(0x1a, &(queue + 1).to_le_bytes());
        self.write_common(0x20, &ring.to_le_bytes());
        self.write_common(0x28, &(ring + AVAILABLE).to_le_bytes());
        self.write_common(0x30, &(ring + USED).to_le_bytes());
        self.write_common(0x1c, &1u16.to_le_bytes());
    }

    pub(crate) fn status(&mut self) -> u8 {
        self.read_bar(COMMON + 0x14, 1)[0]
    }

    pub(crate) fn set_status(&mut self, status: u8) {
        self.write_common(0x14, &[status]);
    }

    pub(crate) fn write_common(&mut self, register: u64, value: &[u8]) {
        self.client.region_write(0, COMMON + register, value).unwrap();
    }

    pub(crate) fn read_bar(&mut self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.client.region_read(0, offset, &mut data).unwrap();
        data
    }

    pub(crate) fn read_config(&mut self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.client.region_read(CONFIG_REGION, offset, &mut data).unwrap();
        data
    }

    pub(crate) fn reset_function(&mut self) {
        self.client.reset().unwrap();
    }

    pub(crate) fn unmap_ram(&mut self) {
        self.client.dma_unmap(RAM, RAM_BYTES).unwrap();
    }

    pub(crate) fn map_ram(&mut self) {
        self.client.dma_map(0, RAM, RAM_BYTES, self.memory.as_raw_fd()).unwrap();
    }

    pub(crate) fn write_ram(&self, address: u64, data: &[u8]) {
        self.memory.write_all_at(data, address - RAM).unwrap();
    }

    pub(crate) fn read_ram(&self, address: u64, bytes: usize) -> Vec<u8> {
        let mut data = vec![0; bytes];
        self.memory.read_exact_at(&mut data, address - RAM).unwrap();
        data
    }

    /// Makes a chain available on `queue` without saying so.
    pub(crate) fn post(&mut self, queue: usize, buffers: &[Buffer], indirect: bool) {
        let ring = RINGS + queue as u64 * RING_STRIDE;
        let table = if indirect { INDIRECT } else { ring };
        let count = u16::try_from(buffers.len()).unwrap();
        for (n, &(address, bytes, writable)) in (0..).zip(buffers) {
            let flags = u16::from(n + 1 < count) | u16::from(writable) << 1;
            self.write_descriptor(table, n, (address, bytes, flags, n + 1));
        }
        if indirect {
            self.write_descriptor(ring, 0, (INDIRECT, 16 * u32::from(count), 4, 0));
        }
        self.publish(queue, 0);
    }

    pub(crate) fn write_descriptor(&self, table: u64, n: u16, value: (u64, u32, u16, u16)) {
        let mut bytes = value.0.to_le_bytes().to_vec();
        bytes.extend(value.1.to_le_bytes());
        bytes.extend(value.2.to_le_bytes());
        bytes.extend(value.3.to_le_bytes());
        self.write_ram(table + 16 * u64::from(n), &bytes);
    }

    /// Puts the chain at descriptor `head` into the available ring.
    pub(crate) fn publish(&mut self, queue: usize, head: u16) {
        let ring = RINGS + queue as u64 * RING_STRIDE + AVAILABLE;
        let slot = u64::from(self.rings[queue].available % QUEUE_SIZE);
        self.write_ram(ring + 4 + 2 * slot, &head.to_le_bytes());
        // an interrupt for the next used entry; asked for first, since the device may still be looking
        let used_event = ring + 4 + 2 * u64::from(QUEUE_SIZE);
        self.write_ram(used_event, &self.rings[queue].used.to_le_bytes());
        let available = self.rings[queue].available.wrapping_add(1);
        self.rings[queue].available = available;
        self.set_available(queue, available);
    }

    pub(crate) fn set_available(&self, queue: usize, index: u16) {
        let ring = RINGS + queue as u64 * RING_STRIDE + AVAILABLE;
        self.write_ram(ring + 2, &index.to_le_bytes());
    }

    pub(crate) fn notify(&mut self, queue: usize) {
        self.client.region_write(0, NOTIFY + 4 * queue as u64, &[0; 2]).unwrap();
    }

    /// Waits for the interrupt of vector `vector`.
    pub(crate) fn wait(&self, vector: usize) {
        let interrupt = &self.interrupts[vector];
        let mut ready = [PollFd::new(interrupt, PollFlags::IN)];
        assert_eq!(poll(&mut ready, Some(&PATIENCE)), Ok(1), "no interrupt");
        rustix::io::read(interrupt, &mut [0; 8]).unwrap();
    }

    /// The next used entry of `queue`: first descriptor and written bytes.
    pub(crate) fn used(&mut self, queue: usize) -> (u32, u32) {
        let ring = RINGS + queue as u64 * RING_STRIDE + USED;
        let mine = self.rings[queue].used;
        assert_eq!(self.read_ram(ring + 2, 2), (mine.wrapping_add(1)).to_le_bytes());
        self.rings[queue].used = mine.wrapping_add(1);
        let entry = self.read_ram(ring + 4 + 8 * u64::from(mine % QUEUE_SIZE), 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }

    /// Posts a chain, notifies, waits for the answer. Returns the used entry's length.
    pub(crate) fn serve(&mut self, queue: usize, buffers: &[Buffer], indirect: bool) -> u32 {
        self.post(queue, buffers, indirect);
        self.notify(queue);
        self.wait(queue + 1);
        let (head, bytes) = self.used(queue);
        assert_eq!(head, 0);
        bytes
    }

    /// A request with `data` between header and status. Returns the status and the used length.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.write_ram(HEADER, &header);
        self.write_ram(STATUS, &[0xee]);
        let mut buffers = vec![(HEADER, 16, false)];
        buffers.extend(data);
        buffers.push((STATUS, 1, true));
        let bytes = self.serve(0, &buffers, true);
        (self.read_ram(STATUS, 1)[0], bytes)
    }

    /// The VMM goes away.
    pub(crate) fn leave(self) {
        self.client.shutdown().unwrap();
    }
}

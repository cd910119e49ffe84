//! A guest's virtio driver, small enough for a test.

use super::super::support::rig::{Daemon, Served, Vmm};

pub(crate) use super::super::support::rig::{RAM, RAM_BYTES};

/// Places of what a test needs, as the device has them.
pub(crate) const RINGS: u64 = RAM;
const INDIRECT: u64 = RAM + 0x8000;
pub(crate) const HEADER: u64 = RAM + 0x9000;
pub(crate) const STATUS: u64 = RAM + 0x9100;
pub(crate) const DATA: u64 = RAM + 0x10000;

pub(crate) const QUEUE_SIZE: u16 = 8;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const RING_STRIDE: u64 = 0x3000;

const NOTIFY: u64 = 0x3000;

/// One for each queue, one for the configuration.
const VECTORS: u32 = 3;

/// VERSION_1, ACCESS_PLATFORM, INDIRECT_DESC, EVENT_IDX.
pub(crate) const FEATURES: u64 = 1 << 32 | 1 << 33 | 1 << 28 | 1 << 29;

/// A buffer of a chain: address, bytes, written by the device.
pub(crate) type Buffer = (u64, u32, bool);

/// A guest with its driver.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) vmm: Vmm,
    rings: [DriverRing; 2],
}

/// The driver's side of a queue.
#[derive(Debug, Clone, Copy, Default)]
struct DriverRing {
    available: u16,
    used: u16,
}

impl Machine {
    /// Connects; the driver is not up yet.
    pub(crate) fn new(served: &Served) -> Self {
        Self { vmm: Vmm::new(served, VECTORS), rings: Default::default() }
    }

    /// As [`new`](Self::new), behind the IOMMU: see [`Vmm::behind`].
    pub(crate) fn behind(daemon: &Daemon, served: &Served) -> Self {
        Self { vmm: Vmm::behind(daemon, served, VECTORS), rings: Default::default() }
    }

    /// Brings the driver up with `features`; queue n uses vector n + 1, configuration vector 0.
    pub(crate) fn start(&mut self, features: u64) {
        self.set_status(0);
        self.rings = Default::default();
        self.vmm.write_ram(RINGS, &[0; 0x8000]);
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
        self.vmm.read_bar(0x14, 1)[0]
    }

    pub(crate) fn set_status(&mut self, status: u8) {
        self.write_common(0x14, &[status]);
    }

    pub(crate) fn write_common(&mut self, register: u64, value: &[u8]) {
        self.vmm.write_bar(register, value);
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
        self.vmm.write_ram(table + 16 * u64::from(n), &bytes);
    }

    /// Puts the chain at descriptor `head` into the available ring.
    pub(crate) fn publish(&mut self, queue: usize, head: u16) {
        let ring = RINGS + queue as u64 * RING_STRIDE + AVAILABLE;
        let slot = u64::from(self.rings[queue].available % QUEUE_SIZE);
        self.vmm.write_ram(ring + 4 + 2 * slot, &head.to_le_bytes());
        // an interrupt for the next used entry; asked for first, since the device may still be looking
        let used_event = ring + 4 + 2 * u64::from(QUEUE_SIZE);
        self.vmm.write_ram(used_event, &self.rings[queue].used.to_le_bytes());
        let available = self.rings[queue].available.wrapping_add(1);
        self.rings[queue].available = available;
        self.set_available(queue, available);
    }

    pub(crate) fn set_available(&self, queue: usize, index: u16) {
        let ring = RINGS + queue as u64 * RING_STRIDE + AVAILABLE;
        self.vmm.write_ram(ring + 2, &index.to_le_bytes());
    }

    pub(crate) fn notify(&mut self, queue: usize) {
        self.vmm.write_bar(NOTIFY + 4 * queue as u64, &[0; 2]);
    }

    /// The next used entry of `queue`: first descriptor and written bytes.
    pub(crate) fn used(&mut self, queue: usize) -> (u32, u32) {
        let ring = RINGS + queue as u64 * RING_STRIDE + USED;
        let mine = self.rings[queue].used;
        assert_eq!(self.vmm.read_ram(ring + 2, 2), (mine.wrapping_add(1)).to_le_bytes());
        self.rings[queue].used = mine.wrapping_add(1);
        let entry = self.vmm.read_ram(ring + 4 + 8 * u64::from(mine % QUEUE_SIZE), 8);
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().unwrap());
        (word(0), word(4))
    }

    /// Posts a chain, notifies, waits for the answer. Returns the used entry's length.
    pub(crate) fn serve(&mut self, queue: usize, buffers: &[Buffer], indirect: bool) -> u32 {
        self.post(queue, buffers, indirect);
        self.notify(queue);
        self.vmm.wait(queue + 1);
        let (head, bytes) = self.used(queue);
        assert_eq!(head, 0);
        bytes
    }

    /// A request with `data` between header and status. Returns the status and the used length.
    pub(crate) fn request(&mut self, kind: u32, sector: u64, data: &[Buffer]) -> (u8, u32) {
        let mut header = kind.to_le_bytes().to_vec();
        header.extend([0; 4]);
        header.extend(sector.to_le_bytes());
        self.vmm.write_ram(HEADER, &header);
        self.vmm.write_ram(STATUS, &[0xee]);
        let mut buffers = vec![(HEADER, 16, false)];
        buffers.extend(data);
        buffers.push((STATUS, 1, true));
        let bytes = self.serve(0, &buffers, true);
        (self.vmm.read_ram(STATUS, 1)[0], bytes)
    }
}

//! The virtio block device (virtio 1.4, 5.2): what it offers, and a worker for each queue.

use std::io;
use std::sync::Arc;

use virtio_bindings::bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_MQ, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
};
use virtio_bindings::bindings::virtio_config::{VIRTIO_F_ACCESS_PLATFORM, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use super::disk::{Disk, SECTOR_BYTES};
use super::notifier::Notifier;
use super::request::{MAX_SEGMENT_BYTES, MAX_SEGMENTS};
use super::ring::{Ring, RingSetup};
use super::support::DmaPort;
use super::virtio_pci::VirtioDevice;
use super::worker::{Job, Worker};

/// Offered always; read-only disks add [`VIRTIO_BLK_F_RO`].
const FEATURES: u64 = 1 << VIRTIO_BLK_F_SIZE_MAX
    | 1 << VIRTIO_BLK_F_SEG_MAX
    | 1 << VIRTIO_BLK_F_BLK_SIZE
    | 1 << VIRTIO_BLK_F_FLUSH
    | 1 << VIRTIO_BLK_F_MQ
    | 1 << VIRTIO_RING_F_INDIRECT_DESC
    | 1 << VIRTIO_RING_F_EVENT_IDX
    | 1 << VIRTIO_F_VERSION_1
    | 1 << VIRTIO_F_ACCESS_PLATFORM;

/// `struct virtio_blk_config` up to `num_queues` (virtio 1.4, 5.2.4).
const CONFIGURATION_BYTES: usize = 36;

/// A disk as a virtio device.
#[derive(Debug)]
pub(crate) struct Block {
    disk: Arc<Disk>,
    dma: Arc<DmaPort>,
    queues: u16,
    configuration: [u8; CONFIGURATION_BYTES],
    /// One for each queue that the driver enabled; none while stopped.
    workers: Vec<Option<Worker>>,
}

impl Block {
    /// `disk` behind `queues` queues.
    pub(crate) fn new(disk: Disk, dma: Arc<DmaPort>, queues: u16) -> Self {
        let configuration = configuration(&disk, queues);
        Self { disk: Arc::new(disk), dma, queues, configuration, workers: Vec::new() }
    }

    fn worker(
        &self,
        queue: usize,
        setup: &RingSetup,
        event_idx: bool,
        notifier: &Arc<Notifier>,
    ) -> io::Result<Worker> {
        Worker::start(Job {
            queue,
            ring: Ring::new(setup, event_idx).map_err(io::Error::other)?,
            channel: self.dma.channel()?,
            disk: Arc::clone(&self.disk),
            notifier: Arc::clone(notifier),
        })
    }
}

impl VirtioDevice for Block {
    fn features(&self) -> u64 {
        FEATURES | u64::from(self.disk.read_only()) << VIRTIO_BLK_F_RO
    }

    fn configuration(&self) -> &[u8] {
        &self.configuration
    }

    fn queues(&self) -> u16 {
        self.queues
    }

    fn start(
        &mut self,
        features: u64,
        queues: &[Option<RingSetup>],
        notifier: &Arc<Notifier>,
    ) -> io::Result<()> {
        self.stop();
        self.dma.function_started()?;
        let event_idx = features >> VIRTIO_RING_F_EVENT_IDX & 1 == 1;
        let workers: io::Result<Vec<_>> = queues
            .iter()
            .enumerate()
            .map(|(queue, setup)| {
                setup.map(|setup| self.worker(queue, &setup, event_idx, notifier)).transpose()
            })
            .collect();
        self.workers = workers?;
        Ok(())
    }

    fn notify(&mut self, queue: usize) {
        if let Some(Some(worker)) = self.workers.get(queue) {
            worker.kick();
        }
    }

    fn stop(&mut self) {
        self.workers.clear();
    }
}

fn configuration(disk: &Disk, queues: u16) -> [u8; CONFIGURATION_BYTES] {
    let fields: [(usize, &[u8]); 5] = [
        (0, &disk.sectors().to_le_bytes()),
        (8, &MAX_SEGMENT_BYTES.to_le_bytes()),
        (12, &MAX_SEGMENTS.to_le_bytes()),
        (20, &SECTOR_BYTES.to_le_bytes()),
        (34, &queues.to_le_bytes()),
    ];
    let mut bytes = [0; CONFIGURATION_BYTES];
    for (at, field) in fields {
        bytes.iter_mut().skip(at).zip(field).for_each(|(to, from)| *to = *from);
    }
    bytes
}

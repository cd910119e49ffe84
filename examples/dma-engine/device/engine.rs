//! The device: registers in front, threads that do the work behind.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use log::warn;

use super::job::{CHUNK_BYTES, Order, Outcome};
use super::queue::{Change, QUEUES, RING_BYTES};
use super::registers::Registers;
use super::support::{Channel, Device, DmaPort, Interrupts, StopFlag};
use super::worker::{self, Shared as QueueShared, carry_out};

/// Bytes of BAR 0.
pub(super) const REGISTER_BYTES: u32 = 0x8000;

/// One for the copy, and one for each work queue.
pub(super) const VECTORS: u16 = 1 + QUEUES;

/// Where the queues' registers begin, and bytes of each.
const QUEUE_REGISTERS: u64 = 0x100;
const QUEUE_BYTES: u64 = 0x40;

/// Where the rings begin.
const RINGS: u64 = 0x1000;

const _: () = assert!(RINGS + QUEUES as u64 * RING_BYTES <= REGISTER_BYTES as u64);
const _: () = assert!(QUEUE_REGISTERS + QUEUES as u64 * QUEUE_BYTES <= RINGS);

/// The vector that the end of a copy raises.
const COPY_VECTOR: u16 = 0;

/// The DMA engine.
#[derive(Debug)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
    dma: Arc<DmaPort>,
    /// Runs from the first copy after a reset to the next reset.
    copier: Option<Copier>,
    queues: Vec<WorkQueue>,
    /// Software lets us tag DMA.
    tags: bool,
}

/// A work queue, and what does its work while it is enabled.
#[derive(Debug)]
struct WorkQueue {
    shared: Arc<QueueShared>,
    worker: Option<worker::Worker>,
}

/// What the copy's two sides see.
#[derive(Debug)]
struct Shared {
    registers: Mutex<Registers>,
    interrupts: Arc<Interrupts>,
}

impl Shared {
    fn registers(&self) -> MutexGuard<'_, Registers> {
        self.registers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self, outcome: Outcome, copied: u64) {
        self.registers().finish(outcome, copied);
        self.interrupts.raise_msix(COPY_VECTOR);
    }
}

/// What lies behind an offset of BAR 0.
enum Place {
    /// The device's own registers.
    Device,
    /// A register of a queue, and its offset there.
    Queue(usize, u64),
    /// A byte of a queue's ring.
    Ring(usize, u64),
}

impl Place {
    fn of(offset: u64) -> Self {
        let part = |base: u64, bytes: u64| {
            let inside = offset.checked_sub(base)?;
            let queue = usize::try_from(inside / bytes)
                .ok()
                .filter(|queue| *queue < usize::from(QUEUES))?;
            Some((queue, inside % bytes))
        };
        if let Some((queue, inside)) = part(RINGS, RING_BYTES) {
            Self::Ring(queue, inside)
        } else if let Some((queue, inside)) = part(QUEUE_REGISTERS, QUEUE_BYTES) {
            Self::Queue(queue, inside)
        } else {
            Self::Device
        }
    }
}

impl Engine {
    /// An idle engine.
    pub(crate) fn new(dma: Arc<DmaPort>, interrupts: &Arc<Interrupts>) -> Self {
        let queue = |vector| {
            let shared = QueueShared::new(Arc::clone(interrupts), vector);
            WorkQueue { shared: Arc::new(shared), worker: None }
        };
        let queues = (COPY_VECTOR + 1..VECTORS).map(queue).collect();
        let shared = Shared { registers: Mutex::default(), interrupts: Arc::clone(interrupts) };
        Self { shared: Arc::new(shared), dma, copier: None, queues, tags: false }
    }

    fn begin(&mut self, order: Order) -> io::Result<()> {
        let copier = match self.copier.take() {
            Some(copier) => copier,
            None => {
                self.dma.function_started()?;
                Copier::start(Arc::clone(&self.shared), self.dma.channel()?)?
            }
        };
        // fails only if the thread panicked: then the next order gets a new one
        if copier.orders.send(order).is_ok() {
            self.copier = Some(copier);
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}

impl WorkQueue {
    fn write(&mut self, offset: u64, data: &[u8], dma: &DmaPort, tags: bool) {
        let change = self.shared.queue().write(offset, data, tags);
        match change {
            None => {}
            Some(Change::Work) => self.shared.wake(),
            Some(Change::Stop) => self.worker = None,
            Some(Change::Start(pasid)) => {
                let channel = dma.function_started().and_then(|()| dma.channel());
                let worker = channel
                    .and_then(|channel| worker::Worker::start(&self.shared, channel.tagged(pasid)));
                match worker {
                    Ok(worker) => self.worker = Some(worker),
                    Err(error) => {
                        warn!("cannot enable a queue: {error}");
                        self.shared.queue().refuse();
                    }
                }
            }
        }
    }

    fn reset(&mut self) {
        self.worker = None;
        *self.shared.queue() = Default::default();
    }
}

impl Device for Engine {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match Place::of(offset) {
            Place::Device => self.shared.registers().read(offset, data),
            Place::Queue(queue, inside) => match self.queues.get(queue) {
                Some(queue) => queue.shared.queue().read(inside, data),
                None => data.fill(0),
            },
            Place::Ring(queue, inside) => match self.queues.get(queue) {
                Some(queue) => queue.shared.queue().read_ring(inside, data),
                None => data.fill(0),
            },
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match Place::of(offset) {
            Place::Queue(queue, inside) => {
                if let Some(queue) = self.queues.get_mut(queue) {
                    queue.write(inside, data, &self.dma, self.tags);
                }
            }
            Place::Ring(queue, inside) => {
                if let Some(queue) = self.queues.get(queue) {
                    queue.shared.queue().write_ring(inside, data);
                }
            }
            Place::Device => {
                let order = self.shared.registers().write(offset, data);
                if let Some(order) = order
                    && let Err(error) = self.begin(order)
                {
                    warn!("cannot copy: {error}");
                    self.shared.finish(Outcome::NoIommu, 0);
                }
            }
        }
    }

    fn reset(&mut self) {
        self.copier = None;
        *self.shared.registers() = Registers::default();
        self.queues.iter_mut().for_each(WorkQueue::reset);
        self.tags = false;
    }

    fn allow_pasids(&mut self, allowed: bool) {
        self.tags = allowed;
        for queue in self.queues.iter_mut().filter(|_| !allowed) {
            if queue.shared.queue().is_tagged() {
                queue.worker = None;
            }
        }
    }
}

/// The thread that copies.
#[derive(Debug)]
struct Copier {
    orders: Sender<Order>,
    stop: Arc<StopFlag>,
    thread: Option<JoinHandle<()>>,
}

impl Copier {
    fn start(shared: Arc<Shared>, channel: Channel) -> io::Result<Self> {
        let (orders, receiver) = mpsc::channel();
        let stop = Arc::new(StopFlag::default());
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new()
            .name("copy".into())
            .spawn(move || serve(&receiver, &shared, &channel, &stopped))?;
        Ok(Self { orders, stop, thread: Some(thread) })
    }
}

impl Drop for Copier {
    /// Ends the thread in the middle of its copy; returns when it is gone.
    fn drop(&mut self) {
        self.stop.raise();
        // the thread ends when nobody can send to it any more
        self.orders = mpsc::channel().0;
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the copying thread panicked");
        }
    }
}

/// Copies what it is told to, until there is nobody to tell. Without an IOMMU each copy fails; only a
/// reset of the function looks for the next one.
fn serve(orders: &Receiver<Order>, shared: &Shared, channel: &Channel, stop: &StopFlag) {
    let mut buffer = Box::new([0; CHUNK_BYTES]);
    for order in orders {
        let Some((outcome, copied)) = carry_out(order, channel, &mut buffer, stop) else { return };
        shared.finish(outcome, copied);
    }
}

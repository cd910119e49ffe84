//! The device: registers in front, a thread that copies behind.

use std::io;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use log::warn;

use super::copy::{CHUNK_BYTES, Progress};
use super::registers::{Order, Outcome, Registers};
use super::support::{Channel, Device, DmaPort, Interrupts, NoAccess, StopFlag, View};

/// The vector that the end of a copy raises.
const VECTOR: u16 = 0;

/// The DMA engine.
#[derive(Debug)]
pub(crate) struct Engine {
    shared: Arc<Shared>,
    dma: Arc<DmaPort>,
    /// Runs from the first copy after a reset to the next reset.
    worker: Option<Worker>,
}

/// What both sides see.
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
        self.interrupts.raise_msix(VECTOR);
    }
}

impl Engine {
    /// An idle engine.
    pub(crate) fn new(dma: Arc<DmaPort>, interrupts: Arc<Interrupts>) -> Self {
        let registers = Mutex::default();
        Self { shared: Arc::new(Shared { registers, interrupts }), dma, worker: None }
    }

    fn begin(&mut self, order: Order) -> io::Result<()> {
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => {
                self.dma.function_started()?;
                Worker::start(Arc::clone(&self.shared), self.dma.channel()?)?
            }
        };
        // fails only if the thread panicked: then the next order gets a new one
        if worker.orders.send(order).is_ok() {
            self.worker = Some(worker);
            Ok(())
        } else {
            Err(io::ErrorKind::BrokenPipe.into())
        }
    }
}

impl Device for Engine {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        self.shared.registers().read(offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let order = self.shared.registers().write(offset, data);
        if let Some(order) = order
            && let Err(error) = self.begin(order)
        {
            warn!("cannot copy: {error}");
            self.shared.finish(Outcome::NoIommu, 0);
        }
    }

    fn reset(&mut self) {
        self.worker = None;
        *self.shared.registers() = Registers::default();
    }
}

/// The thread that copies.
#[derive(Debug)]
struct Worker {
    orders: Sender<Order>,
    stop: Arc<StopFlag>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
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

impl Drop for Worker {
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
        let mut progress = Progress::new(order);
        let outcome = loop {
            match channel.access(stop, |memory: &View<'_>| progress.step(memory, &mut buffer)) {
                Ok(None) => {}
                Ok(Some(outcome)) => break outcome,
                Err(NoAccess::Stopped) => return,
                Err(NoAccess::Refused(_)) => break Outcome::NoIommu,
            }
        };
        shared.finish(outcome, progress.copied());
    }
}

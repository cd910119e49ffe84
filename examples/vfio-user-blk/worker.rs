//! A thread for each queue: chains out of the ring, I/O on the disk, answers into the ring.
//!
//! Each request takes two short looks at guest memory and a long time between them: decode, and copy
//! what is to be written, into a private buffer; do the I/O on that buffer; copy what was read, and
//! answer. An unmap by the guest's IOMMU waits for a look, never for the disk.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use log::{debug, warn};
use vmm_sys_util::eventfd::EventFd;

use super::disk::Disk;
use super::notifier::Notifier;
use super::request;
use super::ring::{Ring, RingError};
use super::support::{Channel, NoAccess, StopFlag, View};

/// How long a ring may be absent before it is believed to be gone: the VMM takes all memory away and
/// gives it back in other pieces while firmware runs, and this thread may just be looking.
const MEMORY_SETTLES: Duration = Duration::from_millis(200);

/// A queue's thread, and how to reach it.
#[derive(Debug)]
pub(crate) struct Worker {
    kick: EventFd,
    stop: Arc<StopFlag>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread works with.
#[derive(Debug)]
pub(crate) struct Job {
    /// Number of the queue.
    pub(crate) queue: usize,
    /// The queue.
    pub(crate) ring: Ring,
    /// The thread's own way to memory.
    pub(crate) channel: Channel,
    /// The disk.
    pub(crate) disk: Arc<Disk>,
    /// How to interrupt the driver.
    pub(crate) notifier: Arc<Notifier>,
}

/// Why a thread ends.
#[derive(Debug, thiserror::Error)]
enum End {
    #[error(transparent)]
    NoAccess(#[from] NoAccess),
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("kick: {0}")]
    Kick(#[from] io::Error),
}

impl Worker {
    /// Starts to serve a queue.
    ///
    /// # Errors
    /// If the kernel has no more descriptors or threads.
    pub(crate) fn start(job: Job) -> io::Result<Self> {
        let kick = EventFd::new(0)?;
        let stop = Arc::new(StopFlag::default());
        let runner =
            Runner { job, kick: kick.try_clone()?, stop: Arc::clone(&stop), buffer: vec![] };
        let name = format!("queue {}", runner.job.queue);
        let thread = thread::Builder::new().name(name).spawn(move || runner.run())?;
        Ok(Self { kick, stop, thread: Some(thread) })
    }

    /// Says that the queue may have new chains.
    pub(crate) fn kick(&self) {
        if let Err(error) = self.kick.write(1) {
            warn!("cannot kick a queue: {error}");
        }
    }
}

impl Drop for Worker {
    /// Ends the thread; returns when it is gone.
    fn drop(&mut self) {
        self.stop.raise();
        self.kick();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("a queue's thread panicked");
        }
    }
}

struct Runner {
    job: Job,
    kick: EventFd,
    stop: Arc<StopFlag>,
    /// Data of the request at hand; grows to the longest one, at most
    /// [`request::MAX_DATA_BYTES`].
    buffer: Vec<u8>,
}

impl Runner {
    fn run(mut self) {
        let end = loop {
            if let Err(end) = self.kick.read().map_err(End::from).and_then(|_| self.drain()) {
                break end;
            }
        };
        if matches!(end, End::NoAccess(NoAccess::Stopped)) {
            debug!("queue {} stopped", self.job.queue);
        } else {
            warn!("queue {} needs a reset: {end}", self.job.queue);
            self.job.notifier.set_needs_reset();
        }
    }

    /// Serves all chains that are there, until the driver promises to kick for the next one.
    fn drain(&mut self) -> Result<(), End> {
        loop {
            self.on_ring(|ring, memory, _| ring.disarm(memory))?;
            while self.serve_one()? {}
            if !self.on_ring(|ring, memory, _| ring.rearm(memory))? {
                return Ok(());
            }
        }
    }

    /// Serves one chain; false if there is none.
    fn serve_one(&mut self) -> Result<bool, End> {
        let disk = Arc::clone(&self.job.disk);
        let taken = self.on_ring(|ring, memory, buffer| {
            let Some(chain) = ring.pop(memory)? else { return Ok(None) };
            let action = request::decode(&chain, memory, &disk, buffer);
            Ok(Some((chain, action)))
        })?;
        let Some((chain, action)) = taken else { return Ok(false) };

        let status = request::execute(&action, &disk, &mut self.buffer);

        let wants_interrupt = self.on_ring(|ring, memory, buffer| {
            let written = request::answer(&action, status, &chain, memory, buffer);
            ring.push(memory, chain.head, written)
        })?;
        if wants_interrupt {
            self.job.notifier.queue_used(self.job.queue);
        }
        Ok(true)
    }

    /// Does `work`, which changes nothing if it fails, on ring and memory. If it fails, and not
    /// because the IOMMU refused, it is tried again as long as guest memory keeps changing.
    fn on_ring<R>(
        &mut self,
        mut work: impl FnMut(&mut Ring, &View<'_>, &mut Vec<u8>) -> Result<R, RingError>,
    ) -> Result<R, End> {
        let Self { job: Job { ring, channel, .. }, stop, buffer, .. } = self;
        loop {
            let (result, refused, generation) = channel.access(stop, |memory| {
                (work(ring, memory, buffer), memory.refused(), memory.generation())
            })?;
            let changed = || channel.ram().wait_for_change(generation, MEMORY_SETTLES);
            match result {
                Ok(done) => return Ok(done),
                Err(error) if !refused && changed() => debug!("memory changed meanwhile: {error}"),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

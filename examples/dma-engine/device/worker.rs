//! The thread behind a work queue: one descriptor after the other, with the queue's tag.

use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use log::warn;

use super::descriptor::{self, Raw};
use super::job::{Buffer, CHUNK_BYTES, Order, Outcome, Progress};
use super::queue::Queue;
use super::support::{Channel, Interrupts, NoAccess, StopFlag, View};

/// A queue as its registers and its thread share it.
#[derive(Debug)]
pub(crate) struct Shared {
    queue: Mutex<Queue>,
    /// There may be more to do, or the thread is to end.
    work: Condvar,
    interrupts: Arc<Interrupts>,
    vector: u16,
}

impl Shared {
    /// A queue that is off and raises `vector`.
    pub(crate) fn new(interrupts: Arc<Interrupts>, vector: u16) -> Self {
        Self { queue: Mutex::default(), work: Condvar::new(), interrupts, vector }
    }

    /// The queue, for a moment.
    pub(crate) fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the thread to look again.
    pub(crate) fn wake(&self) {
        // under the lock, so that no thread is between its look and its wait
        let _queue = self.queue();
        self.work.notify_all();
    }

    /// Waits for the next descriptor; `None` when the thread is to end.
    fn next(&self, stop: &StopFlag) -> Option<Raw> {
        let mut queue = self.queue();
        loop {
            if stop.is_raised() {
                return None;
            }
            if let Some(raw) = queue.next() {
                return Some(raw);
            }
            queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finish(&self, raw: &Raw, outcome: Option<Outcome>, done: u64) {
        self.queue().finish(outcome, done);
        if descriptor::interrupts(raw) {
            self.interrupts.raise_msix(self.vector);
        }
    }
}

/// A running queue.
#[derive(Debug)]
pub(crate) struct Worker {
    shared: Arc<Shared>,
    stop: Arc<StopFlag>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Does what the queue holds, through `channel`.
    ///
    /// # Errors
    /// If there can be no further thread.
    pub(crate) fn start(shared: &Arc<Shared>, channel: Channel) -> io::Result<Self> {
        let stop = Arc::new(StopFlag::default());
        let (served, stopped) = (Arc::clone(shared), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("queue".into())
            .spawn(move || serve(&served, &channel, &stopped))?;
        Ok(Self { shared: Arc::clone(shared), stop, thread: Some(thread) })
    }
}

impl Drop for Worker {
    /// Ends the thread, in the middle of a descriptor if need be: that one stays without a result.
    /// Returns when it is gone.
    fn drop(&mut self) {
        self.stop.raise();
        self.shared.wake();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            warn!("the thread of a queue panicked");
        }
        self.shared.queue().stopped();
    }
}

fn serve(shared: &Shared, channel: &Channel, stop: &StopFlag) {
    let mut buffer = Box::new([0; CHUNK_BYTES]);
    while let Some(raw) = shared.next(stop) {
        let Some(order) = descriptor::order(&raw) else {
            shared.finish(&raw, None, 0);
            continue;
        };
        let Some((outcome, done)) = carry_out(order, channel, &mut buffer, stop) else { return };
        shared.finish(&raw, Some(outcome), done);
    }
}

/// Does what is ordered: how it ended, after how many bytes; `None` if it was stopped. A section of the
/// IOMMU is held for one chunk at a time.
pub(crate) fn carry_out(
    order: Order,
    channel: &Channel,
    buffer: &mut Buffer,
    stop: &StopFlag,
) -> Option<(Outcome, u64)> {
    let mut progress = Progress::new(order);
    loop {
        let outcome = match channel.access(stop, |view: &View<'_>| progress.step(view, buffer)) {
            Ok(None) => continue,
            Ok(Some(outcome)) => outcome,
            Err(NoAccess::Stopped) => return None,
            Err(NoAccess::Refused(_)) => Outcome::NoIommu,
        };
        return Some((outcome, progress.done()));
    }
}

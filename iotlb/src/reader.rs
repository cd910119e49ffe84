//! A device's reader: sections, translations under them, pins that outlive them.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use viommu_pasid::Pasid;
use viommu_pgtable::{Access, Iova, IovaRange, TableMemory};

use crate::abi::State;
use crate::cache::{Cache, Origin, Wanted};
use crate::fault::{AccessFault, FaultReason, FaultRecord};
use crate::guest_tables::NoGuestMemory;
use crate::link::{Lane, Link};
use crate::path::{self, Leaf};
use crate::pieces::{Asked, Pieces};
use crate::pin::{Pin, PinsFull};
use crate::section;
use crate::sync::Ordering;

/// Why a section cannot begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Accesses wait: the guest is paused or its IOMMU is between two lives.
    #[error("accesses are parked")]
    Parked,
    /// The daemon refuses this process for good: it took it for stuck or broken.
    #[error("the daemon has cut this device off")]
    CutOff,
    /// The daemon is gone.
    #[error("the daemon is gone")]
    Disconnected,
}

/// Translates for one thread.
///
/// It may move to another thread, but not be used by two:
///
/// ```compile_fail
/// fn is_sync<T: Sync>() {}
/// is_sync::<viommu_iotlb::Reader>();
/// ```
#[derive(Debug)]
pub struct Reader {
    link: Arc<Link>,
    lane: Lane,
    /// The epoch that the private state is of.
    seen: Cell<u64>,
    /// Guards that are open.
    depth: Cell<u64>,
    cache: Cache,
}

impl Reader {
    pub(crate) fn new(link: Arc<Link>, lane: Lane) -> Self {
        Self {
            link,
            lane,
            seen: Cell::new(section::UNSEEN),
            depth: Cell::new(0),
            cache: Cache::new(),
        }
    }

    /// Begins a section. Waits while accesses are parked.
    ///
    /// # Errors
    /// [`Refused::CutOff`] or [`Refused::Disconnected`].
    pub fn enter(&self) -> Result<Guard<'_>, Refused> {
        loop {
            match self.try_enter() {
                Err(Refused::Parked) => _ = self.wait_running(Duration::MAX),
                decided => return decided,
            }
        }
    }

    /// Begins a section, without waiting. Inside one of the same reader it costs nothing, and both
    /// see the same translations: those of the outer.
    ///
    /// # Errors
    /// See [`Refused`].
    #[inline]
    pub fn try_enter(&self) -> Result<Guard<'_>, Refused> {
        let depth = self.depth.get();
        if depth == 0 {
            self.begin()?;
        }
        self.depth.set(depth + 1);
        Ok(Guard { reader: self })
    }

    #[inline]
    fn begin(&self) -> Result<(), Refused> {
        if !self.link.is_connected() {
            return Err(Refused::Disconnected);
        }
        let slot = &self.lane.line(&self.link.slot).epoch;
        let now = section::enter(self.link.view.epoch(), slot, self.seen.get());
        if now == self.seen.get() { Ok(()) } else { self.begin_anew(now) }
    }

    /// The epoch has moved: what was known is void, and the daemon may have told us something.
    #[cold]
    fn begin_anew(&self, now: u64) -> Result<(), Refused> {
        let slot = &self.lane.line(&self.link.slot).epoch;
        let state = || self.link.state();
        let refused = match section::begin_anew(slot, now, state, || self.cache.flush()) {
            State::Running => {
                self.seen.set(now);
                return Ok(());
            }
            State::Parked => Refused::Parked,
            State::CutOff => Refused::CutOff,
        };
        // Parked for ever, because the one who parked us is gone?
        Err(if self.link.has_hung_up() { Refused::Disconnected } else { refused })
    }

    /// Waits until accesses run, at most `timeout`. True if they do; false at once if this process
    /// is refused for good or the daemon is gone.
    #[must_use]
    pub fn wait_running(&self, timeout: Duration) -> bool {
        self.link.wait_running(timeout)
    }

    #[inline]
    fn end(&self) {
        let depth = self.depth.get() - 1;
        self.depth.set(depth);
        if depth == 0 {
            let line = self.lane.line(&self.link.slot);
            section::leave(&line.epoch);
            // Relaxed: only for looking at
            let counters = self.cache.counters();
            line.hits.store(counters.hits, Ordering::Relaxed);
            line.misses.store(counters.misses, Ordering::Relaxed);
            line.flushes.store(counters.flushes, Ordering::Relaxed);
        }
    }

    /// Where `wanted` leads. A section is open. The guest's tables are read from `guest`, which a
    /// hit does not look at.
    #[inline]
    pub(crate) fn leaf(
        &self,
        guest: &dyn TableMemory,
        wanted: Wanted,
    ) -> Result<Leaf, FaultReason> {
        if let Some(leaf) = self.cache.find(wanted) {
            return Ok(leaf);
        }
        self.walk(guest, wanted)
    }

    #[inline(never)]
    fn walk(&self, guest: &dyn TableMemory, wanted: Wanted) -> Result<Leaf, FaultReason> {
        let link = &*self.link;
        let tables = path::tables(&link.view, guest);
        let from = Origin { tables, structures: &link.structures, endpoint: link.endpoint };
        self.cache.walk(&from, self.seen.get(), wanted)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // all guards borrow from us; one that was forgotten is over now
        section::leave(&self.lane.line(&self.link.slot).epoch);
        self.lane.give(&self.link.slot);
    }
}

/// An open section: translations found under it are good until it is dropped, and no longer.
///
/// The daemon answers no withdrawal meanwhile: keep it short, and never wait in it for the daemon,
/// the VMM or the guest. One that is kept, or leaked, for longer than the daemon's `stuck` time
/// gets the process killed.
#[derive(Debug)]
pub struct Guard<'r> {
    reader: &'r Reader,
}

impl Guard<'_> {
    /// Where the `len` bytes at `iova` lead, piece by piece, for an access of `pasid` (or untagged)
    /// that does `access`.
    ///
    /// Yields pieces that follow each other without a gap, cut only where output addresses jump;
    /// after a fault nothing. A range of 0 bytes has no pieces.
    ///
    /// Reads no guest memory: where a table of the guest's is bound, the access faults. See
    /// [`translate_with`](Self::translate_with).
    #[inline]
    #[must_use]
    pub fn translate(
        &self,
        pasid: Option<Pasid>,
        iova: Iova,
        len: u64,
        access: Access,
    ) -> Pieces<'_> {
        self.translate_with(&NoGuestMemory, pasid, iova, len, access)
    }

    /// [`translate`](Self::translate), through tables of the guest's as well: they are read from
    /// `guest`, by guest-physical address, and their accessed and dirty flags are set there before
    /// the access is granted.
    ///
    /// The memory is named anew at each call, so it may be another one in the next section: a
    /// device whose VMM plugs, unplugs or moves guest memory takes up the new one between two
    /// sections. What was read from the old one is forgotten with the epoch that the daemon begins
    /// then.
    #[inline]
    #[must_use]
    pub fn translate_with<'g>(
        &'g self,
        guest: &'g dyn TableMemory,
        pasid: Option<Pasid>,
        iova: Iova,
        len: u64,
        access: Access,
    ) -> Pieces<'g> {
        Pieces::new(Asked { reader: self.reader, guest, pasid, access }, iova.raw(), len)
    }

    /// Tells the daemon, and through it the guest, of an access that was refused. False if there
    /// was no room to say so: the fault is counted and dropped.
    pub fn report(&self, fault: &AccessFault) -> bool {
        self.reader.link.report(&FaultRecord::from(fault))
    }

    /// Keeps what `range` leads to usable beyond the end of this section: a withdrawal of it is not
    /// answered before the pin is dropped. Pin before, or after, translating; under the same guard.
    ///
    /// # Errors
    /// If all of the connection's pins are in use: copy through a buffer of your own instead.
    pub fn pin(&self, pasid: Option<Pasid>, range: IovaRange) -> Result<Pin, PinsFull> {
        let reader = self.reader;
        Pin::new(Arc::clone(&reader.link), pasid, range, reader.seen.get())
    }
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.reader.end();
    }
}

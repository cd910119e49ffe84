//! Running, parked, or new: what the front-end's set-up messages mean for the guest's IOMMU.

use std::fs::File;
use std::io;

use viommu_backend::{HostError, HostIommu};

use super::features::Negotiated;
use super::memory::GuestRam;
use super::poll::{Trigger, Watched};
use super::ring::{Ring, RingAddresses, never_block};
use super::{Device, Queue, Turn, settle};
use crate::protocol::Features;

/// How far the device has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Life {
    /// No driver: a new device.
    Idle,
    /// A driver is at work.
    Running,
    /// Both rings were stopped after they ran: a pause or the end of a driver, the next start tells.
    Parked {
        /// Where the request ring stopped.
        base: u16,
        /// What its driver had accepted.
        features: Features,
    },
}

impl<H: HostIommu> Device<H> {
    /// The ring of a queue.
    pub(super) fn ring(&mut self, queue: Queue) -> &mut Ring {
        match queue {
            Queue::Request => &mut self.request_ring,
            Queue::Event => &mut self.event_ring,
        }
    }

    /// Takes a kick descriptor, and watches it.
    pub(super) fn watch_kick(&mut self, queue: Queue, kick: File) -> io::Result<()> {
        never_block(&kick)?;
        let token = match queue {
            Queue::Request => self.kicks.request,
            Queue::Event => self.kicks.event,
        };
        // The old one goes first: it may be the same eventfd under another number.
        self.ring(queue).set_kick(None);
        let watched = Watched::new(&self.poll, kick, token, Trigger::Edge)?;
        self.ring(queue).set_kick(Some(watched));
        Ok(())
    }

    /// Takes a ring's addresses; one in use is looked up anew.
    pub(super) fn set_addresses(&mut self, queue: Queue, addresses: RingAddresses) {
        self.ring(queue).set_addresses(addresses);
        self.place(queue);
        self.start_ready();
    }

    /// Finds a ring in guest memory, if it is in use; one that is not there is given up.
    fn place(&mut self, queue: Queue) {
        let ring = match queue {
            Queue::Request => &mut self.request_ring,
            Queue::Event => &mut self.event_ring,
        };
        let placed = ring.place(&self.ram).map(|()| Turn::Done);
        settle(placed, ring, &mut self.counters);
    }

    /// Starts what has become ready, and sees to it that rings in use are looked at once: a kick may
    /// have gone to a descriptor that was replaced.
    pub(super) fn start_ready(&mut self) {
        if self.request_ring.is_ready() && !self.ram.is_empty() {
            self.begin();
            self.request_ring.start(self.event_idx());
            self.place(Queue::Request);
        }
        if self.event_ring.is_ready() && !self.ram.is_empty() {
            self.event_ring.start(self.event_idx());
            self.place(Queue::Event);
        }
        self.request_due = true;
        self.event_due = true;
    }

    /// The memory table is another one. What was in use by the old one is out of use when this returns.
    ///
    /// # Errors
    /// The host cannot use that memory; the old table stays.
    pub(super) fn replace_ram(&mut self, ram: GuestRam) -> Result<(), HostError> {
        self.host.set_memory(&ram.regions().collect::<Vec<_>>())?;
        self.ram = ram;
        self.place(Queue::Request);
        self.place(Queue::Event);
        self.host.withdraw_all();
        self.sync();
        self.start_ready();
        Ok(())
    }

    /// Stops a ring; with the last one the endpoints are parked. Returns where the ring stopped.
    pub(super) fn stop(&mut self, queue: Queue) -> u16 {
        let base = self.ring(queue).stop();
        let any_left = self.request_ring.is_started() || self.event_ring.is_started();
        if self.life == Life::Running && !any_left {
            let base = self.request_ring.base();
            self.life = Life::Parked { base, features: self.negotiated.driver };
            self.iommu.park(&mut self.host);
            self.sync();
            log::info!("both queues stopped: accesses wait");
        }
        base
    }

    /// RESET_DEVICE: as new, but for `bypass`, and the front-end stays.
    pub(super) fn reset(&mut self) {
        self.request_ring.reset();
        self.event_ring.reset();
        self.forget_driver();
        self.iommu.reset(&mut self.host);
        self.settle_host();
        log::info!("device reset");
    }

    /// The front-end has left, or was shown the door: the next one finds a new device.
    pub fn front_end_gone(&mut self) {
        self.request_ring.reset();
        self.event_ring.reset();
        self.forget_driver();
        self.ram = GuestRam::default();
        self.negotiated = Negotiated::default();
        self.iommu.front_end_gone(&mut self.host);
        self.settle_host();
        if let Err(error) = self.host.set_memory(&[]) {
            log::error!("the guest's memory is in use still: {error}");
        }
    }

    /// The request ring starts: what for?
    fn begin(&mut self) {
        let before = std::mem::replace(&mut self.life, Life::Running);
        if before == Life::Running {
            return;
        }
        if self.goes_on(before) {
            self.iommu.resume(&mut self.host);
            log::info!("the queues go on where they stopped: accesses go on");
            return;
        }
        if before != Life::Idle {
            self.counters.faults_dropped += self.waiting.clear();
            self.iommu.reset(&mut self.host);
            self.settle_host();
        }
        log::info!("a driver starts; {}", self.negotiated);
    }

    /// Whether the driver of before the stop goes on: it starts where it stopped, and at a place where no
    /// new one starts.
    ///
    /// A base of 0 is where new drivers start, but also where an old one is after each 65536 requests.
    /// The used ring tells: a new driver's is zeros (it clears its rings before it gives them to a
    /// device), the old one's holds what it was answered.
    fn goes_on(&self, before: Life) -> bool {
        let Life::Parked { base, features } = before else { return false };
        let same = self.request_ring.base() == base && self.negotiated.driver == features;
        same && (base != 0 || self.request_ring.was_used(&self.ram))
    }

    /// After a reset: what was in use is out of use, and who was cut off may come back.
    fn settle_host(&mut self) {
        self.sync();
        self.host.readmit();
    }

    /// What belonged to the driver, and to nobody after it.
    fn forget_driver(&mut self) {
        self.life = Life::Idle;
        self.counters.faults_dropped += self.waiting.clear();
        self.request_due = false;
        self.event_due = false;
    }
}

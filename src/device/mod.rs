//! The vhost-user device: front-end messages, two virtqueues, and their life.
//!
//! What it is: everything between the socket of the VMM and [`crate::iommu`]; the only place that names
//! vhost crates. vhost's message handler is driven directly: the ready-made daemon of
//! vhost-user-backend cannot serve a second front-end without losing a descriptor.
//!
//! # What it guarantees
//!
//! - Every buffer that is taken from a ring goes back with a used entry; well-formed requests with their
//!   whole reply, others untouched, used length 0.
//! - No answer is seen before the wait for device processes is over that its batch needs.
//! - Nothing that a guest puts into rings, chains or requests makes it panic, hang or grow. A ring that
//!   makes no sense is given up until it is set up again, and said so once.
//! - A front-end that stops in the middle of a message, or does not read its replies, holds up nobody
//!   but itself, and not for long.
//!
//! # Life
//!
//! vhost-user has no word for "the machine is paused" or "the guest reboots": both are two stopped
//! rings. So stopped rings park the endpoints: their accesses wait. A request ring that starts where it
//! stopped is the same driver going on, everything is as before; one that starts at 0 belongs to a new
//! driver, and finds a new device.
//!
//! # What it leaves out
//!
//! In-band kicks, polling a ring without a kick descriptor, dirty logging, in-flight regions (nothing is
//! in flight when a ring stops), migration.

mod chain;
mod connection;
mod counters;
mod events;
mod features;
mod handler;
mod life;
mod memory;
mod patience;
mod poll;
mod requests;
mod ring;

pub use connection::{Connection, Progress};
pub use counters::Counters;
pub use patience::{POLL_WINDOW, Polling};
pub use poll::{Poll, Token, Trigger, Watched};

use std::sync::Arc;

use viommu_backend::HostIommu;
use viommu_pasid::EndpointId;

use crate::iommu::{Iommu, StartError};
use crate::protocol::{Event, Features};
use events::Waiting;
use features::Negotiated;
use life::Life;
use memory::GuestRam;
use requests::{Requests, Service};
use ring::{Ring, RingFault};

/// Batches, or rounds of event buffers, after which the loop looks at other things first: a guest that
/// never stops asking must not keep a signal or a device process waiting.
const ROUNDS_PER_TURN: usize = 8;

/// Whether there is something left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// No: the next kick or message tells.
    Done,
    /// Yes: come back without waiting.
    Again,
}

impl Turn {
    /// Both: again if either says so.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Done, Self::Done) => Self::Done,
            _ => Self::Again,
        }
    }
}

/// The rings, by their number in vhost-user messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// 0: the driver's requests.
    Request,
    /// 1: our events.
    Event,
}

impl Queue {
    /// How many there are.
    pub const COUNT: u64 = 2;

    /// The queue with this number.
    #[must_use]
    pub const fn new(index: u32) -> Option<Self> {
        match index {
            0 => Some(Self::Request),
            1 => Some(Self::Event),
            _ => None,
        }
    }
}

/// The tokens that kicks are reported as: for the request and the event queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KickTokens {
    /// Request queue.
    pub request: Token,
    /// Event queue.
    pub event: Token,
}

/// How a device is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Serving {
    /// What kicks are reported as.
    pub kicks: KickTokens,
    /// When the request queue is looked at without a kick.
    pub polling: Polling,
}

/// A virtio-iommu behind a vhost-user socket.
#[derive(Debug)]
pub struct Device<H> {
    iommu: Iommu,
    host: H,
    poll: Arc<Poll>,
    kicks: KickTokens,
    ram: GuestRam,
    negotiated: Negotiated,
    life: Life,
    requests: Requests,
    request_ring: Ring,
    request_due: bool,
    waiting: Waiting,
    event_ring: Ring,
    event_due: bool,
    counters: Counters,
    tolerable: bool,
}

impl<H: HostIommu> Device<H> {
    /// A device that no front-end has spoken to; every endpoint goes to its boot state.
    ///
    /// # Errors
    /// A host that cannot serve this IOMMU.
    pub fn new(
        mut iommu: Iommu,
        mut host: H,
        poll: &Arc<Poll>,
        serving: Serving,
    ) -> Result<Self, StartError> {
        iommu.start(&mut host)?;
        host.sync();
        let requests = Requests::new(iommu.config().probe_size, serving.polling);
        Ok(Self {
            iommu,
            host,
            poll: Arc::clone(poll),
            kicks: serving.kicks,
            ram: GuestRam::default(),
            negotiated: Negotiated::default(),
            life: Life::Idle,
            requests,
            request_ring: Ring::new("request"),
            request_due: false,
            waiting: Waiting::new(),
            event_ring: Ring::new("event"),
            event_due: false,
            counters: Counters::default(),
            tolerable: false,
        })
    }

    /// The place where translations take effect.
    pub fn host(&mut self) -> &mut H {
        &mut self.host
    }

    /// The host has devices now that it did not know at the start, and may be able to do less. The guest
    /// does not run yet.
    ///
    /// # Errors
    /// A host that cannot serve this IOMMU.
    pub fn narrow(&mut self) -> Result<(), StartError> {
        self.iommu.narrow(&self.host)
    }

    /// Returns when no device process uses what was withdrawn.
    pub fn sync(&mut self) {
        self.host.sync();
        self.iommu.synced();
    }

    /// What was done since the start.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// A kick arrived.
    pub fn kicked(&mut self, queue: Queue) {
        match queue {
            Queue::Request => {
                self.request_ring.take_kick();
                self.request_due = true;
            }
            Queue::Event => {
                self.event_ring.take_kick();
                self.event_due = true;
            }
        }
    }

    /// Serves what kicks, set-up messages and faults have made due.
    pub fn serve(&mut self) -> Turn {
        let requests = self.serve_requests();
        requests.and(self.serve_events())
    }

    /// A device process met a fault: the guest is told when it has a buffer.
    pub fn fault(&mut self, event: Event) {
        let wanted = self.life != Life::Idle;
        if wanted && self.waiting.push(event.known_to(self.negotiated.driver)) {
            self.event_due = true;
        } else {
            self.counters.faults_dropped += 1;
        }
    }

    /// The state machine, to ask it.
    #[must_use]
    pub fn iommu(&self) -> &Iommu {
        &self.iommu
    }

    /// A device process says that its function was reset. It waits for the next
    /// [`HostIommu::sync`], after which no access of before is left.
    pub fn function_reset(&mut self, endpoint: EndpointId) {
        log::info!("function {endpoint} was reset");
        self.iommu.function_reset(&mut self.host, endpoint);
    }

    /// A device process says that its function does DMA again; it waits likewise.
    pub fn function_started(&mut self, endpoint: EndpointId) {
        self.iommu.function_started(endpoint);
    }

    /// The request queue's turn.
    fn serve_requests(&mut self) -> Turn {
        if !std::mem::take(&mut self.request_due) || !self.request_ring.is_live() {
            return Turn::Done;
        }
        let mut service = Service {
            iommu: &mut self.iommu,
            host: &mut self.host,
            counters: &mut self.counters,
            features: self.negotiated.driver,
        };
        let ram = self.ram.mapped();
        let turn = self.requests.serve(&mut self.request_ring, ram, &mut service);
        let turn = settle(turn, &mut self.request_ring, &mut self.counters);
        self.request_due = turn == Turn::Again;
        turn
    }

    /// The event queue's turn.
    fn serve_events(&mut self) -> Turn {
        if !std::mem::take(&mut self.event_due) || !self.event_ring.is_live() {
            return Turn::Done;
        }
        let delivered = self.waiting.deliver(&mut self.event_ring, self.ram.mapped());
        let turn = delivered.map(|delivered| {
            self.counters.faults += delivered.reports;
            delivered.turn
        });
        let turn = settle(turn, &mut self.event_ring, &mut self.counters);
        self.event_due = turn == Turn::Again;
        turn
    }

    /// Whether kicks and interrupts are asked for by index (virtio 1.4, 2.7.7.2 and 2.7.10).
    fn event_idx(&self) -> bool {
        self.negotiated.driver.contains(Features::RING_EVENT_IDX)
    }
}

/// What a queue's turn came to; a broken ring is given up.
fn settle(turn: Result<Turn, RingFault>, ring: &mut Ring, counters: &mut Counters) -> Turn {
    turn.unwrap_or_else(|fault| {
        counters.broken_rings += 1;
        ring.give_up(&fault);
        Turn::Done
    })
}

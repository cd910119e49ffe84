//! The request queue: a batch at a time.
//!
//! What is available at a wake-up is one batch: each request is decoded, decided and put into effect;
//! then one wait for device processes ([`HostIommu::sync`]); then every buffer goes back, with one
//! interrupt. So no UNMAP is answered while somebody still uses what it withdrew, and a guest that
//! unmaps a hundred pages pays for one wait.

use std::time::{Duration, Instant};

use viommu_backend::HostIommu;
use virtio_queue::DescriptorChain;
use vm_memory::GuestMemoryMmap;

use super::chain::Buffer;
use super::counters::Counters;
use super::ring::{Ring, RingFault};
use super::{ROUNDS_PER_TURN, Turn};
use crate::iommu::Iommu;
use crate::protocol::{Decoded, Features, MAX_PLAIN_REPLY_BYTES, decode};

/// Who answers, and what was agreed on with the driver.
pub(super) struct Service<'a, H> {
    /// Decides.
    pub(super) iommu: &'a mut Iommu,
    /// Acts.
    pub(super) host: &'a mut H,
    /// Counts.
    pub(super) counters: &'a mut Counters,
    /// What the driver accepted.
    pub(super) features: Features,
}

/// Memory that serving needs, made once: nothing is allocated for a request.
#[derive(Debug)]
pub(super) struct Requests {
    buffer: Buffer,
    reply: Box<[u8]>,
    probe_size: u32,
    used: Vec<(u16, u32)>,
    poll: Duration,
    poll_until: Option<Instant>,
}

impl Requests {
    /// Room for replies to a PROBE with `probe_size` bytes of properties, and for the others. After
    /// work, the queue is looked at for `poll` before a kick is asked for.
    pub(super) fn new(probe_size: u32, poll: Duration) -> Self {
        let probe = usize::try_from(probe_size).unwrap_or_default() + 4;
        let reply = probe.max(MAX_PLAIN_REPLY_BYTES);
        Self {
            buffer: Buffer::new(),
            reply: vec![0; reply].into_boxed_slice(),
            probe_size,
            used: Vec::new(),
            poll,
            poll_until: None,
        }
    }

    /// Serves what is available, and what comes meanwhile or while it polls, for at most
    /// [`ROUNDS_PER_TURN`] batches.
    pub(super) fn serve<H: HostIommu>(
        &mut self,
        ring: &mut Ring,
        ram: &GuestMemoryMmap,
        service: &mut Service<'_, H>,
    ) -> Result<Turn, RingFault> {
        for _ in 0..ROUNDS_PER_TURN {
            ring.quiet(ram)?;
            self.batch(ring, ram, service)?;
            if self.polls_on() {
                continue;
            }
            // Without this the driver's next request would come without a kick, and wait for ever.
            if !ring.listen(ram)? {
                return Ok(Turn::Done);
            }
        }
        Ok(Turn::Again)
    }

    /// Whether to look again without asking for a kick: work has come within the time to poll.
    fn polls_on(&mut self) -> bool {
        if self.poll.is_zero() {
            return false;
        }
        let now = Instant::now();
        if !self.used.is_empty() {
            self.poll_until = now.checked_add(self.poll);
        }
        self.poll_until.is_some_and(|until| now < until)
    }

    /// One batch. What was taken is answered even if the ring turns out broken behind it.
    fn batch<H: HostIommu>(
        &mut self,
        ring: &mut Ring,
        ram: &GuestMemoryMmap,
        service: &mut Service<'_, H>,
    ) -> Result<(), RingFault> {
        let limit = ring.size();
        self.used.clear();
        let popped = ring.pop(ram, |head, chain| {
            let written = self.answer(chain, ram, limit, service);
            self.used.push((head, written));
            true
        });
        if !self.used.is_empty() {
            service.host.sync();
            service.iommu.synced();
        }
        ring.publish(ram, &self.used)?;
        popped
    }

    /// One request: from its chain to the bytes of its answer. Returns the used length.
    fn answer<H: HostIommu>(
        &mut self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        ram: &GuestMemoryMmap,
        limit: u16,
        service: &mut Service<'_, H>,
    ) -> u32 {
        if let Err(bad) = self.buffer.load(chain, ram, limit) {
            log::debug!("a request is not served: {bad}");
            service.counters.bad_chains += 1;
            return 0;
        }
        let (readable, writable) = (self.buffer.readable(), self.buffer.writable_bytes());
        let decoded = decode(readable, writable, service.features, self.probe_size);
        let Decoded::Request { kind, reply_bytes, request } = decoded else {
            log::debug!("an unknown request of {} bytes is left alone", readable.len());
            service.counters.unknown += 1;
            return 0;
        };
        let reply = match &request {
            Ok(request) => service.iommu.request(service.host, request),
            Err(status) => (*status).into(),
        };
        log::debug!("{kind:?} {request:x?}: {}", reply.status());
        service.counters.request(kind, reply.status());
        let Some(bytes) = self.reply.get_mut(..reply_bytes) else { return 0 };
        reply.encode(bytes);
        self.buffer.write(ram, bytes);
        u32::try_from(reply_bytes).unwrap_or_default()
    }
}

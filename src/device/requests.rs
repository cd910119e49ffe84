//! The request queue: a batch at a time.
//!
//! What is available at a wake-up is one batch: each request is decoded, decided and put into effect;
//! then one wait for device processes ([`HostIommu::sync`]); then every buffer goes back, with one
//! interrupt. So no UNMAP is answered while somebody still uses what it withdrew, and a guest that
//! unmaps a hundred pages pays for one wait.

use std::time::Instant;

use viommu_backend::HostIommu;
use vm_memory::GuestMemoryMmap;

use super::chain::Buffer;
use super::counters::Counters;
use super::patience::{Patience, Polling};
use super::ring::{Parts, Ring, RingFault};
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

/// Requests that are taken and decoded before the first of them is put into effect.
const WINDOW: usize = 32;

/// One request that was taken from the ring.
#[derive(Debug)]
struct Taken {
    head: u16,
    buffer: Buffer,
    decoded: Decoded,
}

impl Taken {
    /// Takes the chain at its head apart and decodes what is in it.
    fn decode<H>(&mut self, parts: &Parts<'_>, probe_size: u32, service: &mut Service<'_, H>) {
        self.decoded = Decoded::Unknown;
        if let Err(bad) = self.buffer.load(self.head, parts) {
            log::debug!("a request is not served: {bad}");
            service.counters.bad_chains += 1;
            return;
        }
        let (readable, writable) = (self.buffer.readable(), self.buffer.writable_bytes());
        self.decoded = decode(readable, writable, service.features, probe_size);
        if self.decoded == Decoded::Unknown {
            log::debug!("an unknown request of {} bytes is left alone", readable.len());
            service.counters.unknown += 1;
        }
    }
}

/// Memory that serving needs, made once: nothing is allocated for a request.
#[derive(Debug)]
pub(super) struct Requests {
    window: Box<[Taken]>,
    reply: Box<[u8]>,
    probe_size: u32,
    used: Vec<(u16, u32)>,
    patience: Patience,
}

impl Requests {
    /// Room for replies to a PROBE with `probe_size` bytes of properties, and for the others. `polling`
    /// says for how long the queue is looked at after work before a kick is asked for.
    pub(super) fn new(probe_size: u32, polling: Polling) -> Self {
        let probe = usize::try_from(probe_size).unwrap_or_default() + 4;
        let reply = probe.max(MAX_PLAIN_REPLY_BYTES);
        let taken = || Taken { head: 0, buffer: Buffer::new(), decoded: Decoded::Unknown };
        Self {
            window: std::iter::repeat_with(taken).take(WINDOW).collect(),
            reply: vec![0; reply].into_boxed_slice(),
            probe_size,
            used: Vec::new(),
            patience: Patience::new(polling),
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
        let parts = ring.open(ram)?;
        for _ in 0..ROUNDS_PER_TURN {
            ring.quiet(&parts)?;
            self.batch(ring, &parts, service)?;
            if self.patience.goes_on(!self.used.is_empty(), Instant::now()) {
                continue;
            }
            // Without this the driver's next request would come without a kick, and wait for ever.
            if !ring.listen(&parts)? {
                return Ok(Turn::Done);
            }
        }
        Ok(Turn::Again)
    }

    /// One batch. What was taken is answered even if the ring turns out broken behind it.
    fn batch<H: HostIommu>(
        &mut self,
        ring: &mut Ring,
        parts: &Parts<'_>,
        service: &mut Service<'_, H>,
    ) -> Result<(), RingFault> {
        self.used.clear();
        let answered = self.answer_all(ring, parts, service);
        if !self.used.is_empty() {
            service.host.sync();
            service.iommu.synced();
        }
        ring.publish(parts, &self.used)?;
        answered
    }

    /// Takes and answers what is available now, a window at a time.
    fn answer_all<H: HostIommu>(
        &mut self,
        ring: &mut Ring,
        parts: &Parts<'_>,
        service: &mut Service<'_, H>,
    ) -> Result<(), RingFault> {
        let mut left = usize::from(ring.available(parts)?);
        while left > 0 {
            let (taken, done) = self.take(left, ring, parts, service);
            self.look_ahead(taken, service);
            for index in 0..taken {
                self.answer(index, parts, service);
            }
            done?;
            left -= taken;
        }
        Ok(())
    }

    /// Fills the window with at most `left` requests: how many, and what is wrong behind them.
    fn take<H: HostIommu>(
        &mut self,
        left: usize,
        ring: &mut Ring,
        parts: &Parts<'_>,
        service: &mut Service<'_, H>,
    ) -> (usize, Result<(), RingFault>) {
        let mut taken = 0;
        for place in self.window.iter_mut().take(left) {
            match ring.take(parts) {
                Ok(head) => place.head = head,
                Err(fault) => return (taken, Err(fault)),
            }
            place.decode(parts, self.probe_size, service);
            taken += 1;
        }
        (taken, Ok(()))
    }

    /// Lets the waits for the requests' memory be one: their own work would not hide them, not even that
    /// of a single request, which needs each place only when it has seen the one before.
    fn look_ahead<H: HostIommu>(&self, taken: usize, service: &Service<'_, H>) {
        for Taken { decoded, .. } in self.window.iter().take(taken) {
            if let Decoded::Request { request: Ok(request), .. } = decoded {
                service.iommu.look_ahead(service.host, request);
            }
        }
    }

    /// One request: from what was decoded to the bytes of its answer.
    fn answer<H: HostIommu>(
        &mut self,
        index: usize,
        parts: &Parts<'_>,
        service: &mut Service<'_, H>,
    ) {
        let Some(Taken { head, buffer, decoded }) = self.window.get(index) else { return };
        let Decoded::Request { kind, reply_bytes, request } = decoded else {
            self.used.push((*head, 0));
            return;
        };
        let reply = match request {
            Ok(request) => service.iommu.request(service.host, request),
            Err(status) => (*status).into(),
        };
        log::debug!("{kind:?} {request:x?}: {}", reply.status());
        service.counters.request(*kind, reply.status());
        // `new` made room for the longest
        let bytes = self.reply.get_mut(..*reply_bytes).unwrap_or_default();
        reply.encode(bytes);
        buffer.write(&parts.view, bytes);
        self.used.push((*head, u32::try_from(bytes.len()).unwrap_or_default()));
    }
}

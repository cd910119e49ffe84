//! A guest with a virtio-iommu driver: a VMM, two queues, and requests one at a time.

use vm_memory::{Bytes, GuestAddress};

use super::daemon::Daemon;
use super::queue::{Descriptor, Queue, Used, WRITE};
use super::vmm::{EVENT, LINUX_FEATURES, REQUEST, Vmm};
use super::wire::{self, Fault, Status};

/// The endpoint of [`Daemon::start`]: 0000:00:02.0.
pub(crate) const ENDPOINT: u32 = 0x10;

/// Where the queues lie, and buffers of requests and events behind them.
pub(crate) const REQUEST_QUEUE_AT: u64 = 0x1_0000;
pub(crate) const EVENT_QUEUE_AT: u64 = 0x4_0000;
pub(crate) const READABLE_AT: u64 = 0x10_0000;
pub(crate) const WRITABLE_AT: u64 = 0x12_0000;
pub(crate) const EVENTS_AT: u64 = 0x14_0000;

/// Entries of each queue: QEMU's for this device.
pub(crate) const QUEUE_SIZE: u16 = 256;

/// What a request's buffer became.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    /// The used length.
    pub(crate) used: u32,
    /// All of the writable part.
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    /// The status of an answer that is whole: its used length is that of the whole writable part.
    pub(crate) fn status(&self) -> Status {
        assert_eq!(self.used as usize, self.bytes.len(), "the whole writable part is used");
        let [.., status, a, b, c] = self.bytes[..] else { panic!("no tail in {self:?}") };
        assert_eq!([a, b, c], [0; 3], "the tail's reserved bytes");
        status
    }
}

/// What an untouched writable part is filled with.
pub(crate) const UNTOUCHED: u8 = 0xa5;

/// A guest whose driver is running.
pub(crate) struct Guest {
    pub(crate) vmm: Vmm,
    pub(crate) requests: Queue,
    pub(crate) events: Queue,
}

impl Guest {
    /// Connects and starts as Linux does.
    pub(crate) fn start(daemon: &Daemon) -> Self {
        Self::with_features(daemon, LINUX_FEATURES)
    }

    /// The same with other features.
    pub(crate) fn with_features(daemon: &Daemon, features: u64) -> Self {
        let vmm = Vmm::connect(daemon);
        Self::boot(vmm, features)
    }

    /// Starts a driver on a connected VMM.
    pub(crate) fn boot(vmm: Vmm, features: u64) -> Self {
        let ram = vmm.memory.ram.clone();
        let requests = Queue::new(&ram, REQUEST_QUEUE_AT, QUEUE_SIZE);
        let events = Queue::new(&ram, EVENT_QUEUE_AT, QUEUE_SIZE);
        let mut guest = Self { vmm, requests, events };
        guest.vmm.begin(features);
        guest.start_queues(0, 0);
        guest
    }

    /// Starts the queues at these places.
    pub(crate) fn start_queues(&mut self, request_base: u16, event_base: u16) {
        self.vmm.start(REQUEST, &self.requests, request_base).unwrap();
        self.vmm.start(EVENT, &self.events, event_base).unwrap();
    }

    /// The end of this driver and the start of another: new queues, at 0.
    pub(crate) fn reboot(mut self) -> Self {
        self.vmm.stop();
        Self::boot(self.vmm, LINUX_FEATURES)
    }

    /// Posts one event buffer of `bytes` bytes in place `slot`.
    pub(crate) fn post_event_buffer(&mut self, slot: u16, bytes: u32) {
        let address = EVENTS_AT + 64 * u64::from(slot);
        let part = Descriptor { address, bytes, flags: WRITE, next: 0 };
        self.events.write_chain(slot, &[part]);
        self.events.make_available(slot);
        self.events.notify();
    }

    /// The next event, waited for; its buffer was posted with [`post_event_buffer`](Self::post_event_buffer).
    pub(crate) fn wait_event(&mut self) -> Fault {
        let Used { head, bytes } = self.events.wait_used();
        assert_eq!(bytes as usize, Fault::BYTES);
        let mut report = [0; Fault::BYTES];
        let at = EVENTS_AT + 64 * u64::from(head);
        self.vmm.memory.ram.read_slice(&mut report, GuestAddress(at)).unwrap();
        Fault::decode(&report)
    }

    /// Sends `readable`, with room for `writable` bytes of answer, and waits.
    pub(crate) fn send(&mut self, readable: &[u8], writable: u32) -> Answer {
        let head = self.queue_request(0, readable, writable);
        self.requests.notify();
        let used = self.requests.wait_used();
        assert_eq!(used.head, u32::from(head));
        Answer { used: used.bytes, bytes: self.read_answer(0, writable) }
    }

    /// Makes a request available in place `slot` (two descriptors), and tells nobody.
    pub(crate) fn queue_request(&mut self, slot: u16, readable: &[u8], writable: u32) -> u16 {
        let ram = &self.vmm.memory.ram;
        let (from, to) = (READABLE_AT + slot_offset(slot), WRITABLE_AT + slot_offset(slot));
        ram.write_slice(readable, GuestAddress(from)).unwrap();
        ram.write_slice(&vec![UNTOUCHED; writable as usize], GuestAddress(to)).unwrap();
        let out = Descriptor { address: from, bytes: readable.len() as u32, flags: 0, next: 0 };
        let back = Descriptor { address: to, bytes: writable, flags: WRITE, next: 0 };
        let parts: &[Descriptor] = if writable == 0 { &[out] } else { &[out, back] };
        let head = self.requests.write_chain(2 * slot, parts);
        self.requests.make_available(head);
        head
    }

    /// The writable part of the request in place `slot`.
    pub(crate) fn read_answer(&self, slot: u16, writable: u32) -> Vec<u8> {
        let mut bytes = vec![0; writable as usize];
        let at = GuestAddress(WRITABLE_AT + slot_offset(slot));
        self.vmm.memory.ram.read_slice(&mut bytes, at).unwrap();
        bytes
    }

    /// ATTACH.
    pub(crate) fn attach(&mut self, domain: u32, endpoint: u32) -> Status {
        self.send(&wire::attach(domain, endpoint, 0), 4).status()
    }

    /// DETACH.
    pub(crate) fn detach(&mut self, domain: u32, endpoint: u32) -> Status {
        self.send(&wire::detach(domain, endpoint), 4).status()
    }

    /// MAP of `first..=last`.
    pub(crate) fn map(
        &mut self,
        domain: u32,
        first: u64,
        last: u64,
        to: u64,
        flags: u32,
    ) -> Status {
        self.send(&wire::map(domain, first, last, to, flags), 4).status()
    }

    /// UNMAP of `first..=last`.
    pub(crate) fn unmap(&mut self, domain: u32, first: u64, last: u64) -> Status {
        self.send(&wire::unmap(domain, first, last), 4).status()
    }

    /// PROBE: status and properties.
    pub(crate) fn probe(&mut self, endpoint: u32) -> (Status, Vec<u8>) {
        let size = self.vmm.config().probe_size;
        let answer = self.send(&wire::probe(endpoint), size + 4);
        (answer.status(), answer.bytes[..size as usize].to_vec())
    }
}

/// The requests of 128 slots lie apart in their two areas of 128 KiB: the longest answer has 516 bytes.
fn slot_offset(slot: u16) -> u64 {
    u64::from(slot) * 1024
}

//! A driver that sends batches and measures them.

use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::support::queue::{Descriptor, INDIRECT, NEXT, Queue, Used, WRITE};

/// Largest batch.
pub(crate) const MAX_BATCH: usize = 128;

/// Requests, 64 bytes each, and their indirect tables, 32 bytes each: what Linux's allocator gives them.
const REQUESTS_AT: u64 = 0x10_0000;
const REQUEST_BYTES: u64 = 64;
const TABLES_AT: u64 = 0x18_0000;
const TABLE_BYTES: u64 = 32;

/// Status, and three zeros.
const TAIL_BYTES: u32 = 4;
const UNTOUCHED: [u8; 4] = [0xa5; 4];

/// A device that is silent for so long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a device that sleeps when it has nothing to do needs to fall asleep, with room to spare.
const FALLING_ASLEEP: Duration = Duration::from_micros(40);

/// How the driver learns that its requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// It looks at the used ring all the time, as Linux does for this device, and wants no interrupt.
    Look,
    /// It sleeps until the interrupt: with the device on its own processor, looking would only delay it.
    Sleep,
}

/// What a batch came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sent {
    /// From publication to the last answer, nanoseconds.
    pub(crate) took_ns: u64,
    /// Whether the device wanted a kick.
    pub(crate) kicked: bool,
}

/// What answers of a batch have to look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Expected {
    /// Status OK.
    Ok,
    /// Whatever the device does with what it does not know: ours leaves it alone, QEMU's refuses it.
    Anything,
}

/// The driver's side of a request queue.
pub(crate) struct Driver {
    ram: GuestMemoryMmap,
    queue: Queue,
    wait: Wait,
    published: u16,
    kick: Box<dyn FnMut(&Queue)>,
    interrupt: Epoll,
}

impl Driver {
    /// A driver for a queue on which nothing was sent; `kick` tells the device.
    pub(crate) fn new(
        ram: GuestMemoryMmap,
        queue: Queue,
        wait: Wait,
        kick: Box<dyn FnMut(&Queue)>,
    ) -> Self {
        let interrupt = Epoll::new().unwrap();
        let event = EpollEvent::new(EventSet::IN, 0);
        interrupt.ctl(ControlOperation::Add, queue.call.as_raw_fd(), event).unwrap();
        Self { ram, queue, wait, published: 0, kick, interrupt }
    }

    /// Gives a device that has answered everything the time to fall asleep.
    pub(crate) fn let_sleep(&self) {
        let start = Instant::now();
        while self.wait == Wait::Look && start.elapsed() < FALLING_ASLEEP {
            std::hint::spin_loop();
        }
        if self.wait == Wait::Sleep {
            std::thread::sleep(FALLING_ASLEEP);
        }
    }

    /// Sends `requests`, their readable parts, as one batch, and waits.
    ///
    /// # Panics
    /// If an answer is another than `expected`, or none comes.
    pub(crate) fn send(&mut self, requests: &[Vec<u8>], expected: Expected) -> Sent {
        for (slot, request) in (0..).zip(requests) {
            self.lay_out(slot, request);
        }
        let (old, new) = (self.published, self.published.wrapping_add(requests.len() as u16));
        self.published = new;
        // wanted when the last answer is there, or (looking) not before the ring has gone round
        let interrupt_at =
            if self.wait == Wait::Sleep { new.wrapping_sub(1) } else { old.wrapping_sub(1) };
        self.queue.want_interrupt_at(interrupt_at);
        let start = Instant::now();
        self.queue.publish();
        // the store of the index and the load of what the device wants must not change places
        std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
        let kicked = wants_kick(self.queue.kick_wanted_at(), old, new);
        if kicked {
            (self.kick)(&self.queue);
        }
        self.wait_for(new, start);
        let took_ns = start.elapsed().as_nanos() as u64;
        self.check(requests, expected);
        Sent { took_ns, kicked }
    }

    /// Puts a request into its place, with an indirect table as Linux makes one.
    fn lay_out(&mut self, slot: u16, request: &[u8]) {
        let at = REQUESTS_AT + REQUEST_BYTES * u64::from(slot);
        let table = TABLES_AT + TABLE_BYTES * u64::from(slot);
        let readable = request.len() as u32;
        let tail = at + u64::from(readable);
        self.ram.write_slice(request, GuestAddress(at)).unwrap();
        self.ram.write_slice(&UNTOUCHED, GuestAddress(tail)).unwrap();
        let out = Descriptor { address: at, bytes: readable, flags: NEXT, next: 1 };
        let back = Descriptor { address: tail, bytes: TAIL_BYTES, flags: WRITE, next: 0 };
        self.queue.write_descriptor(table, 0, out);
        self.queue.write_descriptor(table, 1, back);
        let whole =
            Descriptor { address: table, bytes: TABLE_BYTES as u32, flags: INDIRECT, next: 0 };
        self.queue.write_descriptor(self.queue.table, slot, whole);
        self.queue.make_available(slot);
    }

    fn wait_for(&self, used: u16, start: Instant) {
        while self.queue.used_index() != used {
            match self.wait {
                Wait::Look => std::hint::spin_loop(),
                Wait::Sleep => self.sleep(),
            }
            assert!(start.elapsed() < PATIENCE, "no answer");
        }
        if self.wait == Wait::Sleep {
            self.queue.take_interrupts();
        }
    }

    /// Until an interrupt, or for a second.
    fn sleep(&self) {
        self.interrupt.wait(1000, &mut [EpollEvent::default()]).unwrap();
    }

    fn check(&mut self, requests: &[Vec<u8>], expected: Expected) {
        for (slot, request) in (0..).zip(requests) {
            let used = self.queue.take_used().expect("one answer for each request");
            if expected == Expected::Anything {
                assert_eq!(used.head, slot);
                continue;
            }
            assert_eq!(used, Used { head: slot, bytes: TAIL_BYTES });
            let at = REQUESTS_AT + REQUEST_BYTES * u64::from(slot) + request.len() as u64;
            let found: [u8; 4] = self.ram.read_obj(GuestAddress(at)).unwrap();
            assert_eq!(found, [0; 4], "the answer to {request:x?}");
        }
    }
}

/// Whether a kick is wanted for the entries from `old` to before `new` (virtio 1.4, 2.7.10).
fn wants_kick(event: u16, old: u16, new: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

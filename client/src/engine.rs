//! A driver for the DMA engine of the examples: queues with PASIDs, descriptors, results.
//!
//! Registers and descriptors are those of `examples/dma-engine`, version 2.

use std::thread;
use std::time::Instant;

use crate::driver::PATIENCE;
use crate::error::Error;
use crate::function::Function;

/// "VDMA", and the version that has work queues.
const ID: u32 = u32::from_le_bytes(*b"VDMA");
const VERSION: u32 = 2;

const QUEUES: u64 = 0x48;
const QUEUE_REGISTERS: u64 = 0x100;
const QUEUE_BYTES: u64 = 0x40;
const RINGS: u64 = 0x1000;
const RING_BYTES: u64 = 0x800;
const DESCRIPTOR_BYTES: u64 = 64;
/// Descriptors of a ring.
const DEPTH: u32 = 32;

/// Registers of a queue.
const PASID: u64 = 0x00;
const CONTROL: u64 = 0x04;
const TAIL: u64 = 0x08;
const HEAD: u64 = 0x0c;
const STATUS: u64 = 0x10;

const TAGGED: u32 = 1 << 31;
const ENABLE: u32 = 1;

/// Where a descriptor's result begins.
const RESULT: u64 = 0x20;

/// PCI Express: the PASID capability, and its enable bit (PCIe 6.0, 7.8.9).
const EXTENDED: u16 = 0x100;
const PASID_CAPABILITY: u32 = 0x1b;
const PASID_ENABLE: u16 = 1;
/// As many extended capabilities as fit into the space.
const CAPABILITIES_MAX: usize = 480;

/// What a descriptor asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Copy `bytes` bytes from `source` to `destination`.
    Copy {
        /// First IOVA to read.
        source: u64,
        /// First IOVA to write.
        destination: u64,
        /// How many.
        bytes: u32,
    },
    /// Write `pattern`, again and again, to `destination`.
    Fill {
        /// What.
        pattern: u64,
        /// First IOVA to write.
        destination: u64,
        /// How many bytes.
        bytes: u32,
    },
    /// Compare two ranges.
    Compare {
        /// First IOVA of the one.
        first: u64,
        /// First IOVA of the other.
        second: u64,
        /// How many bytes.
        bytes: u32,
    },
}

impl Work {
    /// The driver's half of the descriptor, as 32-bit words.
    fn words(self) -> [u32; 8] {
        let (operation, source, destination, pattern, bytes) = match self {
            Self::Copy { source, destination, bytes } => (1, source, destination, 0, bytes),
            Self::Fill { pattern, destination, bytes } => (2, 0, destination, pattern, bytes),
            Self::Compare { first, second, bytes } => (3, first, second, 0, bytes),
        };
        let [[a, b], [c, d], [e, f]] = [source, destination, pattern].map(halves);
        [operation, bytes, a, b, c, d, e, f]
    }
}

/// Low and high half.
fn halves(value: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// How a descriptor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// All was done.
    Done,
    /// The ranges differ at byte `at`.
    Different {
        /// Counted from their beginning.
        at: u64,
    },
    /// The access to `address` was refused.
    Fault {
        /// The IOVA, exact to the byte.
        address: u64,
        /// It was a write.
        write: bool,
    },
    /// The device could not do it, or there is no IOMMU behind it: its number.
    Failed(u32),
}

/// The engine.
#[derive(Debug)]
pub struct Engine<F> {
    function: F,
    queues: u32,
    /// The next place of each ring.
    next: Vec<u32>,
}

impl<F: Function> Engine<F> {
    /// The engine that `function` is. Its queues are off; its DMA may be tagged from now on, if the
    /// function has PASIDs.
    ///
    /// # Errors
    /// It is none, or another version.
    pub fn new(mut function: F) -> Result<Self, Error> {
        let mut read = |offset| function.read(offset).map_err(Error::io("read a register"));
        if (read(0)?, read(4)?) != (ID, VERSION) {
            return Err(Error::Malformed("this function is no DMA engine of version 2"));
        }
        let queues = read(QUEUES)?;
        let next = (0..queues.min(DEPTH)).map(|_| 0).collect();
        let mut engine = Self { function, queues, next };
        if let Some(capability) = engine.pasid_capability()? {
            let enable = engine.function.write_config(capability + 6, PASID_ENABLE);
            enable.map_err(Error::io("enable PASIDs"))?;
        }
        Ok(engine)
    }

    /// How many work queues it has.
    #[must_use]
    pub const fn queues(&self) -> u32 {
        self.queues
    }

    /// Where the PASID capability is.
    ///
    /// # Errors
    /// The function cannot be reached.
    pub fn pasid_capability(&mut self) -> Result<Option<u16>, Error> {
        let mut at = EXTENDED;
        for _ in 0..CAPABILITIES_MAX {
            let header = self.function.read_config(at);
            let header = header.map_err(Error::io("read a capability"))?;
            if header & 0xffff == PASID_CAPABILITY {
                return Ok(Some(at));
            }
            match u16::try_from(header >> 20) {
                Ok(next) if next >= EXTENDED => at = next,
                _ => break,
            }
        }
        Ok(None)
    }

    /// Turns a queue on, its DMA tagged with `pasid` or untagged.
    ///
    /// # Errors
    /// The queue refuses: it is on, there is no such queue, or its DMA cannot be tagged so.
    pub fn enable(&mut self, queue: u32, pasid: Option<u32>) -> Result<(), Error> {
        self.set(queue, PASID, pasid.map_or(0, |pasid| TAGGED | pasid))?;
        self.set(queue, CONTROL, ENABLE)?;
        let refused = Error::Malformed("the engine's queue cannot be enabled");
        let place = usize::try_from(queue).ok().and_then(|queue| self.next.get_mut(queue));
        *place.ok_or(refused)? = 0;
        match (self.get(queue, CONTROL)?, self.get(queue, STATUS)?) {
            (ENABLE, 0) => Ok(()),
            _ => Err(Error::Malformed("the engine's queue cannot be enabled")),
        }
    }

    /// Turns a queue off; when this returns it does no DMA.
    ///
    /// # Errors
    /// The function cannot be reached.
    pub fn disable(&mut self, queue: u32) -> Result<(), Error> {
        self.set(queue, CONTROL, 0)
    }

    /// Hands work to a queue that is on, without waiting: the descriptors' places.
    ///
    /// # Errors
    /// It is more than fits into the ring, or the function cannot be reached.
    pub fn submit(&mut self, queue: u32, work: &[Work]) -> Result<Vec<u32>, Error> {
        let too_much = Error::Malformed("more work than a ring holds");
        let first = usize::try_from(queue).ok().and_then(|queue| self.next.get(queue)).copied();
        let (Some(first), Ok(count)) = (first, u32::try_from(work.len())) else {
            return Err(too_much);
        };
        let outstanding = (first + DEPTH - self.get(queue, HEAD)?) % DEPTH;
        if outstanding + count >= DEPTH {
            return Err(too_much);
        }
        let places: Vec<u32> = (0..count).map(|n| (first + n) % DEPTH).collect();
        for (place, work) in places.iter().zip(work) {
            let at = descriptor(queue, *place);
            // an old result would look like a new one
            let words = work.words().into_iter().chain([0]);
            for (offset, word) in (0u64..).step_by(4).zip(words) {
                self.write(at + offset, word)?;
            }
        }
        let tail = (first + count) % DEPTH;
        if let Some(next) = usize::try_from(queue).ok().and_then(|queue| self.next.get_mut(queue)) {
            *next = tail;
        }
        self.set(queue, TAIL, tail)?;
        Ok(places)
    }

    /// The place of the descriptor that the queue is at, or comes to next.
    ///
    /// # Errors
    /// The function cannot be reached.
    pub fn head(&mut self, queue: u32) -> Result<u32, Error> {
        self.get(queue, HEAD)
    }

    /// How the descriptor at `place` ended, if it has.
    ///
    /// # Errors
    /// The function cannot be reached.
    pub fn outcome(&mut self, queue: u32, place: u32) -> Result<Option<Outcome>, Error> {
        let at = descriptor(queue, place) + RESULT;
        let result = self.read(at)?;
        let mut wide = |offset| -> Result<u64, Error> {
            Ok(u64::from(self.read(at + offset)?) | u64::from(self.read(at + offset + 4)?) << 32)
        };
        Ok(match result {
            0 => None,
            1 => Some(Outcome::Done),
            2 => {
                let address = wide(0x10)?;
                Some(Outcome::Fault { address, write: self.read(at + 4)? & 1 != 0 })
            }
            3 => Some(Outcome::Different { at: wide(0x08)? }),
            other => Some(Outcome::Failed(other)),
        })
    }

    /// How the descriptor at `place` ends, waited for.
    ///
    /// # Errors
    /// [`Error::NoAnswer`] after [`PATIENCE`].
    pub fn wait(&mut self, queue: u32, place: u32) -> Result<Outcome, Error> {
        let begin = Instant::now();
        loop {
            match self.outcome(queue, place)? {
                Some(outcome) => return Ok(outcome),
                None if begin.elapsed() > PATIENCE => return Err(Error::NoAnswer("a descriptor")),
                None => thread::yield_now(),
            }
        }
    }

    /// Does one piece of work on a queue that is on.
    ///
    /// # Errors
    /// As [`submit`](Self::submit) and [`wait`](Self::wait).
    pub fn run(&mut self, queue: u32, work: Work) -> Result<Outcome, Error> {
        match self.submit(queue, &[work])?.as_slice() {
            [place] => self.wait(queue, *place),
            _ => Err(Error::Malformed("one piece of work has one place")),
        }
    }

    fn get(&mut self, queue: u32, register: u64) -> Result<u32, Error> {
        self.read(QUEUE_REGISTERS + QUEUE_BYTES * u64::from(queue) + register)
    }

    fn set(&mut self, queue: u32, register: u64, value: u32) -> Result<(), Error> {
        self.write(QUEUE_REGISTERS + QUEUE_BYTES * u64::from(queue) + register, value)
    }

    fn read(&mut self, offset: u64) -> Result<u32, Error> {
        self.function.read(offset).map_err(Error::io("read a register"))
    }

    fn write(&mut self, offset: u64, value: u32) -> Result<(), Error> {
        self.function.write(offset, value).map_err(Error::io("write a register"))
    }
}

const fn descriptor(queue: u32, place: u32) -> u64 {
    RINGS + RING_BYTES * queue as u64 + DESCRIPTOR_BYTES * place as u64
}

//! The driver: one method for each request.

use std::io;
use std::ops::RangeInclusive;
use std::thread;
use std::time::{Duration, Instant};

use crate::bytes::{u32_at, u64_at};
use crate::error::Error;
use crate::event::Fault;
use crate::memory::{Memory, PAGE_BYTES};
use crate::property::Property;
use crate::request::{Answer, Attribute, BindTable, Invalidate, PASID_ANY, Request, Scope, Status};
use crate::ring::{Buffer, Ring, Used};
use crate::transport::{Queue, Transport};

/// How long an answer may take. A request that withdraws waits for devices, at most as long as the
/// daemon's bound for stuck ones: a second, unless it is told otherwise.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The longest answer that is taken: what is left of a page behind the longest request.
const ANSWER_ROOM: usize = PAGE_BYTES / 2;

/// Buffers for events, and the room of each: a fault has 24 bytes, all events of the extension 48.
const EVENTS: u16 = 64;
const EVENT_ROOM: usize = 64;

/// What a device may do with mapped memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    /// Read it.
    Read,
    /// Write it.
    Write,
    /// Both.
    ReadWrite,
}

impl Rights {
    const fn flags(self) -> u32 {
        match self {
            Self::Read => 1,
            Self::Write => 2,
            Self::ReadWrite => 3,
        }
    }
}

/// Which PASID an attachment gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasidChoice {
    /// One that is free; the device chooses.
    Any,
    /// This one; what was attached there is replaced.
    This(u32),
}

/// A virtio-iommu that is running.
#[derive(Debug)]
pub struct Iommu<T: Transport> {
    transport: T,
    memory: T::Memory,
    features: u64,
    requests: Ring<T::Memory>,
    events: Ring<T::Memory>,
    /// The page of a request: its readable part, and its answer in the second half.
    page: u64,
    /// The page of the events' buffers.
    event_page: u64,
}

impl<T: Transport> Iommu<T> {
    /// Starts the device with the features `wanted`.
    ///
    /// # Errors
    /// [`Error::Features`] if it does not offer all of them; else it cannot be started.
    pub fn start(mut transport: T, wanted: u64) -> Result<Self, Error> {
        let offered = transport.offered().map_err(Error::io("read the features"))?;
        if wanted & !offered != 0 {
            return Err(Error::Features { missing: wanted & !offered });
        }
        let memory = transport.memory();
        let in_memory = Error::io("take pages for queues");
        let places = || -> io::Result<_> {
            let (requests, events) = (Ring::new(memory.clone())?, Ring::new(memory.clone())?);
            Ok((requests, events, memory.page()?, memory.page()?))
        };
        let (requests, events, page, event_page) = places().map_err(in_memory)?;
        let queues = [requests.places(), events.places()];
        transport.start(wanted, &queues).map_err(Error::io("start the device"))?;
        let features = wanted;
        let mut iommu = Self { transport, memory, features, requests, events, page, event_page };
        (0..EVENTS).try_for_each(|slot| iommu.post_event(slot))?;
        iommu.transport.kick(Queue::Event).map_err(Error::io("kick"))?;
        Ok(iommu)
    }

    /// The features that are in force.
    #[must_use]
    pub const fn features(&self) -> u64 {
        self.features
    }

    /// The transport.
    pub const fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Memory that devices reach.
    #[must_use]
    pub fn memory(&self) -> T::Memory {
        self.memory.clone()
    }

    /// Sends `request` and waits for its answer, whatever its status.
    ///
    /// # Errors
    /// [`Error::UnknownRequest`] if the device gave the buffer back as it was; else there is no whole
    /// answer.
    pub fn send(&mut self, request: &Request) -> Result<Answer, Error> {
        let name = request.name();
        let (readable, expected) = (request.encode(), request.answer_bytes());
        if expected > ANSWER_ROOM {
            return Err(Error::Malformed("there is no room for such an answer"));
        }
        let at = self.page + ANSWER_ROOM as u64;
        // no status has this number: an answer that was not written shows
        let blank = vec![0xff; expected];
        self.memory.write(self.page, &readable).map_err(Error::io("write a request"))?;
        self.memory.write(at, &blank).map_err(Error::io("write a request"))?;
        let chain = [
            Buffer { at: self.page, bytes: length(readable.len()), writable: false },
            Buffer { at, bytes: length(expected), writable: true },
        ];
        self.requests.publish(0, &chain).map_err(Error::io("publish a request"))?;
        self.transport.kick(Queue::Request).map_err(Error::io("kick"))?;
        let used = self.wait_used(name)?;

        let mut bytes = blank.clone();
        self.memory.read(at, &mut bytes).map_err(Error::io("read an answer"))?;
        match used.bytes {
            0 if bytes == blank => Err(Error::UnknownRequest(name)),
            used if used == length(expected) => {
                Answer::new(bytes).ok_or(Error::Malformed("a tail with other bytes than a status"))
            }
            used => Err(Error::WrongLength { request: name, used, expected }),
        }
    }

    fn wait_used(&mut self, name: &'static str) -> Result<Used, Error> {
        let begin = Instant::now();
        loop {
            let used = self.requests.take_used().map_err(Error::io("look for an answer"))?;
            match used {
                Some(used) if used.head == 0 => return Ok(used),
                Some(_) => return Err(Error::Malformed("a used chain that nobody made available")),
                None if begin.elapsed() > PATIENCE => return Err(Error::NoAnswer(name)),
                None => thread::yield_now(),
            }
        }
    }

    /// Sends `request`, which has to succeed.
    ///
    /// # Errors
    /// [`Error::Refused`] for every status but OK; else as [`send`](Self::send).
    pub fn request(&mut self, request: &Request) -> Result<Answer, Error> {
        let answer = self.send(request)?;
        match answer.status() {
            Status::OK => Ok(answer),
            status => Err(Error::Refused { request: request.name(), status }),
        }
    }

    fn do_request(&mut self, request: &Request) -> Result<(), Error> {
        self.request(request).map(drop)
    }

    /// ATTACH: the endpoint's untagged DMA goes through `domain`.
    ///
    /// # Errors
    /// See [`request`](Self::request); so for all that follow.
    pub fn attach(&mut self, domain: u32, endpoint: u32) -> Result<(), Error> {
        self.do_request(&Request::Attach { domain, endpoint, flags: 0 })
    }

    /// DETACH.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn detach(&mut self, domain: u32, endpoint: u32) -> Result<(), Error> {
        self.do_request(&Request::Detach { domain, endpoint })
    }

    /// MAP: `iovas` of `domain` lead to memory from `to` on.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn map(
        &mut self,
        domain: u32,
        iovas: RangeInclusive<u64>,
        to: u64,
        rights: Rights,
    ) -> Result<(), Error> {
        self.do_request(&Request::Map { domain, iovas, to, flags: rights.flags() })
    }

    /// UNMAP: when this returns, no device uses what `iovas` led to.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn unmap(&mut self, domain: u32, iovas: RangeInclusive<u64>) -> Result<(), Error> {
        self.do_request(&Request::Unmap { domain, iovas })
    }

    /// PROBE: what is special about the endpoint.
    ///
    /// # Errors
    /// See [`request`](Self::request), and [`Error::Malformed`].
    pub fn probe(&mut self, endpoint: u32) -> Result<Vec<Property>, Error> {
        let config = self.transport.config().map_err(Error::io("read the configuration"))?;
        // virtio 1.4, 5.13.4: probe_size
        let room = u32_at(&config, 32);
        let answer = self.request(&Request::Probe { endpoint, room })?;
        Property::list(answer.body()).ok_or(Error::Malformed("properties that run past their end"))
    }

    /// The IOVAs that can be mapped.
    ///
    /// # Errors
    /// The device cannot be reached.
    pub fn input_range(&mut self) -> Result<RangeInclusive<u64>, Error> {
        let config = self.transport.config().map_err(Error::io("read the configuration"))?;
        Ok(u64_at(&config, 8)..=u64_at(&config, 16))
    }

    /// AUX_ENABLE: domains can be attached to PASIDs of the endpoint.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn aux_enable(&mut self, endpoint: u32) -> Result<(), Error> {
        self.do_request(&Request::AuxEnable { endpoint })
    }

    /// AUX_DISABLE.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn aux_disable(&mut self, endpoint: u32) -> Result<(), Error> {
        self.do_request(&Request::AuxDisable { endpoint })
    }

    /// AUX_ATTACH: the endpoint's DMA with the PASID that this returns goes through `domain`.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn aux_attach(
        &mut self,
        domain: u32,
        endpoint: u32,
        choice: PasidChoice,
    ) -> Result<u32, Error> {
        let pasid = match choice {
            PasidChoice::Any => PASID_ANY,
            PasidChoice::This(pasid) => pasid,
        };
        let answer = self.request(&Request::AuxAttach { domain, endpoint, pasid, flags: 0 })?;
        u32::try_from(answer.value())
            .map_err(|_| Error::Malformed("reserved bytes after a PASID are not zero"))
    }

    /// AUX_DETACH: when this returns, no DMA with the PASID goes anywhere.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn aux_detach(&mut self, domain: u32, endpoint: u32, pasid: u32) -> Result<(), Error> {
        self.do_request(&Request::AuxDetach { domain, endpoint, pasid })
    }

    /// GET_ATTR.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn attribute(
        &mut self,
        attribute: Attribute,
        domain: u32,
        endpoint: u32,
    ) -> Result<u64, Error> {
        let attribute = attribute as u16;
        Ok(self.request(&Request::GetAttr { domain, endpoint, attribute })?.value())
    }

    /// BIND_TABLE: what is attached to the domain goes through a table of ours.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn bind_table(&mut self, bind: BindTable) -> Result<(), Error> {
        self.do_request(&Request::BindTable(bind))
    }

    /// UNBIND_TABLE.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn unbind_table(&mut self, domain: u32) -> Result<(), Error> {
        self.do_request(&Request::UnbindTable { domain })
    }

    /// INVALIDATE: when this returns, nothing that our table held before is used any more.
    ///
    /// # Errors
    /// See [`request`](Self::request).
    pub fn invalidate(&mut self, domain: u32, scope: Scope) -> Result<(), Error> {
        self.do_request(&Request::Invalidate(Invalidate { domain, scope, leaf: false }))
    }

    /// The next fault that the device told of, if there is one; its buffer is posted again.
    ///
    /// # Errors
    /// An event makes no sense, or memory is gone.
    pub fn take_fault(&mut self) -> Result<Option<Fault>, Error> {
        let used = self.events.take_used().map_err(Error::io("look for events"))?;
        let Some(Used { head, bytes }) = used else { return Ok(None) };
        let no_event = Error::Malformed("an event in a buffer that was not posted");
        let slot = u16::try_from(head).ok().filter(|slot| *slot < EVENTS).ok_or(no_event)?;
        let mut event = [0; EVENT_ROOM];
        let at = self.event_page + EVENT_ROOM as u64 * u64::from(slot);
        self.memory.read(at, &mut event).map_err(Error::io("read an event"))?;
        let written = usize::try_from(bytes).ok().and_then(|bytes| event.get(..bytes));
        let fault = written.and_then(Fault::decode);
        self.post_event(slot)?;
        self.transport.kick(Queue::Event).map_err(Error::io("kick"))?;
        fault.map(Some).ok_or(Error::Malformed("an event that is no fault"))
    }

    /// The next fault, waited for.
    ///
    /// # Errors
    /// As [`take_fault`](Self::take_fault), and [`Error::NoAnswer`] after [`PATIENCE`].
    pub fn wait_fault(&mut self) -> Result<Fault, Error> {
        let begin = Instant::now();
        loop {
            match self.take_fault()? {
                Some(fault) => return Ok(fault),
                None if begin.elapsed() > PATIENCE => return Err(Error::NoAnswer("a fault")),
                None => thread::yield_now(),
            }
        }
    }

    fn post_event(&mut self, slot: u16) -> Result<(), Error> {
        let at = self.event_page + EVENT_ROOM as u64 * u64::from(slot);
        let buffer = Buffer { at, bytes: length(EVENT_ROOM), writable: true };
        self.events.publish(slot, &[buffer]).map_err(Error::io("post a buffer for events"))
    }
}

/// A length inside a page.
fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

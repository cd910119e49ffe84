//! What sequences stand on: pages with a content to tell them by, DMA through a queue, and the looks
//! that compare what came of it.

use std::fmt::Debug;
use std::io;

use viommu_client::engine::{Engine, Outcome, Work};
use viommu_client::{
    Error, Fault, Function, Iommu, Memory, PAGE_BYTES, Property, Request, Rights, Status, Transport,
};

use super::table::GuestTable;

/// Bytes of a page, as addresses are counted.
pub(super) const PAGE: u64 = PAGE_BYTES as u64;

/// Bytes of a page, as the engine's descriptors count them.
const PAGE_LENGTH: u32 = 4096;

/// Where every address space has a page of its own that its DMA may write: what was read shows there.
pub(super) const LANDING: u64 = 0x2000_0000;

/// What a sequence saw instead of what it should have.
#[derive(Debug, thiserror::Error)]
pub enum Wrong {
    /// The IOMMU or a device cannot be driven, or a request was refused.
    #[error(transparent)]
    Client(#[from] Error),
    /// Memory that is shared with devices is not there.
    #[error("memory: {0}")]
    Memory(#[from] io::Error),
    /// Something else was seen.
    #[error("{what}: {seen}, not {expected}")]
    Seen {
        /// Where.
        what: &'static str,
        /// What was seen.
        seen: String,
        /// What should have been.
        expected: String,
    },
    /// The endpoints lack what the sequence needs.
    #[error("{0}")]
    Lacking(&'static str),
    /// There is no sequence of this number.
    #[error("there is no sequence {0}")]
    NoSuchSequence(u8),
}

/// Fails unless `seen` is `expected`.
pub(super) fn same<V: PartialEq + Debug>(
    what: &'static str,
    seen: &V,
    expected: &V,
) -> Result<(), Wrong> {
    if seen == expected {
        return Ok(());
    }
    let (seen, expected) = (format!("{seen:x?}"), format!("{expected:x?}"));
    Err(Wrong::Seen { what, seen, expected })
}

/// Which structures the IOMMU keeps, as a driver sees it: by what PROBE tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// Each PASID may have another second level; tables are x86's.
    Vtd,
    /// One second level for an endpoint; tables are Arm's.
    SmmuV3,
}

/// A DMA engine and its endpoint.
#[derive(Debug)]
pub struct Device<F> {
    /// The endpoint's number.
    pub endpoint: u32,
    /// The engine.
    pub engine: Engine<F>,
}

/// A queue that is on, and where what it reads lands.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lane {
    /// Which device.
    pub(super) device: usize,
    /// Which queue.
    pub(super) queue: u32,
    /// What its DMA is tagged with.
    pub(super) pasid: Option<u32>,
    /// The page that [`LANDING`] leads to.
    pub(super) landing: u64,
}

/// Who refused an access: what the fault event says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nothing is attached there.
    NotAttached,
    /// No mapping, or a table that is none.
    Mapping,
    /// The second level.
    SecondLevel,
}

/// A running IOMMU, and engines behind it.
#[derive(Debug)]
pub struct Bench<T: Transport, F> {
    pub(super) iommu: Iommu<T>,
    pub(super) devices: Vec<Device<F>>,
    pub(super) flavour: Flavour,
    pub(super) memory: T::Memory,
    next_queue: u32,
}

impl<T: Transport, F: Function> Bench<T, F> {
    /// A bench with these devices: two at least, of the same kind.
    ///
    /// # Errors
    /// There are fewer, or PROBE tells of no table that is known here.
    pub fn new(mut iommu: Iommu<T>, devices: Vec<Device<F>>) -> Result<Self, Wrong> {
        let [first, _, ..] = devices.as_slice() else {
            return Err(Wrong::Lacking("two devices are needed"));
        };
        let properties = iommu.probe(first.endpoint)?;
        let flavour = properties.iter().find_map(|property| match property {
            Property::TableFormat { format: 1, .. } => Some(Flavour::Vtd),
            Property::TableFormat { format: 2, .. } => Some(Flavour::SmmuV3),
            _ => None,
        });
        let flavour = flavour.ok_or(Wrong::Lacking("no table that is known here can be bound"))?;
        let memory = iommu.memory();
        Ok(Self { iommu, devices, flavour, memory, next_queue: 0 })
    }

    /// Which structures the IOMMU keeps.
    #[must_use]
    pub const fn flavour(&self) -> Flavour {
        self.flavour
    }

    /// The endpoint of a device.
    pub(super) fn endpoint(&self, device: usize) -> Result<u32, Wrong> {
        let device = self.devices.get(device).ok_or(Wrong::Lacking("there is no such device"))?;
        Ok(device.endpoint)
    }

    pub(super) fn engine(&mut self, device: usize) -> Result<&mut Engine<F>, Wrong> {
        let device = self.devices.get_mut(device);
        Ok(&mut device.ok_or(Wrong::Lacking("there is no such device"))?.engine)
    }

    /// A page that holds `marker` again and again.
    pub(super) fn page(&self, marker: u64) -> Result<u64, Wrong> {
        let page = self.memory.page()?;
        self.refill(page, marker)?;
        Ok(page)
    }

    /// Fills a page anew.
    pub(super) fn refill(&self, page: u64, marker: u64) -> Result<(), Wrong> {
        let content: Vec<u8> = marker.to_le_bytes().repeat(PAGE_BYTES / 8);
        Ok(self.memory.write(page, &content)?)
    }

    /// What a page holds again and again; `None` if it is not the same everywhere.
    pub(super) fn marker(&self, page: u64) -> Result<Option<u64>, Wrong> {
        let mut content = [0; PAGE_BYTES];
        self.memory.read(page, &mut content)?;
        let (words, _) = content.as_chunks::<8>();
        let [first, rest @ ..] = words else { return Ok(None) };
        let uniform = rest.iter().all(|word| word == first);
        Ok(uniform.then(|| u64::from_le_bytes(*first)))
    }

    /// MAP of one page.
    pub(super) fn map(
        &mut self,
        domain: u32,
        iova: u64,
        page: u64,
        rights: Rights,
    ) -> Result<(), Wrong> {
        Ok(self.iommu.map(domain, iova..=iova + PAGE - 1, page, rights)?)
    }

    /// UNMAP of one page.
    pub(super) fn unmap(&mut self, domain: u32, iova: u64) -> Result<(), Wrong> {
        Ok(self.iommu.unmap(domain, iova..=iova + PAGE - 1)?)
    }

    /// MAP of the landing page of a domain; the page.
    pub(super) fn map_landing(&mut self, domain: u32) -> Result<u64, Wrong> {
        let landing = self.page(0)?;
        self.map(domain, LANDING, landing, Rights::ReadWrite)?;
        Ok(landing)
    }

    /// `request` is answered with this status.
    pub(super) fn answers(&mut self, request: &Request, status: Status) -> Result<(), Wrong> {
        let seen = self.iommu.send(request)?.status();
        same(request.name(), &seen, &status)
    }

    /// Turns a queue of a device on.
    pub(super) fn lane(
        &mut self,
        device: usize,
        pasid: Option<u32>,
        landing: u64,
    ) -> Result<Lane, Wrong> {
        let queues = self.engine(device)?.queues();
        let queue = self.next_queue % queues;
        self.next_queue += 1;
        self.engine(device)?.enable(queue, pasid)?;
        Ok(Lane { device, queue, pasid, landing })
    }

    /// Turns queues off.
    pub(super) fn close(&mut self, lanes: &[Lane]) -> Result<(), Wrong> {
        lanes.iter().try_for_each(|lane| Ok(self.engine(lane.device)?.disable(lane.queue)?))
    }

    /// Copies a page from `iova` to the landing page.
    pub(super) fn read(&mut self, lane: Lane, iova: u64) -> Result<Outcome, Wrong> {
        self.refill(lane.landing, 0)?;
        let work = Work::Copy { source: iova, destination: LANDING, bytes: PAGE_LENGTH };
        Ok(self.engine(lane.device)?.run(lane.queue, work)?)
    }

    /// Fills the page at `iova`.
    pub(super) fn fill(&mut self, lane: Lane, iova: u64, marker: u64) -> Result<Outcome, Wrong> {
        let work = Work::Fill { pattern: marker, destination: iova, bytes: PAGE_LENGTH };
        Ok(self.engine(lane.device)?.run(lane.queue, work)?)
    }

    /// A read of `iova` finds the page with `marker`.
    pub(super) fn sees(&mut self, lane: Lane, iova: u64, marker: u64) -> Result<(), Wrong> {
        same("a read", &self.read(lane, iova)?, &Outcome::Done)?;
        same("what was read", &self.marker(lane.landing)?, &Some(marker))
    }

    /// A write to `iova` reaches `page`.
    pub(super) fn writes(
        &mut self,
        lane: Lane,
        iova: u64,
        page: u64,
        marker: u64,
    ) -> Result<(), Wrong> {
        same("a write", &self.fill(lane, iova, marker)?, &Outcome::Done)?;
        same("what was written", &self.marker(page)?, &Some(marker))
    }

    /// A read of `iova` is refused, nothing of it is done, and the driver is told.
    pub(super) fn blocked(&mut self, lane: Lane, iova: u64, refusal: Refusal) -> Result<(), Wrong> {
        let outcome = self.read(lane, iova)?;
        same("a read", &outcome, &Outcome::Fault { address: iova, write: false })?;
        same("what was read", &self.marker(lane.landing)?, &Some(0))?;
        self.told(lane, iova, refusal, false)
    }

    /// A write to `iova` is refused, and the driver is told.
    pub(super) fn blocked_write(
        &mut self,
        lane: Lane,
        iova: u64,
        refusal: Refusal,
    ) -> Result<(), Wrong> {
        let outcome = self.fill(lane, iova, 0xbad)?;
        same("a write", &outcome, &Outcome::Fault { address: iova, write: true })?;
        self.told(lane, iova, refusal, true)
    }

    /// The next event is the fault of this access.
    fn told(&mut self, lane: Lane, iova: u64, refusal: Refusal, write: bool) -> Result<(), Wrong> {
        let expected = Fault {
            reason: if refusal == Refusal::NotAttached { 1 } else { 2 },
            endpoint: self.endpoint(lane.device)?,
            pasid: lane.pasid,
            address: Some(iova),
            read: !write,
            write,
            second_level: refusal == Refusal::SecondLevel,
        };
        same("the event", &self.iommu.wait_fault()?, &expected)
    }

    /// Takes events that came before.
    pub(super) fn forget_faults(&mut self) -> Result<(), Wrong> {
        while self.iommu.take_fault()?.is_some() {}
        Ok(())
    }

    /// An empty table of the guest's own. Its pages lie at their guest-physical address plus `offset`
    /// for who walks it.
    pub(super) fn table(&self, offset: u64) -> Result<GuestTable<T::Memory>, Wrong> {
        GuestTable::new(self.memory.clone(), self.flavour, offset)
    }
}

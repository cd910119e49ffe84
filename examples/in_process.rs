//! The IOMMU as a library: no daemon, no socket, no virtqueue.
//!
//! A VMM that has its own virtio transport keeps an [`Iommu`] and a backend, and hands over requests:
//! as typed values, as here, or decoded by `viommu::protocol` from what the guest wrote. This program
//! plays the guest too: it attaches a domain to a function's untagged traffic and another one to a
//! PASID, maps the same IOVA in both, and asks where DMA leads.
//!
//! ```sh
//! cargo run --example in_process
//! ```

use std::error::Error;

use viommu::iommu::{EndpointSpec, Iommu, Settings};
use viommu::protocol::{Attach, AuxAttach, Map, PasidChoice, Request, Status, Unmap};
use viommu_backend::{DevicePlace, DomainId, HostIommu, SoftwareConfig, SoftwareIommu};
use viommu_iotlb::{Arch, HubConfig, StuckPolicy};
use viommu_pasid::{EndpointId, Pasid, Requester};
use viommu_pgtable::{Access, Iova, IovaRange, PhysAddr};

/// The function behind the IOMMU: 0000:00:02.0.
const FUNCTION: EndpointId = EndpointId::new(0x10);
/// Width of its PASIDs.
const PASID_BITS: u8 = 8;
/// What its DMA names.
const IOVA: Iova = Iova::new(0x10_0000);
/// Bytes of each mapping.
const PAGE_BYTES: u64 = 0x1000;

/// What goes wrong here is told and ends the program.
type Failure = Box<dyn Error>;

/// The state machine, and the place where its decisions take effect.
struct Machine {
    iommu: Iommu,
    tables: SoftwareIommu,
}

impl Machine {
    /// An IOMMU with VT-d's tables and one function, of which nothing is attached.
    fn new() -> Result<Self, Failure> {
        let hub = HubConfig {
            arch: Arch::Vtd,
            table_base: PhysAddr::new(1 << 51),
            table_bytes: 16 << 20,
            stuck: std::time::Duration::from_secs(1),
            policy: StuckPolicy::Disconnect,
        };
        let page_size_mask = Settings::DEFAULT_PAGE_SIZES;
        let config =
            SoftwareConfig { input_bits: Settings::DEFAULT_INPUT_BITS, page_size_mask, hub };
        let mut tables = SoftwareIommu::new(config)?;
        // no socket: no device process, the VMM's own devices do the DMA
        let place = DevicePlace { endpoint: FUNCTION, pasid_bits: PASID_BITS, socket: None };
        tables.add_endpoint(&place)?;
        let settings = Settings { boot_bypass: false, ..Settings::default() };
        let mut iommu = Iommu::new(settings, vec![EndpointSpec::x86(FUNCTION)])?;
        iommu.start(&mut tables)?;
        Ok(Self { iommu, tables })
    }

    /// One request of the guest's. It is to be answered when this returns: the wait for those who may
    /// still use what it withdrew is over.
    fn request(&mut self, request: &Request) -> Status {
        let status = self.iommu.request(&mut self.tables, request).status();
        self.tables.sync();
        self.iommu.synced();
        status
    }

    /// A request that has to succeed.
    fn done(&mut self, request: &Request) -> Result<(), Failure> {
        match self.request(request) {
            Status::OK => Ok(()),
            status => Err(format!("{request:?}: {status}").into()),
        }
    }

    /// Where a write to [`IOVA`] leads, tagged or not.
    fn write(&self, pasid: Option<Pasid>) -> Option<PhysAddr> {
        self.tables.translate(Requester { endpoint: FUNCTION, pasid }, IOVA, Access::WRITE)
    }
}

/// MAP of one page at [`IOVA`].
fn map(domain: DomainId, to: u64) -> Result<Request, Failure> {
    let oa = PhysAddr::new(to);
    Ok(Request::Map(Map { domain, iova: page()?, oa, access: Access::RW, mmio: false }))
}

fn page() -> Result<IovaRange, Failure> {
    IovaRange::with_len(IOVA, PAGE_BYTES).ok_or_else(|| "no such page".into())
}

/// Says what is, if it is what has to be.
fn see(what: &str, seen: Option<PhysAddr>, expected: Option<u64>) -> Result<(), Failure> {
    if seen.map(PhysAddr::raw) != expected {
        return Err(format!("{what}: {seen:?}, not {expected:x?}").into());
    }
    match seen {
        Some(address) => println!("{what}: leads to {address}"),
        None => println!("{what}: refused"),
    }
    Ok(())
}

/// Everything, in order.
fn run() -> Result<(), Failure> {
    let mut machine = Machine::new()?;
    let (plain, behind_pasid) = (DomainId::new(1), DomainId::new(2));
    let pasid = Pasid::new(7);
    see("nothing attached, untagged DMA", machine.write(None), None)?;

    machine.done(&Request::Attach(Attach { domain: plain, endpoint: FUNCTION, bypass: false }))?;
    machine.done(&Request::AuxEnable(FUNCTION))?;
    machine.done(&Request::AuxAttach(AuxAttach {
        domain: behind_pasid,
        endpoint: FUNCTION,
        pasid: pasid.map_or(PasidChoice::Any, PasidChoice::This),
        page_request: false,
    }))?;
    machine.done(&map(plain, 0x5000)?)?;
    machine.done(&map(behind_pasid, 0x6000)?)?;
    see("domain 1, untagged DMA", machine.write(None), Some(0x5000))?;
    see("domain 2, DMA with PASID 7", machine.write(pasid), Some(0x6000))?;
    see("DMA with PASID 8", machine.write(Pasid::new(8)), None)?;

    machine.done(&Request::Unmap(Unmap { domain: behind_pasid, iova: page()? }))?;
    see("after UNMAP on domain 2, DMA with PASID 7", machine.write(pasid), None)?;
    see("and untagged DMA", machine.write(None), Some(0x5000))
}

fn main() -> Result<(), Failure> {
    run()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_library_translates_without_a_daemon() {
        super::run().unwrap();
    }
}

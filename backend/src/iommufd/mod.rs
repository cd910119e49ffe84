//! iommufd: a domain is an address space of the kernel's, and a page table for each IOMMU that it meets.
//!
//! Endpoints of a domain share both; attaching replaces what was attached before in one step, and nothing
//! is mapped again. A MAP copies pages out of an address space in which all guest memory is pinned once
//! ([`Pin::Static`]), or pins its own ([`Pin::Dynamic`]). A device's registers are a dma-buf, which is mapped
//! anew each time: once the device was reset, what was mapped before leads nowhere for ever.
//!
//! Devices are opened here, or bound by the VMM, which then shares iommufd and the devices' descriptors
//! with us: its own address space is the one to copy from.

mod ids;
mod open;
mod registers;
mod sys;

use std::collections::BTreeMap;

use viommu_pasid::EndpointId;
use viommu_pgtable::{Access, Iova, IovaRange, Mapping};

use crate::vfio::{Contents, Counters, Kernel, Leads, NOWHERE, Piece, Pin, Place, Region, refused};
use crate::{Capabilities, DomainId, HostError};
use open::Common;
pub use open::{Devices, descriptors, open, serves};
pub use sys::REQUESTS;
use sys::{Cdev, FilePart, Iommufd};

/// Objects that are looked at to find what the VMM has made. Ids count up from 1, and the VMM makes its own
/// when it starts.
const IDS_LOOKED_AT: u32 = 1024;

/// An address space, and its form for each IOMMU.
#[derive(Debug)]
struct Space {
    ioas: u32,
    tables: Vec<u32>,
}

/// A device, and what iommufd makes tables for it by.
#[derive(Debug)]
struct Device {
    cdev: Cdev,
    /// Its id in iommufd, if we have bound it. Else one of a device behind the same IOMMU, once it has been
    /// attached: a table made for that one serves as well, as long as that one is bound.
    id: Option<u32>,
    place: Place,
}

/// Where guest memory is mapped at its own addresses.
#[derive(Debug)]
enum Identity {
    /// In an address space of ours.
    Ours {
        space: Space,
        pin: Pin,
        /// What of the memory is to be in it, and is, where `filled` says so.
        regions: Vec<Region>,
        filled: bool,
    },
    /// In the VMM's, once it has made it.
    Vmm(Option<Space>),
}

/// The interface.
#[derive(Debug)]
struct IommufdKernel {
    iommufd: Iommufd,
    devices: BTreeMap<EndpointId, Device>,
    /// Ids of devices that the VMM has bound.
    bound: Vec<u32>,
    /// Made once the VMM has made its own, so that the lowest id is the VMM's.
    nowhere: Option<Space>,
    identity: Identity,
    domains: BTreeMap<DomainId, Space>,
    capabilities: Capabilities,
    counters: Counters,
}

impl Space {
    fn new(iommufd: &Iommufd) -> Result<Self, HostError> {
        let ioas = iommufd.ioas_alloc().map_err(refused("IOAS_ALLOC"))?;
        Ok(Self { ioas, tables: Vec::new() })
    }

    /// Makes a table for the IOMMU of device `id`, for whoever is attached later.
    fn add_table(&mut self, iommufd: &Iommufd, id: u32) -> Result<(), HostError> {
        let table = iommufd.hwpt_alloc(id, self.ioas).map_err(refused("HWPT_ALLOC"))?;
        self.tables.push(table);
        Ok(())
    }

    /// Sends a device's DMA here: through a table of its IOMMU, made if there is none yet.
    fn attach(
        &mut self,
        iommufd: &Iommufd,
        device: &mut Device,
        bound: &[u32],
    ) -> Result<(), HostError> {
        for table in &self.tables {
            match device.cdev.attach(*table) {
                Ok(()) => return Ok(()),
                // the table is another IOMMU's
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(refused("ATTACH")(error)),
            }
        }
        let ids = ids::candidates(device.id, bound);
        let (id, table) = ids::first_that(ids, |id| self.make_for(iommufd, id, &device.cdev))?;
        device.id = Some(id);
        self.tables.push(table);
        Ok(())
    }

    /// Makes a table for the IOMMU of device `id`, and sends the DMA of `cdev` through it.
    fn make_for(&self, iommufd: &Iommufd, id: u32, cdev: &Cdev) -> Result<u32, HostError> {
        let table = iommufd.hwpt_alloc(id, self.ioas).map_err(refused("HWPT_ALLOC"))?;
        match cdev.attach(table) {
            Ok(()) => Ok(table),
            Err(error) => {
                destroy(iommufd, table);
                Err(refused("ATTACH")(error))
            }
        }
    }

    fn destroy(&self, iommufd: &Iommufd) {
        for table in &self.tables {
            destroy(iommufd, *table);
        }
        destroy(iommufd, self.ioas);
    }
}

/// Ends an object. One that the kernel keeps is lost, and no harm.
fn destroy(iommufd: &Iommufd, id: u32) {
    if let Err(error) = iommufd.destroy(id) {
        log::warn!("iommufd object {id} stays: {error}");
    }
}

/// Maps pieces one after another; on failure none is mapped.
fn map_pieces(
    iommufd: &Iommufd,
    ioas: u32,
    (pieces, mapping): (&[Piece<'_>], &Mapping),
) -> Result<(), HostError> {
    let start = mapping.iova().start();
    let mut done = 0;
    for piece in pieces {
        let Piece { region, at, bytes } = *piece;
        let part =
            FilePart { file: region.file(), start: region.offset().saturating_add(at), bytes };
        let iova = Iova::new(start.raw().saturating_add(done));
        if let Err(error) = iommufd.map_file(ioas, part, iova, mapping.access()) {
            if let Some(range) = IovaRange::with_len(start, done)
                && let Err(error) = iommufd.unmap(ioas, range)
            {
                log::error!("{range} stays mapped in address space {ioas}: {error}");
            }
            return Err(refused("IOAS_MAP_FILE")(error));
        }
        done = done.saturating_add(bytes);
    }
    Ok(())
}

/// Pins one region at its own address.
fn pin(iommufd: &Iommufd, ioas: u32, region: &Region) -> Result<(), HostError> {
    let part = FilePart { file: region.file(), start: region.offset(), bytes: region.bytes() };
    let iova = Iova::new(region.gpa().raw());
    iommufd.map_file(ioas, part, iova, Access::RW).map_err(refused("IOAS_MAP_FILE"))
}

/// Lets one region go.
fn unpin(iommufd: &Iommufd, ioas: u32, region: &Region) {
    let Some(range) = region.identity().map(|mapping| mapping.iova()) else { return };
    if let Err(error) = iommufd.unmap(ioas, range) {
        log::error!("guest memory at {range} stays pinned: {error}");
    }
}

impl Identity {
    /// The address space that guest memory is copied out of, if it all is in one.
    fn source(&self) -> Option<u32> {
        match self {
            Self::Ours { space, pin: Pin::Static, .. } => Some(space.ioas),
            Self::Ours { .. } => None,
            Self::Vmm(space) => space.as_ref().map(|space| space.ioas),
        }
    }

    /// Pins all memory, if that is not done.
    fn fill(&mut self, iommufd: &Iommufd) -> Result<(), HostError> {
        let Self::Ours { space, regions, filled, .. } = self else { return Ok(()) };
        if *filled {
            return Ok(());
        }
        for (done, region) in regions.iter().enumerate() {
            if let Err(error) = pin(iommufd, space.ioas, region) {
                for region in regions.iter().take(done) {
                    unpin(iommufd, space.ioas, region);
                }
                return Err(error);
            }
        }
        *filled = true;
        Ok(())
    }

    /// Lets memory go that is pinned for nobody.
    fn drain(&mut self, iommufd: &Iommufd) {
        if let Self::Ours { space, pin: Pin::Dynamic, regions, filled } = self
            && std::mem::take(filled)
        {
            for region in regions {
                unpin(iommufd, space.ioas, region);
            }
        }
    }
}

impl IommufdKernel {
    /// Lets memory go where it is pinned for endpoints that bypass, and none does.
    fn settle(&mut self) {
        if !self.devices.values().any(|device| device.place == Place::Identity) {
            self.identity.drain(&self.iommufd);
        }
    }

    /// Maps what address space `source` has where `mapping` leads.
    fn copy(&mut self, ioas: u32, mapping: &Mapping, source: u32) -> Result<(), HostError> {
        let (to, from) = ((ioas, mapping.iova()), (source, mapping.oa().raw()));
        self.counters.copies += 1;
        let copied = self.iommufd.copy(to, from, mapping.access());
        copied.map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT) => NOWHERE,
            _ => refused("IOAS_COPY")(error),
        })
    }
}

impl Kernel for IommufdKernel {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn add_memory(&mut self, region: &Region) -> Result<(), HostError> {
        let Identity::Ours { space, regions, filled, .. } = &mut self.identity else {
            return Ok(());
        };
        if *filled {
            pin(&self.iommufd, space.ioas, region)?;
        }
        regions.push(region.clone());
        Ok(())
    }

    fn remove_memory(&mut self, region: &Region) {
        let Identity::Ours { space, regions, filled, .. } = &mut self.identity else { return };
        if *filled {
            unpin(&self.iommufd, space.ioas, region);
        }
        regions.retain(|known| !known.is(region));
    }

    fn create(&mut self, domain: DomainId) -> Result<(), HostError> {
        let space = Space::new(&self.iommufd)?;
        self.domains.insert(domain, space);
        Ok(())
    }

    fn destroy(&mut self, domain: DomainId) {
        if let Some(space) = self.domains.remove(&domain) {
            space.destroy(&self.iommufd);
        }
    }

    fn attach(
        &mut self,
        endpoint: EndpointId,
        place: Place,
        _: Contents<'_>,
    ) -> Result<(), HostError> {
        let Some(device) = self.devices.get_mut(&endpoint) else {
            return Err(HostError::Unsupported("no such VFIO endpoint"));
        };
        if place == Place::Identity {
            self.identity.fill(&self.iommufd)?;
        }
        let space = match (place, &mut self.identity) {
            (Place::Nowhere, _) => self.nowhere.as_mut(),
            (Place::Identity, Identity::Ours { space, .. }) => Some(space),
            (Place::Identity, Identity::Vmm(space)) => space.as_mut(),
            (Place::Domain(id), _) => self.domains.get_mut(&id),
        };
        let space = space.ok_or(HostError::Unsupported("no such address space"))?;
        let done = space.attach(&self.iommufd, device, &self.bound);
        if done.is_ok() {
            device.place = place;
        }
        self.settle();
        done
    }

    fn cut_off(&mut self, endpoint: EndpointId) {
        let Some(device) = self.devices.get_mut(&endpoint) else { return };
        if let Err(error) = device.cdev.detach() {
            log::error!("{endpoint} is not cut off: {error}");
        }
        device.place = Place::Nowhere;
        self.settle();
    }

    fn map(
        &mut self,
        domain: DomainId,
        mapping: &Mapping,
        leads: &Leads<'_>,
    ) -> Result<(), HostError> {
        let space = self.domains.get(&domain);
        let ioas = space.ok_or(HostError::Unsupported("no such domain"))?.ioas;
        match (leads, self.identity.source()) {
            (Leads::Memory(_), Some(source)) => self.copy(ioas, mapping, source),
            (Leads::Memory(pieces), None) => {
                self.counters.pins += u64::try_from(pieces.len()).unwrap_or(u64::MAX);
                map_pieces(&self.iommufd, ioas, (pieces, mapping))
            }
            (Leads::Registers(pieces), _) => {
                self.counters.registers += 1;
                map_pieces(&self.iommufd, ioas, (pieces, mapping))
            }
            (Leads::Elsewhere, Some(source)) => match &self.identity {
                Identity::Ours { .. } => Err(NOWHERE),
                // the VMM has more at its guest's addresses than it tells of: devices' registers
                Identity::Vmm(_) => self.copy(ioas, mapping, source),
            },
            (Leads::Elsewhere, None) => Err(NOWHERE),
        }
    }

    fn remove_registers(&mut self, _: &Region) {
        // the caller has the dma-buf
    }

    fn release(&mut self, endpoint: EndpointId) {
        self.devices.remove(&endpoint);
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn unmap(&mut self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        let space = self.domains.get(&domain);
        let ioas = space.ok_or(HostError::Unsupported("no such domain"))?.ioas;
        self.iommufd.unmap(ioas, range).map_err(refused("IOAS_UNMAP"))
    }

    fn adopt(&mut self) -> Result<(), HostError> {
        let Identity::Vmm(space) = &mut self.identity else { return Ok(()) };
        let ids = 1..=IDS_LOOKED_AT;
        self.bound = ids.clone().filter(|id| self.iommufd.is_device(*id)).collect();
        let usable = |id| self.iommufd.usable(id).ok().map(|usable| (id, usable));
        let spaces: Vec<_> = ids.filter_map(usable).collect();
        if self.bound.len() < self.devices.len() {
            return Err(HostError::Unsupported("devices that the VMM has not bound yet"));
        }
        // The first is the VMM's: it made it before it started the guest, and ours come after.
        let (ioas, _) =
            *spaces.first().ok_or(HostError::Unsupported("a VMM without an address space"))?;
        // One that a device is attached to says what its IOMMU can map; others say that all can be.
        let mut common = Common::default();
        spaces.iter().for_each(|(_, usable)| common.narrow(usable));
        self.capabilities = common.whole_capabilities();
        if space.as_ref().is_none_or(|space| space.ioas != ioas) {
            *space = Some(Space { ioas, tables: Vec::new() });
        }
        if self.nowhere.is_none() {
            self.nowhere = Some(Space::new(&self.iommufd)?);
        }
        Ok(())
    }
}

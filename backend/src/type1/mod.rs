//! VFIO type1: a container for each device, into which everything is mapped that its domain maps.
//!
//! A container is one address space, and a device cannot leave its container. So attaching replaces the
//! container's mappings: a DMA meanwhile may find neither the old nor the new, but never one it must not.
//! A domain with many mappings costs as much to attach, and a container takes a limited number of them:
//! past it is NOMEM. Mapping pins ([`Pin::Dynamic`](crate::vfio::Pin)), and there is nothing else to choose.

mod info;
mod open;
mod sys;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use viommu_pasid::EndpointId;
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

use crate::vfio::{Contents, Counters, Kernel, Leads, NOWHERE, Place, Region, refused};
use crate::{Capabilities, DomainId, HostError};
pub use open::open;
pub use sys::REQUESTS;
use sys::Window;

/// Guest memory, and devices' registers, in our address space, by where the guest has them.
type Windows = BTreeMap<PhysAddr, Window>;

/// One mapping in a container: a part of one region.
#[derive(Debug, Clone, Copy)]
struct Mapped {
    region: PhysAddr,
    at: u64,
    iova: IovaRange,
    access: Access,
}

/// A device and its container.
#[derive(Debug)]
struct Container {
    container: File,
    /// Mappings that it takes.
    limit: usize,
    place: Place,
    mapped: BTreeMap<Iova, Mapped>,
    /// While these are open the group stays in the container, and the device ours.
    open: (File, OwnedFd),
}

/// The parts that a mapping consists of, one for each region.
fn parts(mapping: &Mapping, leads: &Leads<'_>) -> Option<Vec<Mapped>> {
    let (Leads::Memory(pieces) | Leads::Registers(pieces)) = leads else { return None };
    let mut start = mapping.iova().start();
    let mut parts = Vec::new();
    for piece in pieces {
        let iova = IovaRange::with_len(start, piece.bytes)?;
        let (region, access) = (piece.region.gpa(), mapping.access());
        parts.push(Mapped { region, at: piece.at, iova, access });
        start = iova.last().checked_add(1).unwrap_or(start);
    }
    Some(parts)
}

/// The device.
impl AsFd for Container {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (_, device) = &self.open;
        device.as_fd()
    }
}

impl Container {
    /// Maps parts; on failure none of them is mapped.
    fn map(&mut self, windows: &Windows, parts: &[Mapped]) -> Result<(), HostError> {
        if self.mapped.len().saturating_add(parts.len()) > self.limit {
            return Err(HostError::OutOfMappings);
        }
        for (done, part) in parts.iter().enumerate() {
            let Err(error) = self.map_one(windows, part) else { continue };
            for part in parts.iter().take(done) {
                if let Err(error) = self.unmap(part.iova) {
                    log::error!("{} stays mapped: {error}", part.iova);
                }
            }
            return Err(error);
        }
        Ok(())
    }

    fn map_one(&mut self, windows: &Windows, part: &Mapped) -> Result<(), HostError> {
        let window = windows.get(&part.region).ok_or(NOWHERE)?;
        sys::map_dma(&self.container, (window, part.at), part.iova, part.access)
            .map_err(refused("VFIO_IOMMU_MAP_DMA"))?;
        self.mapped.insert(part.iova.start(), *part);
        Ok(())
    }

    /// Unmaps what was mapped whole inside `range`.
    fn unmap(&mut self, range: IovaRange) -> Result<(), HostError> {
        let refused = refused("VFIO_IOMMU_UNMAP_DMA");
        let gone = sys::unmap_dma(&self.container, range).map_err(refused)?;
        let inside: Vec<_> =
            self.mapped.range(range.start()..=range.last()).map(|(at, _)| *at).collect();
        let expected: u64 = inside
            .iter()
            .filter_map(|at| self.mapped.remove(at))
            .map(|part| part.iova.len_minus_one().saturating_add(1))
            .sum();
        if gone == expected {
            return Ok(());
        }
        let source = io::Error::other(format!("{gone:#x} bytes instead of {expected:#x}"));
        Err(HostError::Refused { call: "VFIO_IOMMU_UNMAP_DMA", source })
    }

    /// Replaces all that is mapped; on failure it is back.
    fn replace(&mut self, windows: &Windows, parts: &[Mapped]) -> Result<(), HostError> {
        if parts.len() > self.limit {
            return Err(HostError::OutOfMappings);
        }
        sys::unmap_all(&self.container).map_err(refused("VFIO_IOMMU_UNMAP_DMA"))?;
        let before: Vec<_> = std::mem::take(&mut self.mapped).into_values().collect();
        let Err(error) = self.map(windows, parts) else { return Ok(()) };
        if let Err(error) = self.map(windows, &before) {
            log::error!("a device reaches nothing: its mappings of before are refused: {error}");
        }
        Err(error)
    }
}

/// The interface.
#[derive(Debug)]
struct Type1Kernel {
    containers: BTreeMap<EndpointId, Container>,
    windows: Windows,
    capabilities: Capabilities,
    counters: Counters,
}

impl Type1Kernel {
    /// Does something in each container at `place`; where one fails, `undo` in those before.
    fn in_each(
        &mut self,
        place: Place,
        act: impl Fn(&mut Container, &Windows) -> Result<(), HostError>,
        undo: impl Fn(&mut Container),
    ) -> Result<(), HostError> {
        let mut done = 0;
        let mut at_place = self.containers.values_mut().filter(|c| c.place == place);
        let failed = at_place.find_map(|container| {
            let failed = act(container, &self.windows).err();
            done += usize::from(failed.is_none());
            failed
        });
        let Some(error) = failed else { return Ok(()) };
        self.containers.values_mut().filter(|c| c.place == place).take(done).for_each(undo);
        Err(error)
    }
}

impl Kernel for Type1Kernel {
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn add_memory(&mut self, region: &Region) -> Result<(), HostError> {
        let window = Window::new(region.file(), region.offset(), region.bytes())
            .map_err(refused("mmap of guest memory"))?;
        self.windows.insert(region.gpa(), window);
        let Some(identity) = region.identity() else { return Ok(()) };
        let (iova, access) = (identity.iova(), identity.access());
        let whole = Mapped { region: region.gpa(), at: 0, iova, access };
        let done = self.in_each(
            Place::Identity,
            |container, windows| container.map(windows, &[whole]),
            |container| log_failure(container.unmap(whole.iova)),
        );
        if done.is_err() {
            self.windows.remove(&region.gpa());
        }
        done
    }

    fn remove_memory(&mut self, region: &Region) {
        let Some(identity) = region.identity() else { return };
        for container in self.containers.values_mut().filter(|c| c.place == Place::Identity) {
            log_failure(container.unmap(identity.iova()));
        }
        self.windows.remove(&region.gpa());
    }

    fn create(&mut self, _: DomainId) -> Result<(), HostError> {
        Ok(())
    }

    fn destroy(&mut self, _: DomainId) {}

    fn attach(
        &mut self,
        endpoint: EndpointId,
        place: Place,
        contents: Contents<'_>,
    ) -> Result<(), HostError> {
        let Some(container) = self.containers.get_mut(&endpoint) else {
            return Err(HostError::Unsupported("no such VFIO endpoint"));
        };
        if container.place == place {
            return Ok(());
        }
        let of = |mapping: &Mapping| parts(mapping, &contents.guest.leads(mapping));
        let parts: Vec<_> = contents.mappings.iter().filter_map(of).flatten().collect();
        container.replace(&self.windows, &parts)?;
        container.place = place;
        Ok(())
    }

    fn cut_off(&mut self, endpoint: EndpointId) {
        let Some(container) = self.containers.get_mut(&endpoint) else { return };
        if let Err(error) = sys::unmap_all(&container.container) {
            log::error!("{endpoint} is not cut off: {error}");
        }
        container.mapped.clear();
        container.place = Place::Nowhere;
    }

    fn map(
        &mut self,
        domain: DomainId,
        mapping: &Mapping,
        leads: &Leads<'_>,
    ) -> Result<(), HostError> {
        let parts = parts(mapping, leads).ok_or(NOWHERE)?;
        match leads {
            Leads::Registers(_) => self.counters.registers += 1,
            Leads::Memory(_) | Leads::Elsewhere => {
                self.counters.pins += u64::try_from(parts.len()).unwrap_or(u64::MAX)
            }
        }
        self.in_each(
            Place::Domain(domain),
            |container, windows| container.map(windows, &parts),
            |container| log_failure(container.unmap(mapping.iova())),
        )
    }

    fn remove_registers(&mut self, region: &Region) {
        // mapped, they would hold the device open
        self.windows.remove(&region.gpa());
    }

    fn release(&mut self, endpoint: EndpointId) {
        self.containers.remove(&endpoint);
    }

    fn counters(&self) -> Counters {
        self.counters
    }

    fn unmap(&mut self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        let inside = self.containers.values_mut().filter(|c| c.place == Place::Domain(domain));
        let mut done = Ok(());
        for container in inside {
            done = done.and(container.unmap(range));
        }
        done
    }
}

/// What is undone and cannot be, is only told: there is nothing left to try.
fn log_failure(done: Result<(), HostError>) {
    if let Err(error) = done {
        log::error!("mapped still: {error}");
    }
}

//! VFIO type1: a container for each device, into which everything is mapped that its domain maps.
//!
//! A container is one address space, and a device cannot leave its container. So attaching replaces the
//! container's mappings: a DMA meanwhile may find neither the old nor the new, but never one it must not.
//! A domain with many mappings costs as much to attach, and a container takes a limited number of them:
//! past it is NOMEM. Mapping pins ([`Pin::Dynamic`](crate::vfio::Pin)), and there is nothing else to choose.

mod container;
mod info;
mod open;
mod sys;

use std::collections::BTreeMap;

use viommu_pasid::EndpointId;
use viommu_pgtable::{IovaRange, Mapping};

use crate::vfio::{Contents, Counters, Kernel, Leads, NOWHERE, Place, Region, refused};
use crate::{Capabilities, DomainId, HostError};
use container::{Container, Mapped, Windows, parts};
pub use open::open;
pub use sys::REQUESTS;
use sys::Window;

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
        let mut at_place = self.containers.values_mut().filter(|c| c.place() == place);
        let failed = at_place.find_map(|container| {
            let failed = act(container, &self.windows).err();
            done += usize::from(failed.is_none());
            failed
        });
        let Some(error) = failed else { return Ok(()) };
        self.containers.values_mut().filter(|c| c.place() == place).take(done).for_each(undo);
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
        for container in self.containers.values_mut().filter(|c| c.place() == Place::Identity) {
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
        let from = container.place();
        if from == place {
            return Ok(());
        }
        let of = |mapping: &Mapping| parts(mapping, &contents.guest.leads(mapping));
        let parts: Vec<_> = contents.mappings.iter().filter_map(of).flatten().collect();
        container.replace(&self.windows, (place, &parts)).inspect_err(|_| {
            if container.place() != from {
                log::error!("{endpoint} reaches nothing until it is attached again");
            }
        })
    }

    fn cut_off(&mut self, endpoint: EndpointId) {
        let Some(container) = self.containers.get_mut(&endpoint) else { return };
        if let Err(error) = container.clear() {
            log::error!("{endpoint} is not cut off: {error}");
        }
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
        let inside = self.containers.values_mut().filter(|c| c.place() == Place::Domain(domain));
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

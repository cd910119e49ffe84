//! The books: what the guest has mapped and attached, and what of it is in the host's tables.

mod requests;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use viommu_pasid::EndpointId;
use viommu_pgtable::{Iova, IovaRange, Mapping};

use super::{Contents, Counters, Guest, Kernel, Leads, Leaving, OnStart, Place, Ram, Region};
use crate::{DomainId, HostError, Target};

/// A caller that names a domain which it has not made.
const NO_DOMAIN: HostError = HostError::Unsupported("no such domain");
/// A device that the kernel has taken back.
const GONE: HostError = HostError::Unsupported("a device that was taken away");
/// A domain whose books and tables disagree.
const BROKEN: HostError = HostError::Unsupported("a domain that the kernel did not unmap");

/// One mapping of the guest's.
#[derive(Debug, Clone, Copy)]
struct Held {
    mapping: Mapping,
    /// It is in the host's tables: there is memory behind it.
    present: bool,
}

#[derive(Debug, Default)]
struct Domain {
    mappings: BTreeMap<Iova, Held>,
    /// The kernel refused to unmap: nothing enters it any more.
    broken: bool,
}

#[derive(Debug)]
struct Endpoint {
    target: Target,
    parked: bool,
    on_start: OnStart,
    /// The kernel wanted the device back, and has it.
    gone: bool,
}

/// What there is to say of devices when they are opened.
#[derive(Debug, Default)]
pub(crate) struct Start {
    /// Tells when the kernel wants a device back; without it they are another process's.
    pub(crate) leaving: Option<Leaving>,
    /// What becomes of those that are attached already.
    pub(crate) on_start: OnStart,
    /// Their registers that mappings may lead to.
    pub(crate) registers: Ram,
}

/// The host's IOMMU.
#[derive(Debug)]
pub struct Vfio {
    kernel: Box<dyn Kernel>,
    guest: Guest,
    domains: BTreeMap<DomainId, Domain>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    adopted: bool,
    leaving: Option<Leaving>,
}

impl Vfio {
    /// The books over `kernel`, which has these endpoints, all of them nowhere. If they are another
    /// process's nothing reaches the kernel before [`adopt`](Self::adopt).
    pub(crate) fn over(
        kernel: Box<dyn Kernel>,
        endpoints: impl IntoIterator<Item = EndpointId>,
        Start { leaving, on_start, registers }: Start,
    ) -> Self {
        let new =
            |id| (id, Endpoint { target: Target::Blocked, parked: false, on_start, gone: false });
        let endpoints = endpoints.into_iter().map(new).collect();
        let (guest, domains) = (Guest::new(registers), BTreeMap::new());
        Self { kernel, guest, domains, endpoints, adopted: leaving.is_some(), leaving }
    }

    /// The endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.endpoints.keys().copied()
    }

    /// The VMM has bound the devices and attached them: from now on they go where the guest's IOMMU says.
    /// Only now it is known what they can map: [`HostIommu::capabilities`](crate::HostIommu::capabilities)
    /// may be less than before.
    ///
    /// # Errors
    /// A device cannot be found or attached. The call can be repeated.
    pub fn adopt(&mut self) -> Result<(), HostError> {
        self.kernel.adopt()?;
        self.adopted = true;
        for id in self.endpoints.keys().copied().collect::<Vec<_>>() {
            let Some(endpoint) = self.endpoints.get(&id) else { continue };
            let target = if endpoint.parked { Target::Blocked } else { endpoint.target };
            match endpoint.on_start {
                OnStart::Keep => {}
                OnStart::Block => self.move_to(id, Target::Blocked)?,
                OnStart::Boot => self.move_to(id, target)?,
            }
        }
        Ok(())
    }

    /// Readable when the kernel wants a device back: then [`dispatch`](Self::dispatch) gives it.
    #[must_use]
    pub fn leaving(&self) -> Option<BorrowedFd<'_>> {
        self.leaving.as_ref().map(AsFd::as_fd)
    }

    /// Gives back the devices that the kernel wants, without waiting. Their endpoints stay, and reach nothing.
    pub fn dispatch(&mut self) {
        let wanted = self.leaving.as_ref().map(Leaving::wanted).unwrap_or_default();
        for id in wanted {
            let Some(endpoint) = self.endpoints.get_mut(&id).filter(|e| !e.gone) else { continue };
            endpoint.gone = true;
            self.kernel.cut_off(id);
            self.withdraw_registers(id);
            self.kernel.release(id);
            log::warn!("the device of {id} was taken away: the endpoint reaches nothing any more");
        }
    }

    /// What was asked of the kernel so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.kernel.counters()
    }

    /// Moves an endpoint in the host.
    fn move_to(&mut self, id: EndpointId, target: Target) -> Result<(), HostError> {
        if !self.adopted {
            return Ok(());
        }
        if self.endpoint(id)?.gone {
            // It reaches nothing wherever it goes. Only a domain would promise that it does: a driver leaves
            // its domain, and `bypass` changes, as if the device were there.
            return if matches!(target, Target::Domain(_)) { Err(GONE) } else { Ok(()) };
        }
        let (place, mappings) = match target {
            Target::Blocked => (Place::Nowhere, Vec::new()),
            Target::Identity => {
                let all = self.guest.ram().regions().iter().filter_map(Region::identity);
                (Place::Identity, all.collect())
            }
            Target::Domain(domain) => {
                let held = self.domains.get(&domain).ok_or(NO_DOMAIN)?;
                if held.broken {
                    return Err(BROKEN);
                }
                let present = held.mappings.values().filter(|held| held.present);
                (Place::Domain(domain), present.map(|held| held.mapping).collect())
            }
        };
        let contents = Contents { mappings: &mappings, guest: &self.guest };
        match self.kernel.attach(id, place, contents) {
            Err(error) if place == Place::Nowhere => {
                log::warn!("{id}: {error}: cut off");
                self.kernel.cut_off(id);
                Ok(())
            }
            done => done,
        }
    }

    /// Takes a mapping out of the host's tables; where that fails, everyone out of the domain.
    fn withdraw(&mut self, id: DomainId, range: IovaRange) {
        let Err(error) = self.kernel.unmap(id, range) else { return };
        log::error!("domain {id} is cut off: unmap of {range}: {error}");
        if let Some(domain) = self.domains.get_mut(&id) {
            domain.broken = true;
        }
        let inside =
            |(_, endpoint): &(&EndpointId, &Endpoint)| endpoint.target == Target::Domain(id);
        let cut: Vec<_> = self.endpoints.iter().filter(inside).map(|(id, _)| *id).collect();
        for endpoint in cut {
            self.kernel.cut_off(endpoint);
        }
    }

    /// Unmaps, and keeps in the books, what leads to `regions`.
    fn lose(&mut self, regions: &[Region]) {
        let mut lost = Vec::new();
        for (id, domain) in &mut self.domains {
            for held in domain.mappings.values_mut().filter(|held| held.present) {
                if regions.iter().any(|region| region.meets(&held.mapping)) {
                    held.present = false;
                    lost.push((*id, held.mapping.iova()));
                }
            }
        }
        for (id, range) in lost {
            self.withdraw(id, range);
        }
    }

    /// Takes every mapping out of the host's tables that leads to registers of a device.
    fn withdraw_registers(&mut self, device: EndpointId) {
        let gone = self.guest.lose_registers(device);
        self.lose(&gone);
        for region in &gone {
            self.kernel.remove_registers(region);
        }
    }

    /// Maps what the books hold and there is memory for.
    fn regain(&mut self) {
        let (kernel, guest) = (&mut self.kernel, &self.guest);
        for (id, domain) in &mut self.domains {
            for held in domain.mappings.values_mut().filter(|held| !held.present) {
                let leads = guest.leads(&held.mapping);
                if matches!(leads, Leads::Elsewhere) {
                    continue;
                }
                match kernel.map(*id, &held.mapping, &leads) {
                    Ok(()) => held.present = true,
                    Err(error) => {
                        log::warn!("domain {id}: {} stays out: {error}", held.mapping.iova())
                    }
                }
            }
        }
    }

    /// Replaces regions in the kernel; on failure the old ones are back, as far as they can be.
    fn exchange(&mut self, gone: &[Region], new: &[Region]) -> Result<(), HostError> {
        for region in gone {
            self.kernel.remove_memory(region);
        }
        for (done, region) in new.iter().enumerate() {
            let Err(error) = self.kernel.add_memory(region) else { continue };
            for region in new.iter().take(done) {
                self.kernel.remove_memory(region);
            }
            for region in gone {
                if let Err(error) = self.kernel.add_memory(region) {
                    log::error!("guest memory at {}: out of reach: {error}", region.gpa());
                    // so that it is new when the VMM tells of it the next time
                    self.guest.lose_memory(region);
                }
            }
            return Err(error);
        }
        Ok(())
    }

    fn endpoint(&mut self, id: EndpointId) -> Result<&mut Endpoint, HostError> {
        self.endpoints.get_mut(&id).ok_or(HostError::Unsupported("no such VFIO endpoint"))
    }
}

#[cfg(test)]
mod tests;

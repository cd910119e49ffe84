//! What the two kernel interfaces have in common.

use std::fmt;
use std::io;

use viommu_pasid::EndpointId;
use viommu_pgtable::{IovaRange, Mapping};

use super::guest::{Guest, Leads};
use super::ram::Region;
use crate::{Capabilities, DomainId, HostError};

/// A mapping of something that the kernel cannot be told of.
pub(crate) const NOWHERE: HostError =
    HostError::Unsupported("a mapping of what is neither guest memory nor known registers");

/// A refusal of the kernel's, as the guest sees it.
pub(crate) fn refused(call: &'static str) -> impl FnOnce(io::Error) -> HostError {
    move |source| match source.raw_os_error() {
        Some(libc::ENOMEM | libc::ENOSPC) => HostError::OutOfMappings,
        Some(libc::EOPNOTSUPP) => HostError::Unsupported(call),
        _ => HostError::Refused { call, source },
    }
}

/// An address space of DMA.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nothing is mapped.
    Nowhere,
    /// The guest's memory, at its own addresses.
    Identity,
    /// A domain.
    Domain(DomainId),
}

/// An interface of the kernel that puts mappings into a host IOMMU.
///
/// The caller keeps the books ([`super::Vfio`]): it names no domain or endpoint that there is not. Each
/// fallible call takes effect as a whole or not at all.
pub(crate) trait Kernel: fmt::Debug + Send {
    /// What it can map; [`adopt`](Self::adopt) may narrow it, nothing else changes it.
    fn capabilities(&self) -> Capabilities;

    /// Takes a region into use, for [`Place::Identity`] and as what mappings lead to.
    ///
    /// # Errors
    /// What the kernel says.
    fn add_memory(&mut self, region: &Region) -> Result<(), HostError>;

    /// Takes a region out of use that no domain's mapping leads to.
    fn remove_memory(&mut self, region: &Region);

    /// Makes an empty domain.
    ///
    /// # Errors
    /// What the kernel says.
    fn create(&mut self, domain: DomainId) -> Result<(), HostError>;

    /// Ends a domain that no endpoint is in.
    fn destroy(&mut self, domain: DomainId);

    /// Moves an endpoint; `contents` yields what is mapped there, for an interface that keeps mappings by
    /// endpoint.
    ///
    /// # Errors
    /// What the kernel says; the endpoint is where it was.
    fn attach(
        &mut self,
        endpoint: EndpointId,
        place: Place,
        contents: Contents<'_>,
    ) -> Result<(), HostError>;

    /// Leaves an endpoint with nothing mapped, whatever it takes.
    fn cut_off(&mut self, endpoint: EndpointId);

    /// Maps what leads to `leads`, which may be nothing that we know.
    ///
    /// # Errors
    /// [`NOWHERE`], or what the kernel says.
    fn map(
        &mut self,
        domain: DomainId,
        mapping: &Mapping,
        leads: &Leads<'_>,
    ) -> Result<(), HostError>;

    /// Unmaps one whole mapping.
    ///
    /// # Errors
    /// What the kernel says; some of it may be mapped still.
    fn unmap(&mut self, domain: DomainId, range: IovaRange) -> Result<(), HostError>;

    /// Forgets registers that no domain's mapping leads to.
    fn remove_registers(&mut self, region: &Region);

    /// Gives a device back, which is nowhere: all that is open of it is closed.
    fn release(&mut self, endpoint: EndpointId);

    /// What was asked of the kernel so far.
    fn counters(&self) -> Counters;

    /// Finds devices that another process has bound, if there are such, and what they can map.
    ///
    /// # Errors
    /// A device that is not bound yet, or cannot be found.
    fn adopt(&mut self) -> Result<(), HostError> {
        Ok(())
    }
}

/// Calls that have mapped, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Mappings copied out of where guest memory is pinned: they pin nothing.
    pub copies: u64,
    /// Mappings of memory itself: they pin it.
    pub pins: u64,
    /// Mappings of registers, which are nothing that could be pinned.
    pub registers: u64,
}

/// What an address space holds, and where that leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contents<'a> {
    /// The mappings.
    pub(crate) mappings: &'a [Mapping],
    /// What there is in the guest.
    pub(crate) guest: &'a Guest,
}

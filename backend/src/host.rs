//! The trait that every place of translation implements, and the words it needs.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use viommu_pasid::{EndpointId, FirstTable, Requester};
use viommu_pgtable::{Iova, IovaRange, Mapping, OutOfTables, PhysAddr};

/// A domain, by the guest's number (virtio 1.4, 5.13.6.3); 0 is nothing special.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct DomainId(u32);

impl DomainId {
    /// The domain with this number.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DomainId({})", self.0)
    }
}

/// Where the DMA of a requester goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nowhere: every access faults.
    Blocked,
    /// To the address it names: bypass. Untagged traffic only.
    Identity,
    /// Through a domain: its mappings, or the table that is bound to it.
    Domain(DomainId),
}

/// What the output of a bound table means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// Guest-physical addresses (IDENTITY_S2).
    GuestPhysical,
    /// Inputs of the mappings of this domain (PARENT): another one, or the bound domain itself.
    Through(DomainId),
}

/// The role in which a domain's mappings are about to be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// They alone translate the DMA of this requester.
    Alone(Requester),
    /// They translate the output of tables that are bound with [`Output::Through`] this domain.
    SecondLevel,
}

/// A kind of table that a guest can bind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FirstFormat {
    /// x86-64, as a VT-d first level: [`FirstTable::Vtd`].
    VtdFirst,
    /// Arm, 64-bit stage 1: [`FirstTable::Arm`].
    ArmStage1,
}

/// A kind of table that a guest can bind, and how far it reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TableFormat {
    /// Which.
    pub format: FirstFormat,
    /// Widest input, bits.
    pub input_bits: u8,
    /// Widest output, bits; a root lies below.
    pub output_bits: u8,
    /// Sizes that a leaf can have, one bit each.
    pub page_size_mask: u64,
}

/// A piece of the guest's memory: where the guest has it, and the file that holds it.
#[derive(Debug, Clone, Copy)]
pub struct MemoryRegion<'a> {
    /// Where it starts for the guest.
    pub gpa: PhysAddr,
    /// Its length, bytes.
    pub bytes: u64,
    /// The file; a memfd, as a rule.
    pub file: BorrowedFd<'a>,
    /// Where it starts in the file, bytes.
    pub offset: u64,
}

/// What can be done for one endpoint; fixed once it is there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointCapabilities {
    /// Width of its PASIDs, bits, at most 20; 0 if it has none.
    pub pasid_bits: u8,
    /// Each of its PASIDs may have another second level (VT-d). Otherwise all of its traffic that
    /// goes through a second level goes through the same one, and a domain that is nobody's parent
    /// is a first level (SMMU).
    pub own_second_level: bool,
    /// Tables can be bound with [`Output::Through`].
    pub parent: bool,
    /// Tables can be bound with [`Output::GuestPhysical`].
    pub identity: bool,
    /// Tables that can be bound.
    pub formats: Vec<TableFormat>,
}

/// What a backend can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Sizes that a leaf can have, one bit each; the lowest is the granule.
    pub page_size_mask: u64,
    /// Width of an IOVA, bits.
    pub input_bits: u8,
    /// Highest output address that a mapping may reach, inclusive.
    pub output_last: u64,
}

/// Why a backend refused. The state is as before the call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The memory for tables is used up: the guest sees NOMEM.
    #[error(transparent)]
    OutOfTables(#[from] OutOfTables),
    /// The host has no room for another mapping: the guest sees NOMEM.
    #[error("the host holds no more mappings")]
    OutOfMappings,
    /// This backend cannot do it: the guest sees UNSUPP.
    #[error("not supported: {0}")]
    Unsupported(&'static str),
    /// The host's kernel refused: the guest sees IOERR.
    #[error("{call}: {source}")]
    Refused {
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A place where DMA is translated.
///
/// Calls come from one thread, in the order that the state machine decided. None waits for the
/// VMM or the guest; only [`sync`](Self::sync) waits for device processes, with a bound.
///
/// Each fallible call takes effect as a whole or, on error, leaves everything as before. Calls that
/// only withdraw cannot fail: a host that refuses to withdraw is cut off by the backend itself.
pub trait HostIommu: Send {
    /// What this backend can do; the same at every call, but that it is less once devices of the VMM
    /// were adopted, before the guest runs ([`vfio::Vfio::adopt`](crate::vfio::Vfio::adopt)).
    fn capabilities(&self) -> Capabilities;

    /// What it can do for `endpoint`; the same at every call. An endpoint that it does not know has
    /// the default: nothing beyond mappings.
    fn endpoint_capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities;

    /// The guest's memory is now `regions`, which do not overlap. A host that maps memory itself
    /// takes what is gone out of use at once, and maps it again where it comes back; one that only
    /// translates needs nothing, which is the default.
    ///
    /// # Errors
    /// [`HostError`]; the memory of before stays. No regions at all cannot fail.
    fn set_memory(&mut self, regions: &[MemoryRegion<'_>]) -> Result<(), HostError> {
        let _ = regions;
        Ok(())
    }

    /// Makes an empty domain. The caller makes no domain twice.
    ///
    /// # Errors
    /// [`HostError::OutOfTables`] or what the host says.
    fn create_domain(&mut self, domain: DomainId) -> Result<(), HostError>;

    /// Ends a domain that nothing is attached to and no table goes through; its mappings and its
    /// bound table go with it. Withdraws.
    fn destroy_domain(&mut self, domain: DomainId);

    /// Gets a domain ready for a role: before it is attached, or named as a parent, for the first
    /// time there. `mappings` yields what it holds, in any order; a host that holds it in the form
    /// which that role needs asks for none, and this is O(1). Idempotent; what was made ready stays
    /// so until the domain ends, whether or not it is attached.
    ///
    /// # Errors
    /// [`HostError`]; the domain is used as before.
    fn prepare(
        &mut self,
        domain: DomainId,
        role: Role,
        mappings: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError>;

    /// Binds a table of the guest's to a domain that has none: what is attached to the domain goes
    /// through the table, then where `output` says. The parent is [prepared](Self::prepare) as
    /// [`Role::SecondLevel`]; a domain whose output is not through itself has no mappings and is
    /// given none. Withdraws what went through the domain's mappings alone.
    ///
    /// # Errors
    /// [`HostError`]; the domain is not bound then.
    fn bind(
        &mut self,
        domain: DomainId,
        table: &FirstTable,
        output: Output,
    ) -> Result<(), HostError>;

    /// Takes the bound table away; what is attached to the domain goes through its mappings alone.
    /// Only a domain whose output is through itself is unbound while something is attached.
    /// Withdraws.
    ///
    /// # Errors
    /// [`HostError`]; the table is bound still. A domain that nothing is attached to cannot fail.
    fn unbind(&mut self, domain: DomainId) -> Result<(), HostError>;

    /// Withdraws what is remembered of the table that is bound to `domain`, for inputs in `range`,
    /// or all of it: the guest has changed it.
    fn invalidate(&mut self, domain: DomainId, range: Option<IovaRange>);

    /// Sends the DMA of `requester` to `target`, replacing where it went before: a DMA sees the old
    /// or the new. Only where the host's kernel has no such step may one be refused in between.
    /// Withdraws the old.
    ///
    /// # Errors
    /// [`HostError`]; the old target stays. [`Target::Blocked`] only withdraws, and cannot fail.
    fn attach(&mut self, requester: Requester, target: Target) -> Result<(), HostError>;

    /// Sends the DMA of an endpoint, which the guest has attached to nothing, where `bypass` says. A host
    /// that was told what becomes of its devices until the guest attaches them notes it only; for all others
    /// this is [`attach`](Self::attach).
    ///
    /// # Errors
    /// Those of [`attach`](Self::attach).
    fn send_unattached(&mut self, requester: Requester, target: Target) -> Result<(), HostError> {
        self.attach(requester, target)
    }

    /// [`map`](Self::map) or [`unmap`](Self::unmap) of what is at `iova` comes soon: has the memory
    /// fetched that it will need. Changes nothing, and may do nothing.
    fn look_ahead(&self, domain: DomainId, iova: Iova) {
        let _ = (domain, iova);
    }

    /// Makes `mapping` usable by all that is attached to `domain`, and by what is bound through it.
    /// It overlaps no other mapping, and is aligned to the granule and within [`Capabilities`].
    ///
    /// # Errors
    /// [`HostError`]; nothing of the mapping is usable then.
    fn map(&mut self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError>;

    /// Withdraws a mapping that [`map`](Self::map) made, whole. It is out of use after the next
    /// [`sync`](Self::sync).
    fn unmap(&mut self, domain: DomainId, mapping: &Mapping);

    /// Makes accesses of `requester` wait until [`resume`](Self::resume) or the next
    /// [`attach`](Self::attach); a backend that cannot make them wait blocks them. Idempotent. In
    /// force after the next `sync`.
    fn park(&mut self, requester: Requester);

    /// Ends [`park`](Self::park): what was attached before is attached again. Idempotent.
    fn resume(&mut self, requester: Requester);

    /// Withdraws what is in use now, whatever it is, and unmaps nothing: the memory behind the
    /// guest's addresses changes. Accesses after the next [`sync`](Self::sync) begin anew.
    fn withdraw_all(&mut self);

    /// The guest's device was reset: endpoints that were cut off for misbehaving are admitted
    /// again.
    fn readmit(&mut self);

    /// Returns when no device uses what was withdrawn since the last call; then table pages that
    /// were freed are used again. O(1) if nothing was withdrawn. Waits for device processes, at
    /// most as long as the bound for stuck ones.
    fn sync(&mut self);
}

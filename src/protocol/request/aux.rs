//! What the extension adds to what a guest can ask for (`docs/aux-domains.md`, 4).

use bitflags::bitflags;
use viommu_backend::{DomainId, Output};
use viommu_pasid::{EndpointId, Pasid};
use viommu_pgtable::{ArmStage1, IovaRange, PhysAddr};

use super::{Request, RequestKind, prefix, range};
use crate::protocol::Status;
use crate::protocol::wire::aux::{
    AuxAttachRequest, AuxDetachRequest, AuxSwitchRequest, BindTableRequest, GetAttrRequest,
    InvalidateRequest, UnbindTableRequest,
};

/// The device is to choose a PASID.
const PASID_ANY: u32 = u32::MAX;
/// Bit 0 of `arg0` of a VT-d first level.
const FIVE_LEVELS: u64 = 1 << 0;
/// The widest output of an Arm table. What an endpoint's tables reach is the state machine's to
/// check.
const ARM_OUTPUT_BITS: u8 = 48;

bitflags! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct AuxAttachFlags: u32 {
        const PAGE_REQUEST = 1 << 0;
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct BindFlags: u32 {
        const IDENTITY_S2 = 1 << 0;
        const PARENT = 1 << 1;
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct InvalidateFlags: u16 {
        const LEAF = 1 << 0;
        const PASID_VALID = 1 << 1;
        const ASID_VALID = 1 << 2;
    }
}

/// The PASID that an AUX_ATTACH names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PasidChoice {
    /// The device chooses a free one: `PASID_ANY`.
    Any,
    /// This one.
    This(Pasid),
    /// A number with more than 20 bits, which no PASID has.
    TooWide,
}

/// AUX_ATTACH: DMA of the endpoint that is tagged with the PASID goes through the domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuxAttach {
    /// The domain; made if it does not exist.
    pub domain: DomainId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The PASID. What it was attached to is replaced.
    pub pasid: PasidChoice,
    /// Faults of the first level are to become page requests.
    pub page_request: bool,
}

/// AUX_DETACH: DMA that is tagged with the PASID goes nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuxDetach {
    /// The domain.
    pub domain: DomainId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// The PASID; `None` for a number that no PASID has.
    pub pasid: Option<Pasid>,
}

/// What a GET_ATTR asks for, and of whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attribute {
    /// Whether the endpoint can have PASIDs: 0 or 1.
    AuxCapable(EndpointId),
    /// Whether AUX_ENABLE is in force: 0 or 1.
    AuxEnabled(EndpointId),
    /// The lowest PASID at which the domain is attached to the endpoint.
    AuxId(DomainId, EndpointId),
    /// How many PASIDs the endpoint has.
    AuxMax(EndpointId),
    /// What is bound to the domain: 0 nothing, or a table whose output goes through 1 the domain's
    /// own mappings, 2 another's, 3 none.
    Nested(DomainId),
}

/// A table of the guest's, as BIND_TABLE describes it. Its root is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestTable {
    /// Format 1, `VTD_FIRST`.
    VtdFirst {
        /// The root table.
        root: PhysAddr,
        /// Five levels; otherwise four.
        five_levels: bool,
    },
    /// Format 2, `ARM_LPAE_S1`.
    ArmStage1 {
        /// The first table.
        root: PhysAddr,
        /// In TCR_EL1's layout; [`ArmStage1::from_tcr`] takes it.
        tcr: u64,
        /// Memory types; any value.
        mair: u64,
    },
    /// A format that can be bound to no domain; what its arguments mean is not known.
    Unknown,
}

/// BIND_TABLE: what is attached to the domain goes through a table of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindTable {
    /// The domain; made if it does not exist.
    pub domain: DomainId,
    /// The table.
    pub table: GuestTable,
    /// Where its output goes.
    pub output: Output,
}

/// INVALIDATE: what is remembered of the domain's bound table is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalidate {
    /// The domain.
    pub domain: DomainId,
    /// For these inputs; `None` for all.
    ///
    /// A bound table is the whole of what a domain has: the scopes of one PASID and of one ASID are
    /// all of it.
    pub range: Option<IovaRange>,
}

/// The request of `kind`, one of the extension's, in `bytes`; `None` if they are too short.
pub(super) fn read(kind: RequestKind, bytes: &[u8]) -> Option<Result<Request, Status>> {
    Some(match kind {
        RequestKind::AuxEnable => switch(&prefix(bytes)?).map(Request::AuxEnable),
        RequestKind::AuxDisable => switch(&prefix(bytes)?).map(Request::AuxDisable),
        RequestKind::AuxAttach => attach(&prefix(bytes)?),
        RequestKind::AuxDetach => detach(&prefix(bytes)?),
        RequestKind::GetAttr => get_attr(&prefix(bytes)?),
        RequestKind::BindTable => bind(&prefix(bytes)?),
        RequestKind::UnbindTable => unbind(&prefix(bytes)?),
        RequestKind::Invalidate => invalidate(&prefix(bytes)?),
        RequestKind::Attach
        | RequestKind::Detach
        | RequestKind::Map
        | RequestKind::Unmap
        | RequestKind::Probe => return None,
    })
}

fn switch(wire: &AuxSwitchRequest) -> Result<EndpointId, Status> {
    zero(&wire.reserved)?;
    Ok(EndpointId::new(wire.endpoint.get()))
}

fn attach(wire: &AuxAttachRequest) -> Result<Request, Status> {
    zero(&wire.reserved)?;
    let flags = AuxAttachFlags::from_bits(wire.flags.get()).ok_or(Status::INVAL)?;
    Ok(Request::AuxAttach(AuxAttach {
        domain: DomainId::new(wire.domain.get()),
        endpoint: EndpointId::new(wire.endpoint.get()),
        pasid: match wire.pasid.get() {
            0 => return Err(Status::INVAL),
            PASID_ANY => PasidChoice::Any,
            raw => Pasid::new(raw).map_or(PasidChoice::TooWide, PasidChoice::This),
        },
        page_request: flags.contains(AuxAttachFlags::PAGE_REQUEST),
    }))
}

fn detach(wire: &AuxDetachRequest) -> Result<Request, Status> {
    zero(&wire.reserved)?;
    Ok(Request::AuxDetach(AuxDetach {
        domain: DomainId::new(wire.domain.get()),
        endpoint: EndpointId::new(wire.endpoint.get()),
        pasid: match wire.pasid.get() {
            0 | PASID_ANY => return Err(Status::INVAL),
            raw => Pasid::new(raw),
        },
    }))
}

fn get_attr(wire: &GetAttrRequest) -> Result<Request, Status> {
    zero(&wire.reserved)?;
    let domain = DomainId::new(wire.domain.get());
    let endpoint = EndpointId::new(wire.endpoint.get());
    Ok(Request::GetAttr(match wire.attr.get() {
        1 => Attribute::AuxCapable(endpoint),
        2 => Attribute::AuxEnabled(endpoint),
        3 => Attribute::AuxId(domain, endpoint),
        4 => Attribute::AuxMax(endpoint),
        5 => Attribute::Nested(domain),
        _ => return Err(Status::INVAL),
    }))
}

fn bind(wire: &BindTableRequest) -> Result<Request, Status> {
    zero(&wire.reserved)?;
    zero(&wire.reserved1)?;
    Ok(Request::BindTable(BindTable {
        domain: DomainId::new(wire.domain.get()),
        table: guest_table(wire)?,
        output: output(wire)?,
    }))
}

/// The table of a known format; INVAL for arguments that it does not have.
fn guest_table(wire: &BindTableRequest) -> Result<GuestTable, Status> {
    let root = PhysAddr::new(wire.root.get());
    let (arg0, arg1) = (wire.arg0.get(), wire.arg1.get());
    match wire.format.get() {
        1 if arg0 & !FIVE_LEVELS == 0 && arg1 == 0 => {
            Ok(GuestTable::VtdFirst { root, five_levels: arg0 & FIVE_LEVELS != 0 })
        }
        2 if ArmStage1::from_tcr(arg0, ARM_OUTPUT_BITS).is_ok() => {
            Ok(GuestTable::ArmStage1 { root, tcr: arg0, mair: arg1 })
        }
        1 | 2 => Err(Status::INVAL),
        _ => Ok(GuestTable::Unknown),
    }
}

/// Exactly one flag, and a parent only where it says something.
fn output(wire: &BindTableRequest) -> Result<Output, Status> {
    let flags = BindFlags::from_bits(wire.flags.get()).ok_or(Status::INVAL)?;
    let parent = wire.parent.get();
    if flags == BindFlags::PARENT {
        Ok(Output::Through(DomainId::new(parent)))
    } else if flags == BindFlags::IDENTITY_S2 && parent == 0 {
        Ok(Output::GuestPhysical)
    } else {
        Err(Status::INVAL)
    }
}

fn unbind(wire: &UnbindTableRequest) -> Result<Request, Status> {
    zero(&wire.reserved)?;
    Ok(Request::UnbindTable(DomainId::new(wire.domain.get())))
}

/// PASID and ASID are read by nothing: see [`Invalidate::range`]. Nor is LEAF, a hint.
fn invalidate(wire: &InvalidateRequest) -> Result<Request, Status> {
    zero(&wire.reserved)?;
    InvalidateFlags::from_bits(wire.flags.get()).ok_or(Status::INVAL)?;
    let inputs = range(wire.virt_start.get(), wire.virt_end.get())?;
    let range = match wire.scope.get() {
        0 | 1 | 3 => None,
        2 => Some(inputs),
        _ => return Err(Status::INVAL),
    };
    Ok(Request::Invalidate(Invalidate { domain: DomainId::new(wire.domain.get()), range }))
}

/// INVAL unless all reserved bytes are 0.
fn zero(reserved: &[u8]) -> Result<(), Status> {
    if reserved.iter().all(|byte| *byte == 0) { Ok(()) } else { Err(Status::INVAL) }
}

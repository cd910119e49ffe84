//! What the guest asks for.

mod aux;

pub use aux::{Attribute, AuxAttach, AuxDetach, BindTable, GuestTable, Invalidate, PasidChoice};

use bitflags::bitflags;
use viommu_backend::DomainId;
use viommu_pasid::EndpointId;
use viommu_pgtable::{Access, Iova, IovaRange, PhysAddr};
use zerocopy::FromBytes;

use super::wire::aux::{AuxAttachReply, GetAttrReply};
use super::wire::{AttachRequest, DetachRequest, MapRequest, ProbeRequest, Tail, UnmapRequest};
use super::{Features, Status};

/// The longest readable part that means anything, bytes: PROBE's. What follows is ignored, so a
/// caller may hand over a copy that is cut there.
pub const MAX_READABLE_BYTES: usize = size_of::<ProbeRequest>();

/// The longest reply but PROBE's, bytes: a value and the tail.
pub const MAX_PLAIN_REPLY_BYTES: usize = size_of::<GetAttrReply>() + size_of::<Tail>();

bitflags! {
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct AttachFlags: u32 {
        const BYPASS = 1 << 0;
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct MapFlags: u32 {
        const READ = 1 << 0;
        const WRITE = 1 << 1;
        const MMIO = 1 << 2;
    }
}

/// The type of a request, of those that exist and are negotiated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// Type 1.
    Attach,
    /// Type 2.
    Detach,
    /// Type 3.
    Map,
    /// Type 4.
    Unmap,
    /// Type 5.
    Probe,
    /// Type 0x40.
    AuxEnable,
    /// Type 0x41.
    AuxDisable,
    /// Type 0x42.
    AuxAttach,
    /// Type 0x43.
    AuxDetach,
    /// Type 0x44.
    GetAttr,
    /// Type 0x45.
    BindTable,
    /// Type 0x46.
    UnbindTable,
    /// Type 0x47.
    Invalidate,
}

impl RequestKind {
    /// The kind of type `raw` among `features`: its own feature, and what that needs.
    fn negotiated(raw: u8, features: Features) -> Option<Self> {
        let aux = Features::AUX | Features::MAP_UNMAP;
        let bind = Features::BIND_TABLE | Features::MAP_UNMAP;
        let (kind, needs) = match raw {
            1 => (Self::Attach, Features::empty()),
            2 => (Self::Detach, Features::empty()),
            3 => (Self::Map, Features::MAP_UNMAP),
            4 => (Self::Unmap, Features::MAP_UNMAP),
            5 => (Self::Probe, Features::PROBE),
            0x40 => (Self::AuxEnable, aux),
            0x41 => (Self::AuxDisable, aux),
            0x42 => (Self::AuxAttach, aux),
            0x43 => (Self::AuxDetach, aux),
            0x44 => (Self::GetAttr, aux),
            0x45 => (Self::BindTable, bind),
            0x46 => (Self::UnbindTable, bind),
            0x47 => (Self::Invalidate, bind),
            _ => return None,
        };
        features.contains(needs).then_some(kind)
    }
}

/// ATTACH: the endpoint's DMA goes through the domain from now on (virtio 1.4, 5.13.6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attach {
    /// The domain; made if it does not exist.
    pub domain: DomainId,
    /// The endpoint.
    pub endpoint: EndpointId,
    /// Whether it is a bypass domain.
    pub bypass: bool,
}

/// DETACH: the endpoint leaves the domain (virtio 1.4, 5.13.6.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Detach {
    /// The domain.
    pub domain: DomainId,
    /// The endpoint.
    pub endpoint: EndpointId,
}

/// MAP (virtio 1.4, 5.13.6.5). The range is not reversed; nothing else is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Map {
    /// The domain.
    pub domain: DomainId,
    /// What is mapped.
    pub iova: IovaRange,
    /// Where its first address leads.
    pub oa: PhysAddr,
    /// READ, WRITE, both or nothing.
    pub access: Access,
    /// The output is a device's memory. Translation does not depend on it.
    pub mmio: bool,
}

/// UNMAP (virtio 1.4, 5.13.6.6). The range is not reversed; nothing else is proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unmap {
    /// The domain.
    pub domain: DomainId,
    /// What is unmapped.
    pub iova: IovaRange,
}

/// PROBE (virtio 1.4, 5.13.6.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Of whom the properties are asked.
    pub endpoint: EndpointId,
    /// Whether the driver knows of PASIDs: property AUX.
    pub aux: bool,
    /// Whether it knows of tables: properties TABLE_FORMAT.
    pub formats: bool,
}

/// A request whose reserved fields and flags are as they must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// See [`Attach`].
    Attach(Attach),
    /// See [`Detach`].
    Detach(Detach),
    /// See [`Map`].
    Map(Map),
    /// See [`Unmap`].
    Unmap(Unmap),
    /// See [`Probe`].
    Probe(Probe),
    /// AUX_ENABLE: PASIDs of the endpoint can be attached.
    AuxEnable(EndpointId),
    /// AUX_DISABLE: no more.
    AuxDisable(EndpointId),
    /// See [`AuxAttach`].
    AuxAttach(AuxAttach),
    /// See [`AuxDetach`].
    AuxDetach(AuxDetach),
    /// GET_ATTR.
    GetAttr(Attribute),
    /// See [`BindTable`].
    BindTable(BindTable),
    /// UNBIND_TABLE: the table that is bound to the domain is taken away.
    UnbindTable(DomainId),
    /// See [`Invalidate`].
    Invalidate(Invalidate),
}

/// What [`decode`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decoded {
    /// Too short, without room for the reply, of a type that does not exist or was not negotiated: the
    /// buffer stays untouched, the used length is 0 (O2, P3).
    Unknown,
    /// To be answered.
    Request {
        /// Its type.
        kind: RequestKind,
        /// Length of the reply and used length: the first bytes of the writable part. At least 4,
        /// at most `probe_size` + 4 or [`MAX_PLAIN_REPLY_BYTES`].
        reply_bytes: usize,
        /// The request, or the status that answers it because a field breaks a rule.
        request: Result<Request, Status>,
    },
}

/// Makes a request of its `readable` bytes.
///
/// `writable_bytes` is the length of the writable part, `features` what the driver accepted,
/// `probe_size` what the configuration space says. Sizes other than the request's own: see the
/// [module](super).
#[must_use]
pub fn decode(
    readable: &[u8],
    writable_bytes: usize,
    features: Features,
    probe_size: u32,
) -> Decoded {
    read(readable, writable_bytes, features, probe_size).unwrap_or(Decoded::Unknown)
}

/// [`decode`], with `None` for unknown.
fn read(bytes: &[u8], writable: usize, features: Features, probe_size: u32) -> Option<Decoded> {
    let kind = RequestKind::negotiated(*bytes.first()?, features)?;
    let request = match kind {
        RequestKind::Attach => attach(&prefix(bytes)?, features),
        RequestKind::Detach => Ok(detach(&prefix(bytes)?)),
        RequestKind::Map => map(&prefix(bytes)?, features),
        RequestKind::Unmap => unmap(&prefix(bytes)?),
        RequestKind::Probe => probe(&prefix(bytes)?, features, writable, probe_size),
        extension => aux::read(extension, bytes)?,
    };
    let reply_bytes = match kind {
        // P6 says what becomes of a short one
        RequestKind::Probe => probe_reply_bytes(probe_size).min(writable),
        RequestKind::AuxAttach => size_of::<AuxAttachReply>() + size_of::<Tail>(),
        RequestKind::GetAttr => size_of::<GetAttrReply>() + size_of::<Tail>(),
        _ => size_of::<Tail>(),
    };
    let has_room = (size_of::<Tail>()..=writable).contains(&reply_bytes);
    has_room.then_some(Decoded::Request { kind, reply_bytes, request })
}

/// The structure at the start of `bytes`, `None` if they are too short.
fn prefix<T: FromBytes>(bytes: &[u8]) -> Option<T> {
    T::read_from_prefix(bytes).ok().map(|(value, _)| value)
}

/// Properties and tail.
fn probe_reply_bytes(probe_size: u32) -> usize {
    usize::try_from(probe_size).unwrap_or(usize::MAX).saturating_add(size_of::<Tail>())
}

/// Rules A1 and A2. BYPASS is an unknown flag to a device whose BYPASS_CONFIG was not accepted.
fn attach(wire: &AttachRequest, features: Features) -> Result<Request, Status> {
    let flags = AttachFlags::from_bits(wire.flags.get()).ok_or(Status::INVAL)?;
    let bypass = flags.contains(AttachFlags::BYPASS);
    if wire.reserved != [0; 4] || (bypass && !features.contains(Features::BYPASS_CONFIG)) {
        return Err(Status::INVAL);
    }
    Ok(Request::Attach(Attach {
        domain: DomainId::new(wire.domain.get()),
        endpoint: EndpointId::new(wire.endpoint.get()),
        bypass,
    }))
}

/// Rule D1: reserved bytes do not matter.
fn detach(wire: &DetachRequest) -> Request {
    Request::Detach(Detach {
        domain: DomainId::new(wire.domain.get()),
        endpoint: EndpointId::new(wire.endpoint.get()),
    })
}

/// Rules M3 and M7.
fn map(wire: &MapRequest, features: Features) -> Result<Request, Status> {
    let flags = MapFlags::from_bits(wire.flags.get()).ok_or(Status::INVAL)?;
    let mmio = flags.contains(MapFlags::MMIO);
    if mmio && !features.contains(Features::MMIO) {
        return Err(Status::INVAL);
    }
    let mut access = Access::empty();
    access.set(Access::READ, flags.contains(MapFlags::READ));
    access.set(Access::WRITE, flags.contains(MapFlags::WRITE));
    Ok(Request::Map(Map {
        domain: DomainId::new(wire.domain.get()),
        iova: range(wire.virt_start.get(), wire.virt_end.get())?,
        oa: PhysAddr::new(wire.phys_start.get()),
        access,
        mmio,
    }))
}

/// Rule U1: INVAL, and nothing is removed.
fn unmap(wire: &UnmapRequest) -> Result<Request, Status> {
    if wire.reserved != [0; 4] {
        return Err(Status::INVAL);
    }
    Ok(Request::Unmap(Unmap {
        domain: DomainId::new(wire.domain.get()),
        iova: range(wire.virt_start.get(), wire.virt_end.get())?,
    }))
}

/// Rules P1 and P6.
fn probe(
    wire: &ProbeRequest,
    features: Features,
    writable: usize,
    probe_size: u32,
) -> Result<Request, Status> {
    if writable < probe_reply_bytes(probe_size) {
        return Err(Status::INVAL);
    }
    Ok(Request::Probe(Probe {
        endpoint: EndpointId::new(wire.endpoint.get()),
        aux: features.contains(Features::AUX),
        formats: features.contains(Features::BIND_TABLE),
    }))
}

/// The range of a MAP, UNMAP or INVALIDATE, both ends inclusive on the wire; reversed, it is none: INVAL.
fn range(virt_start: u64, virt_end: u64) -> Result<IovaRange, Status> {
    IovaRange::new(Iova::new(virt_start), Iova::new(virt_end)).ok_or(Status::INVAL)
}

#[cfg(test)]
mod tests;

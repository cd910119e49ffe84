//! The extension's requests, read from the offsets of `docs/aux-domains.md`, section 4.

use viommu::protocol::{
    Attribute, AuxAttach, AuxDetach, BindTable, Decoded, Features, GuestTable, Invalidate,
    PasidChoice, Request, RequestKind, Status,
};
use viommu_backend::{DomainId, Output};
use viommu_pasid::Pasid;
use viommu_pgtable::{Iova, IovaRange, PhysAddr};

use super::{at32, at64, domain, endpoint};

/// What the page says of types 0x40 to 0x47; all others from 6 on are unknown.
pub(super) fn expected(bytes: &[u8], writable: usize, features: Features) -> Decoded {
    // readable bytes, reply, where the reserved bytes at the end begin
    let (kind, len, reply, reserved) = match bytes[0] {
        0x40 => (RequestKind::AuxEnable, 16, 4, 8),
        0x41 => (RequestKind::AuxDisable, 16, 4, 8),
        0x42 => (RequestKind::AuxAttach, 24, 12, 20),
        0x43 => (RequestKind::AuxDetach, 24, 4, 16),
        0x44 => (RequestKind::GetAttr, 24, 12, 14),
        0x45 => (RequestKind::BindTable, 64, 4, 44),
        0x46 => (RequestKind::UnbindTable, 16, 4, 8),
        0x47 => (RequestKind::Invalidate, 48, 4, 36),
        _ => return Decoded::Unknown,
    };
    let own = if bytes[0] <= 0x44 { Features::AUX } else { Features::BIND_TABLE };
    let needs = own | Features::MAP_UNMAP;
    if bytes.len() < len || writable < reply || !features.contains(needs) {
        return Decoded::Unknown;
    }
    let inner = if kind == RequestKind::BindTable { at16(bytes, 10) } else { 0 };
    let is_clean = inner == 0 && bytes[reserved..len].iter().all(|byte| *byte == 0);
    let request = if is_clean { request(bytes) } else { Err(Status::INVAL) };
    Decoded::Request { kind, reply_bytes: reply, request }
}

fn at16(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// A request without a reserved byte that is set.
fn request(bytes: &[u8]) -> Result<Request, Status> {
    Ok(match bytes[0] {
        0x40 => Request::AuxEnable(endpoint(bytes, 4)),
        0x41 => Request::AuxDisable(endpoint(bytes, 4)),
        0x42 => Request::AuxAttach(attach(bytes)?),
        0x43 => Request::AuxDetach(detach(bytes)?),
        0x44 => Request::GetAttr(attribute(bytes)?),
        0x45 => Request::BindTable(bind(bytes)?),
        0x46 => Request::UnbindTable(domain(bytes)),
        _ => Request::Invalidate(invalidate(bytes)?),
    })
}

fn attach(bytes: &[u8]) -> Result<AuxAttach, Status> {
    let (raw, flags) = (at32(bytes, 12), at32(bytes, 16));
    if raw == 0 || flags > 1 {
        return Err(Status::INVAL);
    }
    let pasid = match raw {
        u32::MAX => PasidChoice::Any,
        1..0x10_0000 => PasidChoice::This(Pasid::new(raw).unwrap()),
        _ => PasidChoice::TooWide,
    };
    let (domain, endpoint) = (domain(bytes), endpoint(bytes, 8));
    Ok(AuxAttach { domain, endpoint, pasid, page_request: flags == 1 })
}

fn detach(bytes: &[u8]) -> Result<AuxDetach, Status> {
    let pasid = match at32(bytes, 12) {
        0 | u32::MAX => return Err(Status::INVAL),
        raw => Pasid::new(raw),
    };
    Ok(AuxDetach { domain: domain(bytes), endpoint: endpoint(bytes, 8), pasid })
}

fn attribute(bytes: &[u8]) -> Result<Attribute, Status> {
    let (domain, endpoint) = (domain(bytes), endpoint(bytes, 8));
    match at16(bytes, 12) {
        1 => Ok(Attribute::AuxCapable(endpoint)),
        2 => Ok(Attribute::AuxEnabled(endpoint)),
        3 => Ok(Attribute::AuxId(domain, endpoint)),
        4 => Ok(Attribute::AuxMax(endpoint)),
        5 => Ok(Attribute::Nested(domain)),
        _ => Err(Status::INVAL),
    }
}

fn bind(bytes: &[u8]) -> Result<BindTable, Status> {
    let output = match (at32(bytes, 12), at32(bytes, 40)) {
        (1, 0) => Output::GuestPhysical,
        (2, parent) => Output::Through(DomainId::new(parent)),
        _ => return Err(Status::INVAL),
    };
    let (root, arg0, arg1) = (PhysAddr::new(at64(bytes, 16)), at64(bytes, 24), at64(bytes, 32));
    let table = match at16(bytes, 8) {
        1 if arg0 > 1 || arg1 != 0 => return Err(Status::INVAL),
        1 => GuestTable::VtdFirst { root, five_levels: arg0 == 1 },
        2 if !is_allowed(arg0) => return Err(Status::INVAL),
        2 => GuestTable::ArmStage1 { root, tcr: arg0, mair: arg1 },
        _ => GuestTable::Unknown,
    };
    Ok(BindTable { domain: domain(bytes), table, output })
}

/// Whether a TCR says nothing but how TTBR0's tables are laid out: an input of 25 to 48 bits, a granule
/// that exists, an output of at most 48 bits, and no TTBR1.
fn is_allowed(tcr: u64) -> bool {
    let (t0sz, tg0, ips) = (tcr & 0x3f, tcr >> 14 & 3, tcr >> 32 & 7);
    let rest = tcr & !(0x3f | 0x3f << 8 | 3 << 14 | 7 << 32);
    (16..=39).contains(&t0sz) && tg0 != 3 && ips <= 5 && rest == 1 << 23
}

fn invalidate(bytes: &[u8]) -> Result<Invalidate, Status> {
    let (scope, flags) = (at16(bytes, 4), at16(bytes, 6));
    let (start, last) = (Iova::new(at64(bytes, 16)), Iova::new(at64(bytes, 24)));
    let inputs = IovaRange::new(start, last).ok_or(Status::INVAL)?;
    if scope > 3 || flags > 7 {
        return Err(Status::INVAL);
    }
    let range = (scope == 2).then_some(inputs);
    Ok(Invalidate { domain: DomainId::new(at32(bytes, 8)), range })
}

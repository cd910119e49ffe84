//! Requests: what a guest writes into its queue.

mod extension;

use viommu::protocol::{
    Attach, Decoded, Detach, Features, MAX_READABLE_BYTES, Map, Probe, Request, RequestKind,
    Status, Unmap, decode,
};
use viommu_backend::DomainId;
use viommu_pasid::EndpointId;
use viommu_pgtable::{Access, Iova, IovaRange, PhysAddr};

use crate::{Input, Target, Trace};

pub(crate) const TARGET: Target = Target {
    name: "request_decode",
    claim: "requests decode as a reading of the standard's offsets and the extension's says",
    longest: 256,
    run,
};

/// Bytes of the tail that ends each reply.
const TAIL: usize = 4;

fn run(bytes: &[u8], trace: &mut Trace) {
    let mut input = Input::new(bytes);
    let features = Features::from_bits_truncate(input.u64());
    let writable = usize::from(input.u16());
    let probe_size = if input.u8().is_multiple_of(8) { input.u32() } else { u32::from(input.u8()) };
    let readable = input.rest();

    let decoded = decode(readable, writable, features, probe_size);
    let cut = &readable[..readable.len().min(MAX_READABLE_BYTES)];
    assert_eq!(
        decoded,
        decode(cut, writable, features, probe_size),
        "bytes past the longest count"
    );
    if let Decoded::Request { kind, reply_bytes, request } = &decoded {
        assert!((TAIL..=writable).contains(reply_bytes), "a reply of {reply_bytes} in {writable}");
        trace.reached((*kind, request.map(|_| ()).map_err(Status::raw)));
    }
    assert_eq!(decoded, expected(readable, writable, features, probe_size));
}

/// What the standard says of types 1 to 5 (virtio 1.4, 5.13.6), read from its offsets, and the extension's
/// page of the others.
fn expected(bytes: &[u8], writable: usize, features: Features, probe_size: u32) -> Decoded {
    let (kind, len, needs) = match bytes.first() {
        None => return Decoded::Unknown,
        Some(1) => (RequestKind::Attach, 20, Features::empty()),
        Some(2) => (RequestKind::Detach, 20, Features::empty()),
        Some(3) => (RequestKind::Map, 36, Features::MAP_UNMAP),
        Some(4) => (RequestKind::Unmap, 28, Features::MAP_UNMAP),
        Some(5) => (RequestKind::Probe, 72, Features::PROBE),
        Some(_) => return extension::expected(bytes, writable, features),
    };
    if bytes.len() < len || writable < TAIL || !features.contains(needs) {
        return Decoded::Unknown;
    }
    let (request, own) = match kind {
        RequestKind::Attach => (attach(bytes, features), TAIL),
        RequestKind::Detach => (Ok(Request::Detach(detach(bytes))), TAIL),
        RequestKind::Map => (map(bytes, features), TAIL),
        RequestKind::Unmap => (unmap(bytes), TAIL),
        _ => {
            let own = usize::try_from(probe_size).unwrap() + TAIL;
            let probe = Request::Probe(Probe {
                endpoint: endpoint(bytes, 4),
                aux: features.contains(Features::AUX),
                formats: features.contains(Features::BIND_TABLE),
            });
            (if writable < own { Err(Status::INVAL) } else { Ok(probe) }, own)
        }
    };
    Decoded::Request { kind, reply_bytes: own.min(writable), request }
}

fn at32(bytes: &[u8], at: usize) -> u32 {
    Input::new(&bytes[at..at + 4]).u32()
}

fn at64(bytes: &[u8], at: usize) -> u64 {
    Input::new(&bytes[at..at + 8]).u64()
}

fn domain(bytes: &[u8]) -> DomainId {
    DomainId::new(at32(bytes, 4))
}

fn endpoint(bytes: &[u8], at: usize) -> EndpointId {
    EndpointId::new(at32(bytes, at))
}

fn attach(bytes: &[u8], features: Features) -> Result<Request, Status> {
    let bypass = match at32(bytes, 12) {
        0 => false,
        1 if features.contains(Features::BYPASS_CONFIG) => true,
        _ => return Err(Status::INVAL),
    };
    if at32(bytes, 16) != 0 {
        return Err(Status::INVAL);
    }
    Ok(Request::Attach(Attach { domain: domain(bytes), endpoint: endpoint(bytes, 8), bypass }))
}

fn detach(bytes: &[u8]) -> Detach {
    Detach { domain: domain(bytes), endpoint: endpoint(bytes, 8) }
}

/// `virt_start` to `virt_end`, both inclusive.
fn range(bytes: &[u8]) -> Result<IovaRange, Status> {
    let (start, last) = (Iova::new(at64(bytes, 8)), Iova::new(at64(bytes, 16)));
    IovaRange::new(start, last).ok_or(Status::INVAL)
}

fn map(bytes: &[u8], features: Features) -> Result<Request, Status> {
    let flags = at32(bytes, 32);
    let known = if features.contains(Features::MMIO) { 7 } else { 3 };
    if flags & !known != 0 {
        return Err(Status::INVAL);
    }
    let access = match flags & 3 {
        0 => Access::empty(),
        1 => Access::READ,
        2 => Access::WRITE,
        _ => Access::RW,
    };
    Ok(Request::Map(Map {
        domain: domain(bytes),
        iova: range(bytes)?,
        oa: PhysAddr::new(at64(bytes, 24)),
        access,
        mmio: flags & 4 != 0,
    }))
}

fn unmap(bytes: &[u8]) -> Result<Request, Status> {
    if at32(bytes, 24) != 0 {
        return Err(Status::INVAL);
    }
    Ok(Request::Unmap(Unmap { domain: domain(bytes), iova: range(bytes)? }))
}

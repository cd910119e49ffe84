//! Decoding, one claim a test.

mod extension;

use super::*;

const PROBE_SIZE: u32 = 512;
const ALL: Features = Features::all();

/// The readable bytes of a request: type, three reserved bytes that must not matter, the rest.
fn bytes(kind: u8, fields: &[&[u8]]) -> Vec<u8> {
    let mut bytes = vec![kind, 0x11, 0x22, 0x33];
    fields.iter().for_each(|field| bytes.extend_from_slice(field));
    bytes
}

fn attach_bytes(flags: u32, reserved: u32) -> Vec<u8> {
    bytes(
        1,
        &[
            &5u32.to_le_bytes(),
            &0x10u32.to_le_bytes(),
            &flags.to_le_bytes(),
            &reserved.to_le_bytes(),
        ],
    )
}

fn map_bytes(start: u64, end: u64, flags: u32) -> Vec<u8> {
    let oa = 0x8000_0000u64.to_le_bytes();
    bytes(
        3,
        &[&5u32.to_le_bytes(), &start.to_le_bytes(), &end.to_le_bytes(), &oa, &flags.to_le_bytes()],
    )
}

fn unmap_bytes(start: u64, end: u64, reserved: u32) -> Vec<u8> {
    bytes(
        4,
        &[&5u32.to_le_bytes(), &start.to_le_bytes(), &end.to_le_bytes(), &reserved.to_le_bytes()],
    )
}

fn probe_bytes() -> Vec<u8> {
    bytes(5, &[&0x10u32.to_le_bytes(), &[0x77; 64]])
}

fn known(kind: RequestKind, reply_bytes: usize, request: Result<Request, Status>) -> Decoded {
    Decoded::Request { kind, reply_bytes, request }
}

fn attach_to(bypass: bool) -> Request {
    Request::Attach(Attach { domain: DomainId::new(5), endpoint: EndpointId::new(0x10), bypass })
}

fn mapped(start: u64, end: u64, access: Access, mmio: bool) -> Request {
    Request::Map(Map {
        domain: DomainId::new(5),
        iova: IovaRange::new(Iova::new(start), Iova::new(end)).unwrap(),
        oa: PhysAddr::new(0x8000_0000),
        access,
        mmio,
    })
}

#[test]
fn each_request_is_decoded_whatever_its_head_reserves() {
    let iova = IovaRange::new(Iova::new(0x1000), Iova::new(0x2fff)).unwrap();
    let (domain, endpoint) = (DomainId::new(5), EndpointId::new(0x10));
    let detach = bytes(2, &[&5u32.to_le_bytes(), &0x10u32.to_le_bytes(), &[0xff; 8]]);
    let cases = [
        (attach_bytes(0, 0), 4, known(RequestKind::Attach, 4, Ok(attach_to(false)))),
        (attach_bytes(1, 0), 4, known(RequestKind::Attach, 4, Ok(attach_to(true)))),
        (
            detach,
            4,
            known(RequestKind::Detach, 4, Ok(Request::Detach(Detach { domain, endpoint }))),
        ),
        (
            map_bytes(0x1000, 0x2fff, 3),
            4,
            known(RequestKind::Map, 4, Ok(mapped(0x1000, 0x2fff, Access::RW, false))),
        ),
        (
            unmap_bytes(0x1000, 0x2fff, 0),
            4,
            known(RequestKind::Unmap, 4, Ok(Request::Unmap(Unmap { domain, iova }))),
        ),
        (
            probe_bytes(),
            516,
            known(
                RequestKind::Probe,
                516,
                Ok(Request::Probe(Probe { endpoint, aux: true, formats: true })),
            ),
        ),
    ];
    for (readable, writable, expected) in cases {
        assert_eq!(decode(&readable, writable, ALL, PROBE_SIZE), expected);
    }
}

#[test]
fn a_request_that_is_one_byte_short_is_unknown() {
    let detach = bytes(2, &[&[0; 16]]);
    for whole in
        [attach_bytes(0, 0), detach, map_bytes(0, 1, 0), unmap_bytes(0, 1, 0), probe_bytes()]
    {
        for len in 0..whole.len() {
            let cut = decode(&whole[..len], 516, ALL, PROBE_SIZE);
            assert_eq!(cut, Decoded::Unknown, "{len} of {} bytes", whole.len());
        }
    }
}

#[test]
fn a_request_without_room_for_a_tail_is_unknown() {
    for writable in 0..4 {
        assert_eq!(decode(&attach_bytes(0, 0), writable, ALL, PROBE_SIZE), Decoded::Unknown);
        assert_eq!(decode(&probe_bytes(), writable, ALL, PROBE_SIZE), Decoded::Unknown);
    }
}

#[test]
fn every_type_but_those_of_the_standard_and_the_extension_is_unknown() {
    let known = |kind| (1..=5).contains(&kind) || (0x40..=0x47).contains(&kind);
    for kind in (0..=255).filter(|kind| !known(*kind)) {
        assert_eq!(decode(&bytes(kind, &[&[0; 68]]), 516, ALL, PROBE_SIZE), Decoded::Unknown);
    }
}

#[test]
fn a_request_whose_feature_was_not_negotiated_is_unknown() {
    let without_map = ALL - Features::MAP_UNMAP;
    assert_eq!(decode(&map_bytes(0, 0xfff, 1), 4, without_map, PROBE_SIZE), Decoded::Unknown);
    assert_eq!(decode(&unmap_bytes(0, 0xfff, 0), 4, without_map, PROBE_SIZE), Decoded::Unknown);
    assert_eq!(decode(&probe_bytes(), 516, ALL - Features::PROBE, PROBE_SIZE), Decoded::Unknown);
}

#[test]
fn readable_bytes_after_the_request_do_not_matter() {
    let mut long = attach_bytes(0, 0);
    long.extend_from_slice(&[0xff; 200]);
    let expected = known(RequestKind::Attach, 4, Ok(attach_to(false)));
    assert_eq!(decode(&long, 4, ALL, PROBE_SIZE), expected);
    assert_eq!(decode(&long[..MAX_READABLE_BYTES], 4, ALL, PROBE_SIZE), expected);
}

#[test]
fn writable_bytes_after_the_reply_are_not_counted() {
    let huge = usize::MAX;
    let expected = known(RequestKind::Attach, 4, Ok(attach_to(false)));
    assert_eq!(decode(&attach_bytes(0, 0), huge, ALL, PROBE_SIZE), expected);
    let probe =
        Ok(Request::Probe(Probe { endpoint: EndpointId::new(0x10), aux: true, formats: true }));
    let expected = known(RequestKind::Probe, 516, probe);
    assert_eq!(decode(&probe_bytes(), huge, ALL, PROBE_SIZE), expected);
}

#[test]
fn attach_with_a_reserved_byte_set_is_inval() {
    for bit in 0..32 {
        let expected = known(RequestKind::Attach, 4, Err(Status::INVAL));
        assert_eq!(decode(&attach_bytes(0, 1 << bit), 4, ALL, PROBE_SIZE), expected);
    }
}

#[test]
fn attach_with_an_unknown_flag_is_inval() {
    let expected = known(RequestKind::Attach, 4, Err(Status::INVAL));
    for bit in 1..32 {
        assert_eq!(decode(&attach_bytes(1 << bit, 0), 4, ALL, PROBE_SIZE), expected);
    }
    let without = ALL - Features::BYPASS_CONFIG;
    assert_eq!(decode(&attach_bytes(1, 0), 4, without, PROBE_SIZE), expected);
}

#[test]
fn map_with_an_unknown_flag_is_inval() {
    let expected = known(RequestKind::Map, 4, Err(Status::INVAL));
    for bit in 3..32 {
        assert_eq!(decode(&map_bytes(0, 0xfff, 1 << bit), 4, ALL, PROBE_SIZE), expected);
    }
}

#[test]
fn the_mmio_flag_needs_its_feature() {
    let request = map_bytes(0, 0xfff, 4 | 1);
    let refused = known(RequestKind::Map, 4, Err(Status::INVAL));
    assert_eq!(decode(&request, 4, ALL - Features::MMIO, PROBE_SIZE), refused);
    let taken = known(RequestKind::Map, 4, Ok(mapped(0, 0xfff, Access::READ, true)));
    assert_eq!(decode(&request, 4, ALL, PROBE_SIZE), taken);
}

#[test]
fn a_reversed_range_is_inval() {
    for (start, end) in [(1, 0), (0x2000, 0x1fff), (u64::MAX, 0)] {
        let map = known(RequestKind::Map, 4, Err(Status::INVAL));
        assert_eq!(decode(&map_bytes(start, end, 3), 4, ALL, PROBE_SIZE), map);
        let unmap = known(RequestKind::Unmap, 4, Err(Status::INVAL));
        assert_eq!(decode(&unmap_bytes(start, end, 0), 4, ALL, PROBE_SIZE), unmap);
    }
}

#[test]
fn a_map_of_the_whole_space_is_one_range() {
    let expected = known(RequestKind::Map, 4, Ok(mapped(0, u64::MAX, Access::RW, false)));
    assert_eq!(decode(&map_bytes(0, u64::MAX, 3), 4, ALL, PROBE_SIZE), expected);
}

#[test]
fn unmap_with_a_reserved_byte_set_is_inval() {
    let expected = known(RequestKind::Unmap, 4, Err(Status::INVAL));
    for bit in 0..32 {
        assert_eq!(decode(&unmap_bytes(0, 0xfff, 1 << bit), 4, ALL, PROBE_SIZE), expected);
    }
}

#[test]
fn probe_with_short_properties_is_inval_in_as_many_bytes_as_there_are() {
    for writable in 4..516 {
        let expected = known(RequestKind::Probe, writable, Err(Status::INVAL));
        assert_eq!(decode(&probe_bytes(), writable, ALL, PROBE_SIZE), expected);
    }
}

//! Requests of the extension (`docs/aux-domains.md`, 4): layout, and what is refused at once.

use viommu_backend::Output;
use viommu_pasid::Pasid;

use super::*;

/// What a decoded request of this kind has.
type Want = Result<Request, Status>;

/// Kind, length of the readable part, length of the reply.
const SIZES: [(u8, RequestKind, usize, usize); 8] = [
    (0x40, RequestKind::AuxEnable, 16, 4),
    (0x41, RequestKind::AuxDisable, 16, 4),
    (0x42, RequestKind::AuxAttach, 24, 12),
    (0x43, RequestKind::AuxDetach, 24, 4),
    (0x44, RequestKind::GetAttr, 24, 12),
    (0x45, RequestKind::BindTable, 64, 4),
    (0x46, RequestKind::UnbindTable, 16, 4),
    (0x47, RequestKind::Invalidate, 48, 4),
];

/// A TCR that is allowed: 48 bits in, 4 KiB granule, 48 bits out, nothing above.
const TCR: u64 = 16 | 0x3500 | 1 << 23 | 5 << 32;

/// The bytes of a request: words at offsets, everything else 0, the head's reserved bytes set.
fn request(kind: u8, words: &[(usize, u64, usize)]) -> Vec<u8> {
    let (.., len, _) = *SIZES.iter().find(|(known, ..)| *known == kind).unwrap();
    let mut bytes = vec![0; len];
    bytes[..4].copy_from_slice(&[kind, 0x11, 0x22, 0x33]);
    for (at, value, width) in words {
        bytes[*at..at + width].copy_from_slice(&value.to_le_bytes()[..*width]);
    }
    bytes
}

/// What a request of these bytes, with all room for its reply, is.
fn decoded(bytes: &[u8]) -> Want {
    match decode(bytes, 12, ALL, PROBE_SIZE) {
        Decoded::Request { request, .. } => request,
        Decoded::Unknown => panic!("unknown: {bytes:x?}"),
    }
}

/// One valid request of each kind.
fn valid() -> [Vec<u8>; 8] {
    [
        request(0x40, &[(4, 0x10, 4)]),
        request(0x41, &[(4, 0x10, 4)]),
        request(0x42, &[(4, 5, 4), (8, 0x10, 4), (12, 7, 4), (16, 1, 4)]),
        request(0x43, &[(4, 5, 4), (8, 0x10, 4), (12, 7, 4)]),
        request(0x44, &[(4, 5, 4), (8, 0x10, 4), (12, 3, 2)]),
        request(0x45, &[(4, 5, 4), (8, 1, 2), (12, 2, 4), (16, 0x7000, 8), (24, 1, 8), (40, 9, 4)]),
        request(0x46, &[(4, 5, 4)]),
        request(0x47, &[(4, 2, 2), (6, 7, 2), (8, 5, 4), (16, 0x1000, 8), (24, 0x1fff, 8)]),
    ]
}

#[test]
fn each_request_of_the_extension_has_its_fields_where_the_page_says() {
    let (domain, endpoint) = (DomainId::new(5), EndpointId::new(0x10));
    let pasid = Pasid::new(7).unwrap();
    let table = GuestTable::VtdFirst { root: PhysAddr::new(0x7000), five_levels: true };
    let output = Output::Through(DomainId::new(9));
    let range = IovaRange::new(Iova::new(0x1000), Iova::new(0x1fff));
    let expected = [
        Request::AuxEnable(endpoint),
        Request::AuxDisable(endpoint),
        Request::AuxAttach(AuxAttach {
            domain,
            endpoint,
            pasid: PasidChoice::This(pasid),
            page_request: true,
        }),
        Request::AuxDetach(AuxDetach { domain, endpoint, pasid: Some(pasid) }),
        Request::GetAttr(Attribute::AuxId(domain, endpoint)),
        Request::BindTable(BindTable { domain, table, output }),
        Request::UnbindTable(domain),
        Request::Invalidate(Invalidate { domain, range }),
    ];
    for ((bytes, expected), (_, kind, _, reply)) in valid().iter().zip(expected).zip(SIZES) {
        let all = decode(bytes, usize::MAX, ALL, PROBE_SIZE);
        assert_eq!(all, known(kind, reply, Ok(expected)));
    }
}

#[test]
fn a_request_of_the_extension_that_is_a_byte_short_on_either_side_is_unknown() {
    for (bytes, (.., reply)) in valid().iter().zip(SIZES) {
        for len in 0..bytes.len() {
            assert_eq!(decode(&bytes[..len], 12, ALL, PROBE_SIZE), Decoded::Unknown, "{len}");
        }
        for writable in 0..reply {
            assert_eq!(decode(bytes, writable, ALL, PROBE_SIZE), Decoded::Unknown, "{writable}");
        }
    }
}

#[test]
fn each_request_needs_its_feature_and_what_that_needs() {
    for (bytes, kind) in valid().iter().zip(SIZES) {
        let own = if kind.0 <= 0x44 { Features::AUX } else { Features::BIND_TABLE };
        let enough = own | Features::MAP_UNMAP;
        assert_ne!(decode(bytes, 12, enough, PROBE_SIZE), Decoded::Unknown, "{kind:?}");
        for missing in [own, Features::MAP_UNMAP] {
            let without = decode(bytes, 12, ALL - missing, PROBE_SIZE);
            assert_eq!(without, Decoded::Unknown, "{kind:?} without {missing:?}");
        }
    }
}

#[test]
fn a_reserved_byte_that_is_set_is_inval_in_every_request() {
    let none = 0..0;
    let reserved = [
        (8..16, none.clone()),
        (8..16, none.clone()),
        (20..24, none.clone()),
        (16..24, none.clone()),
        (14..24, none.clone()),
        (10..12, 44..64),
        (8..16, none.clone()),
        (36..48, none),
    ];
    for (bytes, (first, second)) in valid().into_iter().zip(reserved) {
        for at in first.chain(second) {
            let mut set = bytes.clone();
            set[at] = 0x80;
            assert_eq!(decoded(&set), Err(Status::INVAL), "byte {at} of {bytes:x?}");
        }
    }
}

#[test]
fn a_flag_attribute_or_scope_that_does_not_exist_is_inval() {
    for bit in 1..32 {
        let attach = request(0x42, &[(12, 7, 4), (16, 1 << bit, 4)]);
        assert_eq!(decoded(&attach), Err(Status::INVAL), "AUX_ATTACH flag {bit}");
    }
    for attr in [0, 6, 0xffff] {
        assert_eq!(decoded(&request(0x44, &[(12, attr, 2)])), Err(Status::INVAL), "attr {attr}");
    }
    for bit in 3..16 {
        let invalidate = request(0x47, &[(6, 1 << bit, 2)]);
        assert_eq!(decoded(&invalidate), Err(Status::INVAL), "INVALIDATE flag {bit}");
    }
    for scope in [4, 0xffff] {
        assert_eq!(decoded(&request(0x47, &[(4, scope, 2)])), Err(Status::INVAL), "scope {scope}");
    }
}

#[test]
fn a_pasid_is_a_number_of_20_bits_or_a_wish_for_any() {
    let attach = |pasid| match decoded(&request(0x42, &[(12, pasid, 4)])) {
        Ok(Request::AuxAttach(attach)) => Ok(attach.pasid),
        other => Err(other),
    };
    let detach = |pasid| match decoded(&request(0x43, &[(12, pasid, 4)])) {
        Ok(Request::AuxDetach(detach)) => Ok(detach.pasid),
        other => Err(other),
    };
    let refused = Err(Err(Status::INVAL));
    assert_eq!(attach(0).map_err(|other| other.map(|_| ())), refused);
    assert_eq!(attach(1), Ok(PasidChoice::This(Pasid::new(1).unwrap())));
    assert_eq!(attach(0xf_ffff), Ok(PasidChoice::This(Pasid::MAX)));
    assert_eq!(attach(0x10_0000), Ok(PasidChoice::TooWide));
    assert_eq!(attach(0xffff_fffe), Ok(PasidChoice::TooWide));
    assert_eq!(attach(0xffff_ffff), Ok(PasidChoice::Any));
    assert_eq!(detach(0).map_err(|other| other.map(|_| ())), Err(Err(Status::INVAL)));
    assert_eq!(detach(0xf_ffff), Ok(Some(Pasid::MAX)));
    assert_eq!(detach(0x10_0000), Ok(None));
    assert_eq!(detach(0xffff_ffff).map_err(|other| other.map(|_| ())), Err(Err(Status::INVAL)));
}

/// A BIND_TABLE of this format, output and arguments.
fn bind(format: u64, (flags, parent): (u64, u64), arguments: [u64; 2]) -> Want {
    let [arg0, arg1] = arguments;
    let root = 0x7000;
    decoded(&request(
        0x45,
        &[
            (4, 5, 4),
            (8, format, 2),
            (12, flags, 4),
            (16, root, 8),
            (24, arg0, 8),
            (32, arg1, 8),
            (40, parent, 4),
        ],
    ))
}

/// The request that [`bind`] is, if it is one.
fn bound(table: GuestTable, output: Output) -> Want {
    Ok(Request::BindTable(BindTable { domain: DomainId::new(5), table, output }))
}

const IDENTITY: (u64, u64) = (1, 0);

#[test]
fn exactly_one_output_is_named_and_a_parent_only_with_its_flag() {
    let table = GuestTable::VtdFirst { root: PhysAddr::new(0x7000), five_levels: false };
    assert_eq!(bind(1, IDENTITY, [0, 0]), bound(table, Output::GuestPhysical));
    assert_eq!(bind(1, (2, 0), [0, 0]), bound(table, Output::Through(DomainId::new(0))));
    assert_eq!(bind(1, (2, 9), [0, 0]), bound(table, Output::Through(DomainId::new(9))));
    for wrong in [(0, 0), (3, 0), (1, 9), (0, 9), (4, 0), (1 << 31 | 1, 0)] {
        assert_eq!(bind(1, wrong, [0, 0]), Err(Status::INVAL), "{wrong:?}");
    }
}

#[test]
fn arguments_that_a_format_does_not_have_are_inval() {
    let root = PhysAddr::new(0x7000);
    let five = GuestTable::VtdFirst { root, five_levels: true };
    assert_eq!(bind(1, IDENTITY, [1, 0]), bound(five, Output::GuestPhysical));
    for bit in 1..64 {
        assert_eq!(bind(1, IDENTITY, [1 << bit, 0]), Err(Status::INVAL), "arg0 bit {bit}");
    }
    assert_eq!(bind(1, IDENTITY, [0, 1]), Err(Status::INVAL));
    let arm = GuestTable::ArmStage1 { root, tcr: TCR, mair: u64::MAX };
    assert_eq!(bind(2, IDENTITY, [TCR, u64::MAX]), bound(arm, Output::GuestPhysical));
}

#[test]
fn a_tcr_with_anything_but_the_lower_table_is_inval() {
    // EPD1, which has to be set; T0SZ of 0; TG0 3; IPS 6 and 7; then ASID, TBI, HA, HD and others
    let ips = |value: u64| TCR & !(7 << 32) | value << 32;
    let wrong = [TCR & !(1 << 23), TCR & !0x3f, TCR | 3 << 14, ips(6), ips(7)];
    let others = (0..64).filter(|bit| !matches!(bit, 0..=5 | 8..=15 | 23 | 32..=34));
    for tcr in wrong.into_iter().chain(others.map(|bit| TCR ^ 1 << bit)) {
        assert_eq!(bind(2, IDENTITY, [tcr, 0]), Err(Status::INVAL), "{tcr:#x}");
    }
    for bit in 8..14 {
        let tcr = TCR ^ 1 << bit;
        let table = GuestTable::ArmStage1 { root: PhysAddr::new(0x7000), tcr, mair: 0 };
        assert_eq!(bind(2, IDENTITY, [tcr, 0]), bound(table, Output::GuestPhysical), "{bit}");
    }
}

#[test]
fn a_format_that_is_not_known_is_left_to_the_endpoints_with_any_arguments() {
    for format in [0, 3, 4, 0xffff] {
        let request = bind(format, IDENTITY, [u64::MAX; 2]);
        assert_eq!(request, bound(GuestTable::Unknown, Output::GuestPhysical));
    }
}

#[test]
fn only_the_scope_of_a_range_has_one_and_a_reversed_range_is_inval_in_all() {
    let invalidate = |scope, start, end| {
        decoded(&request(0x47, &[(4, scope, 2), (8, 5, 4), (16, start, 8), (24, end, 8)]))
    };
    let domain = DomainId::new(5);
    let all = Ok(Request::Invalidate(Invalidate { domain, range: None }));
    for scope in [0, 1, 3] {
        assert_eq!(invalidate(scope, 0x1000, 0x1fff), all, "scope {scope}");
    }
    let range = IovaRange::new(Iova::new(0), Iova::new(u64::MAX));
    let whole = Ok(Request::Invalidate(Invalidate { domain, range }));
    assert_eq!(invalidate(2, 0, u64::MAX), whole);
    for scope in 0..4 {
        assert_eq!(invalidate(scope, 1, 0), Err(Status::INVAL), "scope {scope}");
    }
}

//! The extension's requests as bytes, written down from `docs/aux-domains.md` a second time.

/// As a PASID: the device chooses.
pub(super) const PASID_ANY: u32 = 0xffff_ffff;

/// Feature bits.
pub(super) const AUX: u64 = 1 << 50;
pub(super) const BIND_TABLE: u64 = 1 << 51;

/// Flags of BIND_TABLE.
pub(super) const IDENTITY_S2: u32 = 1;
pub(super) const PARENT: u32 = 2;

/// Attributes.
pub(super) const AUX_CAPABLE: u16 = 1;
pub(super) const AUX_ENABLED: u16 = 2;
pub(super) const AUX_ID: u16 = 3;
pub(super) const AUX_MAX: u16 = 4;
pub(super) const NESTED: u16 = 5;

/// Flags of a fault report: the PASID is valid; the second level refused.
pub(super) const PASID: u32 = 1 << 9;
pub(super) const SECOND_LEVEL: u32 = 1 << 12;

/// Type, and bytes of the readable and of the writable part, of all that is served.
pub(super) const SIZES: [(u8, usize, u32); 8] = [
    (0x40, 16, 4),
    (0x41, 16, 4),
    (0x42, 24, 12),
    (0x43, 24, 4),
    (0x44, 24, 12),
    (0x45, 64, 4),
    (0x46, 16, 4),
    (0x47, 48, 4),
];

/// The readable part of a request of this type: words at offsets, everything else 0.
pub(super) fn message(kind: u8, words: &[(usize, u32)]) -> Vec<u8> {
    let (_, len, _) = SIZES.into_iter().find(|(known, ..)| *known == kind).unwrap();
    let mut bytes = vec![0; len];
    bytes[0] = kind;
    for (at, value) in words {
        bytes[*at..at + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

pub(super) fn enable(endpoint: u32) -> Vec<u8> {
    message(0x40, &[(4, endpoint)])
}

pub(super) fn disable(endpoint: u32) -> Vec<u8> {
    message(0x41, &[(4, endpoint)])
}

pub(super) fn attach(domain: u32, endpoint: u32, pasid: u32, flags: u32) -> Vec<u8> {
    message(0x42, &[(4, domain), (8, endpoint), (12, pasid), (16, flags)])
}

pub(super) fn detach(domain: u32, endpoint: u32, pasid: u32) -> Vec<u8> {
    message(0x43, &[(4, domain), (8, endpoint), (12, pasid)])
}

pub(super) fn get_attr(domain: u32, endpoint: u32, attr: u16) -> Vec<u8> {
    message(0x44, &[(4, domain), (8, endpoint), (12, attr.into())])
}

/// A table of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) format: u16,
    pub(super) root: u64,
    pub(super) arguments: [u64; 2],
}

/// Bound with these flags; `parent` as it stands.
pub(super) fn bind(domain: u32, table: Table, flags: u32, parent: u32) -> Vec<u8> {
    let Table { format, root, arguments: [arg0, arg1] } = table;
    let mut bytes = message(0x45, &[(4, domain), (8, format.into()), (12, flags), (40, parent)]);
    for (at, value) in [(16, root), (24, arg0), (32, arg1)] {
        bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

pub(super) fn unbind(domain: u32) -> Vec<u8> {
    message(0x46, &[(4, domain)])
}

pub(super) fn invalidate(domain: u32, scope: u16, start: u64, end: u64) -> Vec<u8> {
    let mut bytes = message(0x47, &[(4, scope.into()), (8, domain)]);
    bytes[16..24].copy_from_slice(&start.to_le_bytes());
    bytes[24..32].copy_from_slice(&end.to_le_bytes());
    bytes
}

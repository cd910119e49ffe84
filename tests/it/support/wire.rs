//! Requests as bytes, written down from the specification (virtio 1.4, 5.13.6) a second time.

/// A status byte.
pub(crate) type Status = u8;

pub(crate) const OK: Status = 0;
pub(crate) const UNSUPP: Status = 2;
pub(crate) const INVAL: Status = 4;
pub(crate) const RANGE: Status = 5;
pub(crate) const NOENT: Status = 6;
pub(crate) const NOMEM: Status = 8;

/// Flag of ATTACH.
pub(crate) const BYPASS: u32 = 1;

/// Flags of MAP.
pub(crate) const READ: u32 = 1;
pub(crate) const WRITE: u32 = 2;
pub(crate) const MMIO: u32 = 4;

/// Readable part of ATTACH.
pub(crate) fn attach(domain: u32, endpoint: u32, flags: u32) -> Vec<u8> {
    let words = [domain, endpoint, flags, 0];
    head(1).into_iter().chain(words.into_iter().flat_map(u32::to_le_bytes)).collect()
}

/// Readable part of DETACH.
pub(crate) fn detach(domain: u32, endpoint: u32) -> Vec<u8> {
    let words = [domain, endpoint, 0, 0];
    head(2).into_iter().chain(words.into_iter().flat_map(u32::to_le_bytes)).collect()
}

/// Readable part of MAP; `virt_end` is inclusive.
pub(crate) fn map(
    domain: u32,
    virt_start: u64,
    virt_end: u64,
    phys_start: u64,
    flags: u32,
) -> Vec<u8> {
    let mut bytes = [head(3), domain.to_le_bytes()].concat();
    bytes.extend([virt_start, virt_end, phys_start].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend(flags.to_le_bytes());
    bytes
}

/// Readable part of UNMAP; `virt_end` is inclusive.
pub(crate) fn unmap(domain: u32, virt_start: u64, virt_end: u64) -> Vec<u8> {
    let mut bytes = [head(4), domain.to_le_bytes()].concat();
    bytes.extend([virt_start, virt_end].into_iter().flat_map(u64::to_le_bytes));
    bytes.extend([0; 4]);
    bytes
}

/// Readable part of PROBE.
pub(crate) fn probe(endpoint: u32) -> Vec<u8> {
    let mut bytes = [head(5), endpoint.to_le_bytes()].concat();
    bytes.extend([0; 64]);
    bytes
}

fn head(kind: u8) -> [u8; 4] {
    [kind, 0, 0, 0]
}

/// A fault event, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) reason: u8,
    pub(crate) flags: u32,
    pub(crate) endpoint: u32,
    pub(crate) address: u64,
}

/// Reasons.
pub(crate) const DOMAIN: u8 = 1;
pub(crate) const MAPPING: u8 = 2;
/// Flag: the address is valid.
pub(crate) const ADDRESS: u32 = 1 << 8;

impl Fault {
    /// Bytes of a report.
    pub(crate) const BYTES: usize = 24;

    /// Takes a report apart; its reserved bytes have to be zero.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), Self::BYTES);
        assert_eq!((&bytes[1..4], &bytes[12..16]), (&[0; 3][..], &[0; 4][..]), "reserved bytes");
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        Self {
            reason: bytes[0],
            flags: word(4),
            endpoint: word(8),
            address: u64::from_le_bytes(bytes[16..24].try_into().unwrap()),
        }
    }
}

/// The configuration space, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Config {
    pub(crate) page_size_mask: u64,
    pub(crate) input_start: u64,
    pub(crate) input_end: u64,
    pub(crate) domain_start: u32,
    pub(crate) domain_end: u32,
    pub(crate) probe_size: u32,
    pub(crate) bypass: u8,
}

impl Config {
    /// Its length.
    pub(crate) const BYTES: usize = 40;
    /// Where `bypass` lies.
    pub(crate) const BYPASS_AT: usize = 36;

    /// Takes the 40 bytes apart; the reserved ones have to be zero.
    pub(crate) fn decode(bytes: &[u8]) -> Self {
        assert_eq!(bytes.len(), Self::BYTES);
        assert_eq!(&bytes[37..], &[0; 3], "reserved bytes");
        let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Self {
            page_size_mask: long(0),
            input_start: long(8),
            input_end: long(16),
            domain_start: word(24),
            domain_end: word(28),
            probe_size: word(32),
            bypass: bytes[36],
        }
    }
}

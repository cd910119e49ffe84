//! A descriptor of a work queue: what it asks for, and what came of it.

use super::job::{Kind, LEN_MAX, Order, Outcome};

/// Bytes of a descriptor.
pub(crate) const BYTES: usize = 64;

/// A descriptor as it lies in its ring.
pub(crate) type Raw = [u8; BYTES];

const COPY: u8 = 1;
const FILL: u8 = 2;
const COMPARE: u8 = 3;

const FLAG_INTERRUPT: u8 = 1 << 0;

const STATUS_DONE: u32 = 1;
const STATUS_FAULT: u32 = 2;
const STATUS_DIFFERENT: u32 = 3;
const STATUS_INVALID: u32 = 4;
const STATUS_NO_IOMMU: u32 = 5;

const INFO_WRITE: u32 = 1 << 0;

/// Where the driver's half ends and the device's begins.
const RESULT: usize = 0x20;

/// The numbers of a descriptor's first half.
#[derive(Debug, Clone, Copy)]
struct Fields {
    operation: u8,
    flags: u8,
    bytes: u32,
    source: u64,
    destination: u64,
    pattern: [u8; 8],
}

impl Fields {
    fn of(raw: &Raw) -> Self {
        let byte = |at: usize| raw.get(at).copied().unwrap_or(0);
        let four = |at| [byte(at), byte(at + 1), byte(at + 2), byte(at + 3)];
        let eight = |at| {
            let ([a, b, c, d], [e, f, g, h]) = (four(at), four(at + 4));
            [a, b, c, d, e, f, g, h]
        };
        Self {
            operation: byte(0x00),
            flags: byte(0x01),
            bytes: u32::from_le_bytes(four(0x04)),
            source: u64::from_le_bytes(eight(0x08)),
            destination: u64::from_le_bytes(eight(0x10)),
            pattern: eight(0x18),
        }
    }
}

/// What a descriptor asks for; `None` if it cannot be done.
pub(crate) fn order(raw: &Raw) -> Option<Order> {
    let Fields { operation, flags, bytes, source, destination, pattern } = Fields::of(raw);
    let kind = match operation {
        COPY => Kind::Copy,
        FILL => Kind::Fill(pattern),
        COMPARE => Kind::Compare,
        _ => return None,
    };
    let known = flags & !FLAG_INTERRUPT == 0;
    Order::new(kind, source, destination, bytes.into()).filter(|_| known)
}

/// True if the end of the descriptor is to raise an interrupt; an impossible one may ask for it too.
pub(crate) fn interrupts(raw: &Raw) -> bool {
    Fields::of(raw).flags & FLAG_INTERRUPT != 0
}

/// Writes what came of a descriptor into it: `None` if it could not be done, else the outcome after
/// `done` bytes. The status is the result's first word.
pub(crate) fn finish(raw: &mut Raw, outcome: Option<Outcome>, done: u64) {
    let first = order(raw).map_or(0, |order| order.first_address());
    let (status, info, address) = match outcome {
        None => (STATUS_INVALID, 0, 0),
        Some(Outcome::Done) => (STATUS_DONE, 0, 0),
        Some(Outcome::Different) => (STATUS_DIFFERENT, 0, 0),
        Some(Outcome::ReadFault(address)) => (STATUS_FAULT, 0, address),
        Some(Outcome::WriteFault(address)) => (STATUS_FAULT, INFO_WRITE, address),
        Some(Outcome::NoIommu) => (STATUS_NO_IOMMU, 0, first.wrapping_add(done)),
    };
    let words = [u64::from(status) | u64::from(info) << 32, done, address, 0];
    let result = raw.iter_mut().skip(RESULT);
    for (byte, value) in result.zip(words.into_iter().flat_map(u64::to_le_bytes)) {
        *byte = value;
    }
}

const _: () = assert!(LEN_MAX <= u32::MAX as u64, "a descriptor can say the longest length");

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(operation: u8, flags: u8, bytes: u32) -> Raw {
        let mut raw = [0; BYTES];
        raw[..2].copy_from_slice(&[operation, flags]);
        raw[4..8].copy_from_slice(&bytes.to_le_bytes());
        raw[8..16].copy_from_slice(&0x1000u64.to_le_bytes());
        raw[16..24].copy_from_slice(&0x2000u64.to_le_bytes());
        raw[24..32].copy_from_slice(b"12345678");
        raw
    }

    fn word(raw: &Raw, at: usize) -> u32 {
        u32::from_le_bytes(raw[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn the_three_operations_are_told_apart_and_others_are_none() {
        let kinds = [Kind::Copy, Kind::Fill(*b"12345678"), Kind::Compare];
        for (operation, kind) in (1..).zip(kinds) {
            let expected = Order::new(kind, 0x1000, 0x2000, 64);
            assert!(expected.is_some());
            assert_eq!(order(&raw(operation, 1, 64)), expected);
        }
        for (operation, flags, bytes) in [(0, 0, 1), (4, 0, 1), (1, 2, 1), (1, 0, 0)] {
            assert_eq!(order(&raw(operation, flags, bytes)), None);
        }
        assert!(interrupts(&raw(9, 1, 0)) && !interrupts(&raw(1, 0, 1)));
    }

    #[test]
    fn a_result_says_what_how_far_and_where() {
        let cases = [
            (None, 0, [4, 0, 0, 0]),
            (Some(Outcome::Done), 64, [1, 0, 64, 0]),
            (Some(Outcome::Different), 3, [3, 0, 3, 0]),
            (Some(Outcome::ReadFault(0x1010)), 16, [2, 0, 16, 0x1010]),
            (Some(Outcome::WriteFault(0x2008)), 8, [2, 1, 8, 0x2008]),
            (Some(Outcome::NoIommu), 32, [5, 0, 32, 0x1020]),
        ];
        for (outcome, done, result) in cases {
            let mut descriptor = raw(1, 0, 64);
            descriptor[RESULT..].fill(0xee);
            finish(&mut descriptor, outcome, done);
            let found = [0x20, 0x24, 0x28, 0x30].map(|at| word(&descriptor, at));
            assert_eq!(found, result, "{outcome:?}");
            assert_eq!(descriptor[..RESULT], raw(1, 0, 64)[..RESULT]);
            assert_eq!(descriptor[0x38..], [0; 8]);
        }
    }
}

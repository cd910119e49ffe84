//! What the device answers.

use std::fmt;

use viommu_pasid::Pasid;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U32, U64};

use super::property::Properties;
use super::wire::aux::{AuxAttachReply, GetAttrReply};

/// The status of a reply (virtio 1.4, 5.13.6.2).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Status(u8);

impl Status {
    /// Done.
    pub const OK: Self = Self(0);
    /// The host refused.
    pub const IOERR: Self = Self(1);
    /// Not supported.
    pub const UNSUPP: Self = Self(2);
    /// The device itself is in no state to serve.
    pub const DEVERR: Self = Self(3);
    /// A field has no meaning, or contradicts what is.
    pub const INVAL: Self = Self(4);
    /// A number is out of its range.
    pub const RANGE: Self = Self(5);
    /// No such endpoint or domain.
    pub const NOENT: Self = Self(6);
    /// The device could not access memory it was given.
    pub const FAULT: Self = Self(7);
    /// A limit is reached, or memory used up.
    pub const NOMEM: Self = Self(8);

    /// The byte on the wire.
    #[must_use]
    pub const fn raw(self) -> u8 {
        self.0
    }

    /// True for [`OK`](Self::OK).
    #[must_use]
    pub const fn is_ok(self) -> bool {
        self.0 == 0
    }

    /// The name in the specification, without its prefix.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self.0 {
            0 => "OK",
            1 => "IOERR",
            2 => "UNSUPP",
            3 => "DEVERR",
            4 => "INVAL",
            5 => "RANGE",
            6 => "NOENT",
            7 => "FAULT",
            8 => "NOMEM",
            _ => "unknown",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({self})")
    }
}

/// The answer to a well-formed request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reply<'a> {
    status: Status,
    body: Body<'a>,
}

/// What a reply carries before its tail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Body<'a> {
    Nothing,
    Properties(Properties<'a>),
    Pasid(Pasid),
    Value(u64),
}

impl<'a> Reply<'a> {
    /// The answer to a PROBE that found an endpoint with these properties.
    #[must_use]
    pub const fn properties(properties: Properties<'a>) -> Self {
        Self { status: Status::OK, body: Body::Properties(properties) }
    }

    /// The answer to an AUX_ATTACH that is done: at which PASID.
    #[must_use]
    pub const fn pasid(pasid: Pasid) -> Self {
        Self { status: Status::OK, body: Body::Pasid(pasid) }
    }

    /// The answer to a GET_ATTR.
    #[must_use]
    pub const fn value(value: u64) -> Self {
        Self { status: Status::OK, body: Body::Value(value) }
    }

    /// The status.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// Writes all of `bytes`, which is what [`Decoded::Request`](super::Decoded::Request) calls
    /// `reply_bytes` long: what the reply carries, zeros, and the tail at the end.
    ///
    /// A property for which no room is left is not written, nor is any after it. Who makes
    /// endpoints checks that all fit into `probe_size`.
    pub fn encode(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        let Some((room, tail)) = bytes.split_last_chunk_mut::<4>() else { return };
        match self.body {
            Body::Nothing => {}
            Body::Properties(properties) => properties.encode(room),
            Body::Pasid(pasid) => {
                put(&AuxAttachReply { pasid: U32::new(pasid.raw()), reserved: [0; 4] }, room);
            }
            Body::Value(value) => put(&GetAttrReply { value: U64::new(value) }, room),
        }
        *tail = [self.status.raw(), 0, 0, 0];
    }
}

/// Writes `value` to the start of `room`, which is long enough: a shorter request is unknown.
fn put(value: &(impl IntoBytes + zerocopy::Immutable), room: &mut [u8]) {
    let written = value.write_to_prefix(room);
    debug_assert!(written.is_ok(), "decode leaves room for the reply");
}

impl From<Status> for Reply<'_> {
    fn from(status: Status) -> Self {
        Self { status, body: Body::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use viommu_pgtable::{Iova, IovaRange};

    use super::super::property::{RESV_MEM_BYTES, ResvKind, ResvMem};
    use super::*;

    fn with_regions(regions: &[ResvMem]) -> Reply<'_> {
        Reply::properties(Properties { regions, ..Properties::default() })
    }

    fn region(start: u64) -> ResvMem {
        let range = IovaRange::with_len(Iova::new(start), 0x1000).unwrap();
        ResvMem { kind: ResvKind::Reserved, range }
    }

    #[test]
    fn a_plain_reply_is_its_tail() {
        let mut bytes = [0xaa; 4];
        Reply::from(Status::NOENT).encode(&mut bytes);
        assert_eq!(bytes, [6, 0, 0, 0]);
    }

    #[test]
    fn properties_come_first_then_zeros_then_the_tail() {
        let regions = [region(0x1000), region(0x4000)];
        let mut bytes = [0xaa; 64 + 4];
        with_regions(&regions).encode(&mut bytes);
        let mut expected = [0; 68];
        expected[..24].copy_from_slice(&regions[0].encode());
        expected[24..48].copy_from_slice(&regions[1].encode());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_refused_probe_carries_no_property() {
        let mut bytes = [0xaa; 32 + 4];
        Reply::from(Status::INVAL).encode(&mut bytes);
        let mut expected = [0; 36];
        expected[32] = 4;
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_property_is_written_whole_or_not() {
        let regions = [region(0x1000), region(0x4000)];
        let mut bytes = [0xaa; RESV_MEM_BYTES + 23 + 4];
        with_regions(&regions).encode(&mut bytes);
        let mut expected = [0; RESV_MEM_BYTES + 23 + 4];
        expected[..24].copy_from_slice(&regions[0].encode());
        assert_eq!(bytes, expected);
    }

    #[test]
    fn an_attached_pasid_and_a_value_come_before_the_tail() {
        let mut bytes = [0xaa; 12];
        Reply::pasid(Pasid::new(0x1_2345).unwrap()).encode(&mut bytes);
        assert_eq!(bytes, [0x45, 0x23, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        Reply::value(0x1_0000_0002).encode(&mut bytes);
        assert_eq!(bytes, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        Reply::from(Status::NOMEM).encode(&mut bytes);
        assert_eq!(bytes, [0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0]);
    }
}

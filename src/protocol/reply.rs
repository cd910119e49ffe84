//! What the device answers.

use std::fmt;

use super::property::ResvMem;

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
    regions: &'a [ResvMem],
}

impl<'a> Reply<'a> {
    /// The answer to a PROBE that found an endpoint with these reserved regions.
    #[must_use]
    pub const fn properties(regions: &'a [ResvMem]) -> Self {
        Self { status: Status::OK, regions }
    }

    /// The status.
    #[must_use]
    pub const fn status(&self) -> Status {
        self.status
    }

    /// The reserved regions that the reply carries; none but in the answer to a PROBE.
    #[must_use]
    pub const fn regions(&self) -> &'a [ResvMem] {
        self.regions
    }

    /// Writes all of `bytes`, which is what [`Decoded::Request`](super::Decoded::Request) calls
    /// `reply_bytes` long: properties, zeros, and the tail at the end.
    ///
    /// A region for which no room is left is not written, nor is any after it. Who makes endpoints
    /// checks that all fit into `probe_size`.
    pub fn encode(&self, bytes: &mut [u8]) {
        bytes.fill(0);
        let Some((properties, tail)) = bytes.split_last_chunk_mut::<4>() else { return };
        let mut rest = properties;
        for region in self.regions {
            let Some((property, after)) = rest.split_first_chunk_mut() else { break };
            *property = region.encode();
            rest = after;
        }
        *tail = [self.status.raw(), 0, 0, 0];
    }
}

impl From<Status> for Reply<'_> {
    fn from(status: Status) -> Self {
        Self { status, regions: &[] }
    }
}

#[cfg(test)]
mod tests {
    use viommu_pgtable::{Iova, IovaRange};

    use super::super::property::{RESV_MEM_BYTES, ResvKind};
    use super::*;

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
        Reply::properties(&regions).encode(&mut bytes);
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
        Reply::properties(&regions).encode(&mut bytes);
        let mut expected = [0; RESV_MEM_BYTES + 23 + 4];
        expected[..24].copy_from_slice(&regions[0].encode());
        assert_eq!(bytes, expected);
    }
}

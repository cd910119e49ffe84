//! Requests and their answers, as values and as bytes (virtio 1.4, 5.13.6; `docs/aux-domains.md`).

use std::fmt;
use std::ops::RangeInclusive;

use crate::bytes::u32_at;
use crate::bytes::{Writer, u8_at, u64_at};

/// As a PASID: the device chooses a free one.
pub const PASID_ANY: u32 = 0xffff_ffff;

/// Bytes of the tail, which ends every reply.
const TAIL_BYTES: usize = 4;
/// Bytes of a PROBE's reserved part.
const PROBE_RESERVED: usize = 64;

/// A status (virtio 1.4, 5.13.6.2).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u8);

impl Status {
    /// It is done.
    pub const OK: Self = Self(0);
    /// Input or output failed: the host refused.
    pub const IOERR: Self = Self(1);
    /// Not supported.
    pub const UNSUPP: Self = Self(2);
    /// The device failed.
    pub const DEVERR: Self = Self(3);
    /// A parameter is not valid.
    pub const INVAL: Self = Self(4);
    /// A parameter is out of range.
    pub const RANGE: Self = Self(5);
    /// There is no such endpoint, domain or PASID.
    pub const NOENT: Self = Self(6);
    /// A fault happened.
    pub const FAULT: Self = Self(7);
    /// There is no memory left.
    pub const NOMEM: Self = Self(8);
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match *self {
            Self::OK => "OK",
            Self::IOERR => "IOERR",
            Self::UNSUPP => "UNSUPP",
            Self::DEVERR => "DEVERR",
            Self::INVAL => "INVAL",
            Self::RANGE => "RANGE",
            Self::NOENT => "NOENT",
            Self::FAULT => "FAULT",
            Self::NOMEM => "NOMEM",
            Self(other) => return write!(f, "status {other}"),
        };
        f.write_str(name)
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What GET_ATTR asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Attribute {
    /// 1 if the endpoint can hold PASIDs.
    AuxCapable = 1,
    /// 1 while AUX_ENABLE is in force.
    AuxEnabled = 2,
    /// The lowest PASID at which the domain is attached to the endpoint.
    AuxId = 3,
    /// How many PASIDs the endpoint can hold.
    AuxMax = 4,
    /// What the domain's bound table goes through: 0 nothing is bound, 1 its own mappings, 2 another
    /// domain's, 3 guest-physical.
    Nested = 5,
}

/// The kind of a bound table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// x86-64, four levels, or five.
    VtdFirst {
        /// Five levels.
        five_levels: bool,
    },
    /// Arm 64-bit stage 1.
    ArmStage1 {
        /// TCR_EL1's layout.
        tcr: u64,
        /// MAIR_EL1's layout.
        mair: u64,
    },
}

/// What the output of a bound table means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// IDENTITY_S2: guest-physical addresses.
    GuestPhysical,
    /// PARENT: it goes through the mappings of this domain, the bound one or another.
    Through(u32),
}

/// BIND_TABLE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BindTable {
    /// The domain.
    pub domain: u32,
    /// Kind of table, and its parameters.
    pub format: TableFormat,
    /// Where the table begins.
    pub root: u64,
    /// What its output means.
    pub output: Output,
}

/// How much INVALIDATE is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everything of the domain.
    Domain,
    /// One PASID.
    Pasid(u32),
    /// A range of addresses.
    Range(RangeInclusive<u64>),
}

/// INVALIDATE.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalidate {
    /// The domain.
    pub domain: u32,
    /// How much of it.
    pub scope: Scope,
    /// Only leaves were changed.
    pub leaf: bool,
}

/// A request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// ATTACH.
    Attach {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
        /// Bit 0: a bypass domain.
        flags: u32,
    },
    /// DETACH.
    Detach {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
    },
    /// MAP.
    Map {
        /// The domain.
        domain: u32,
        /// The IOVAs.
        iovas: RangeInclusive<u64>,
        /// What the first of them leads to.
        to: u64,
        /// Bit 0 reading, bit 1 writing, bit 2 MMIO.
        flags: u32,
    },
    /// UNMAP.
    Unmap {
        /// The domain.
        domain: u32,
        /// The IOVAs.
        iovas: RangeInclusive<u64>,
    },
    /// PROBE.
    Probe {
        /// The endpoint.
        endpoint: u32,
        /// Bytes of properties that there is room for.
        room: u32,
    },
    /// AUX_ENABLE.
    AuxEnable {
        /// The endpoint.
        endpoint: u32,
    },
    /// AUX_DISABLE.
    AuxDisable {
        /// The endpoint.
        endpoint: u32,
    },
    /// AUX_ATTACH.
    AuxAttach {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
        /// The PASID, or [`PASID_ANY`].
        pasid: u32,
        /// Bit 0: PAGE_REQUEST.
        flags: u32,
    },
    /// AUX_DETACH.
    AuxDetach {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
        /// The PASID.
        pasid: u32,
    },
    /// GET_ATTR.
    GetAttr {
        /// The domain.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
        /// Which: an [`Attribute`]'s number.
        attribute: u16,
    },
    /// BIND_TABLE.
    BindTable(BindTable),
    /// UNBIND_TABLE.
    UnbindTable {
        /// The domain.
        domain: u32,
    },
    /// INVALIDATE.
    Invalidate(Invalidate),
}

impl Request {
    /// Its name.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Attach { .. } => "ATTACH",
            Self::Detach { .. } => "DETACH",
            Self::Map { .. } => "MAP",
            Self::Unmap { .. } => "UNMAP",
            Self::Probe { .. } => "PROBE",
            Self::AuxEnable { .. } => "AUX_ENABLE",
            Self::AuxDisable { .. } => "AUX_DISABLE",
            Self::AuxAttach { .. } => "AUX_ATTACH",
            Self::AuxDetach { .. } => "AUX_DETACH",
            Self::GetAttr { .. } => "GET_ATTR",
            Self::BindTable(_) => "BIND_TABLE",
            Self::UnbindTable { .. } => "UNBIND_TABLE",
            Self::Invalidate(_) => "INVALIDATE",
        }
    }

    const fn number(&self) -> u8 {
        match self {
            Self::Attach { .. } => 1,
            Self::Detach { .. } => 2,
            Self::Map { .. } => 3,
            Self::Unmap { .. } => 4,
            Self::Probe { .. } => 5,
            Self::AuxEnable { .. } => 0x40,
            Self::AuxDisable { .. } => 0x41,
            Self::AuxAttach { .. } => 0x42,
            Self::AuxDetach { .. } => 0x43,
            Self::GetAttr { .. } => 0x44,
            Self::BindTable(_) => 0x45,
            Self::UnbindTable { .. } => 0x46,
            Self::Invalidate(_) => 0x47,
        }
    }

    /// Its readable part.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let head = Writer::default().u8(self.number()).zeros(3);
        match self {
            Self::Attach { domain, endpoint, flags } => {
                head.u32(*domain).u32(*endpoint).u32(*flags).zeros(4)
            }
            Self::Detach { domain, endpoint } => head.u32(*domain).u32(*endpoint).zeros(8),
            Self::Map { domain, iovas, to, flags } => {
                head.u32(*domain).u64(*iovas.start()).u64(*iovas.end()).u64(*to).u32(*flags)
            }
            Self::Unmap { domain, iovas } => {
                head.u32(*domain).u64(*iovas.start()).u64(*iovas.end()).zeros(4)
            }
            Self::Probe { endpoint, .. } => head.u32(*endpoint).zeros(PROBE_RESERVED),
            Self::AuxEnable { endpoint } | Self::AuxDisable { endpoint } => {
                head.u32(*endpoint).zeros(8)
            }
            Self::AuxAttach { domain, endpoint, pasid, flags } => {
                head.u32(*domain).u32(*endpoint).u32(*pasid).u32(*flags).zeros(4)
            }
            Self::AuxDetach { domain, endpoint, pasid } => {
                head.u32(*domain).u32(*endpoint).u32(*pasid).zeros(8)
            }
            Self::GetAttr { domain, endpoint, attribute } => {
                head.u32(*domain).u32(*endpoint).u16(*attribute).zeros(10)
            }
            Self::BindTable(bind) => bind.encode(head),
            Self::UnbindTable { domain } => head.u32(*domain).zeros(8),
            Self::Invalidate(invalidate) => invalidate.encode(head),
        }
        .done()
    }

    /// Bytes of its writable part: what it yields, then the tail.
    #[must_use]
    pub fn answer_bytes(&self) -> usize {
        let value = match self {
            Self::Probe { room, .. } => usize::try_from(*room).unwrap_or(usize::MAX),
            Self::AuxAttach { .. } | Self::GetAttr { .. } => 8,
            _ => 0,
        };
        value.saturating_add(TAIL_BYTES)
    }
}

impl BindTable {
    fn encode(&self, head: Writer) -> Writer {
        let (format, arguments) = match self.format {
            TableFormat::VtdFirst { five_levels } => (1, [u64::from(five_levels), 0]),
            TableFormat::ArmStage1 { tcr, mair } => (2, [tcr, mair]),
        };
        let (flags, parent) = match self.output {
            Output::GuestPhysical => (1 << 0, 0),
            Output::Through(parent) => (1 << 1, parent),
        };
        let [arg0, arg1] = arguments;
        let writer = head.u32(self.domain).u16(format).zeros(2).u32(flags).u64(self.root);
        writer.u64(arg0).u64(arg1).u32(parent).zeros(20)
    }
}

impl Invalidate {
    fn encode(&self, head: Writer) -> Writer {
        let (scope, valid, pasid, first, last) = match &self.scope {
            Scope::Domain => (0, 0, 0, 0, 0),
            Scope::Pasid(pasid) => (1, 1 << 1, *pasid, 0, 0),
            Scope::Range(range) => (2, 0, 0, *range.start(), *range.end()),
        };
        let flags = valid | u16::from(self.leaf);
        let writer = head.u16(scope).u16(flags).u32(self.domain).u32(pasid);
        // no ASID
        writer.u64(first).u64(last).u32(0).zeros(12)
    }
}

/// What the device answered: the whole writable part.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer(Vec<u8>);

impl Answer {
    /// An answer of these bytes; `None` if they are too few for a tail, or its reserved bytes are not
    /// zero.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Option<Self> {
        let tail = bytes.len().checked_sub(TAIL_BYTES)?;
        let reserved_is_zero = u32_at(&bytes, tail) >> 8 == 0;
        reserved_is_zero.then_some(Self(bytes))
    }

    /// The status.
    #[must_use]
    pub fn status(&self) -> Status {
        Status(u8_at(&self.0, self.0.len() - TAIL_BYTES))
    }

    /// What comes before the tail.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        self.0.split_last_chunk::<TAIL_BYTES>().map_or(&[], |(body, _)| body)
    }

    /// The number that an AUX_ATTACH or GET_ATTR yields.
    #[must_use]
    pub fn value(&self) -> u64 {
        u64_at(self.body(), 0)
    }
}

#[cfg(test)]
mod tests;

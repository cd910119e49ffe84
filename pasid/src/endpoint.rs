//! Who does a DMA: an endpoint, perhaps with a PASID.

use core::fmt;
use core::num::NonZeroU32;

/// A PCI function: `segment << 16 | bus << 8 | device << 3 | function`.
///
/// The same number is virtio-iommu's endpoint id, by our convention and Linux's (VIOT). Every value
/// names some function; none proves that it exists.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct EndpointId(u32);

impl EndpointId {
    /// The endpoint with this id.
    #[must_use]
    pub const fn new(raw: u32) -> Self {
        Self(raw)
    }

    /// The id.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// PCI segment.
    #[must_use]
    pub const fn segment(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// Requester id: bus, device and function.
    #[must_use]
    pub const fn bdf(self) -> u16 {
        (self.0 & 0xffff) as u16
    }

    /// Bus number.
    #[must_use]
    pub const fn bus(self) -> u8 {
        (self.bdf() >> 8) as u8
    }

    /// Device (5 bits) and function (3 bits).
    #[must_use]
    pub const fn devfn(self) -> u8 {
        (self.bdf() & 0xff) as u8
    }
}

impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (bus, devfn) = (self.bus(), self.devfn());
        write!(f, "{:04x}:{bus:02x}:{:02x}.{}", self.segment(), devfn >> 3, devfn & 7)
    }
}

impl fmt::Debug for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EndpointId({self})")
    }
}

/// A process address space id: 20 bits, not 0 (0 is the endpoint's untagged traffic).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Pasid(NonZeroU32);

impl Pasid {
    /// The largest PASID (PCIe 6.0, 6.20: 20 bits).
    pub const MAX: Self = Self(NonZeroU32::new((1 << 20) - 1).unwrap());

    /// The PASID `raw`; `None` for 0 and for more than 20 bits.
    #[must_use]
    pub const fn new(raw: u32) -> Option<Self> {
        match NonZeroU32::new(raw) {
            Some(number) if raw <= Self::MAX.raw() => Some(Self(number)),
            _ => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0.get()
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pasid({})", self.0)
    }
}

/// One source of DMA: an endpoint's untagged traffic (`pasid` is `None`), or one of its PASIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Requester {
    /// The function.
    pub endpoint: EndpointId,
    /// The tag, if the DMA carries one.
    pub pasid: Option<Pasid>,
}

// tables of a million of them are kept
const _: () = assert!(size_of::<Requester>() == 8);

impl Requester {
    /// The untagged traffic of `endpoint`.
    #[must_use]
    pub const fn rid(endpoint: EndpointId) -> Self {
        Self { endpoint, pasid: None }
    }
}

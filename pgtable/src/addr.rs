//! Addresses and ranges. An IOVA never turns into an output address by accident.

use core::fmt;

use crate::Access;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The address `raw`; every value is one.
            #[must_use]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The number.
            #[must_use]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// `self + bytes`, or `None` past the last address.
            #[must_use]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// True if the low `lg2` bits are zero (`lg2` below 64).
            #[must_use]
            pub const fn is_aligned(self, lg2: u8) -> bool {
                self.0 & ((1 << lg2) - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:#x})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }

        impl fmt::LowerHex for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::LowerHex::fmt(&self.0, f)
            }
        }
    };
}

address!(
    /// The address that an endpoint puts on the bus.
    Iova
);
address!(
    /// An output address: guest-physical, or inside the table region. Which of the two is decided
    /// by who wrote the entry, never by the number.
    PhysAddr
);

/// A non-empty range of addresses, `start..=last`; the whole 64-bit space is one.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct AddrRange<A> {
    start: A,
    last: A,
}

/// A range of IOVAs.
pub type IovaRange = AddrRange<Iova>;

macro_rules! range {
    ($name:ident) => {
        impl AddrRange<$name> {
            /// The range `start..=last`; `None` if `last < start`.
            #[must_use]
            pub const fn new(start: $name, last: $name) -> Option<Self> {
                if last.raw() < start.raw() { None } else { Some(Self { start, last }) }
            }

            /// `bytes` bytes from `start`; `None` if that is nothing or runs past the last address.
            #[must_use]
            pub const fn with_len(start: $name, bytes: u64) -> Option<Self> {
                if bytes == 0 {
                    return None;
                }
                match start.checked_add(bytes - 1) {
                    Some(last) => Some(Self { start, last }),
                    None => None,
                }
            }

            /// First address.
            #[must_use]
            pub const fn start(&self) -> $name {
                self.start
            }

            /// Last address, inclusive.
            #[must_use]
            pub const fn last(&self) -> $name {
                self.last
            }

            /// Length in bytes minus one: the length itself does not fit for the whole space.
            #[must_use]
            pub const fn len_minus_one(&self) -> u64 {
                self.last.raw() - self.start.raw()
            }

            /// True if `address` is inside.
            #[must_use]
            pub const fn contains(&self, address: $name) -> bool {
                self.start.raw() <= address.raw() && address.raw() <= self.last.raw()
            }

            /// True if all of `other` is inside.
            #[must_use]
            pub const fn covers(&self, other: &Self) -> bool {
                self.start.raw() <= other.start.raw() && other.last.raw() <= self.last.raw()
            }

            /// True if the two share an address.
            #[must_use]
            pub const fn overlaps(&self, other: &Self) -> bool {
                self.start.raw() <= other.last.raw() && other.start.raw() <= self.last.raw()
            }

            /// True if `start` and `last + 1` are multiples of `1 << lg2` bytes (2^64 is one).
            #[must_use]
            pub const fn is_aligned(&self, lg2: u8) -> bool {
                self.start.is_aligned(lg2) && $name(self.last.raw().wrapping_add(1)).is_aligned(lg2)
            }
        }
    };
}
range!(Iova);
range!(PhysAddr);

impl<A: fmt::Display> fmt::Display for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..={}", self.start, self.last)
    }
}

impl<A: fmt::Display> fmt::Debug for AddrRange<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One mapping: `iova` leads to the addresses from `oa` on, for accesses within `access`.
///
/// Holding one proves that the output range does not run past the last address. It does not prove
/// alignment, nor that memory is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    iova: IovaRange,
    oa: PhysAddr,
    access: Access,
}

/// A mapping whose output would run past the last address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappingError {
    /// The range asked for.
    pub iova: IovaRange,
    /// Its output address.
    pub oa: PhysAddr,
}

impl fmt::Display for MappingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "output of {} from {} runs past the last address", self.iova, self.oa)
    }
}

impl core::error::Error for MappingError {}

impl Mapping {
    /// The mapping of `iova` to `oa`.
    ///
    /// # Errors
    /// If `oa` plus the length of `iova` is more than 2^64.
    pub const fn new(iova: IovaRange, oa: PhysAddr, access: Access) -> Result<Self, MappingError> {
        match oa.checked_add(iova.len_minus_one()) {
            Some(_) => Ok(Self { iova, oa, access }),
            None => Err(MappingError { iova, oa }),
        }
    }

    /// The input range.
    #[must_use]
    pub const fn iova(&self) -> IovaRange {
        self.iova
    }

    /// Where the first address of the range leads.
    #[must_use]
    pub const fn oa(&self) -> PhysAddr {
        self.oa
    }

    /// Where the last address of the range leads.
    #[must_use]
    pub const fn oa_last(&self) -> PhysAddr {
        PhysAddr(self.oa.0 + self.iova.len_minus_one())
    }

    /// What the mapping allows.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_space_is_a_range_and_aligned_to_everything() {
        let all = IovaRange::new(Iova::new(0), Iova::new(u64::MAX)).unwrap();
        assert_eq!(all.len_minus_one(), u64::MAX);
        assert!(all.is_aligned(12) && all.is_aligned(63));
    }

    #[test]
    fn an_empty_or_reversed_range_cannot_be_made() {
        assert_eq!(IovaRange::new(Iova::new(1), Iova::new(0)), None);
        assert_eq!(IovaRange::with_len(Iova::new(1), 0), None);
        assert_eq!(IovaRange::with_len(Iova::new(2), u64::MAX), None);
        assert!(IovaRange::with_len(Iova::new(1), u64::MAX).is_some());
    }

    #[test]
    fn a_mapping_never_leads_past_the_last_address() {
        let iova = IovaRange::with_len(Iova::new(0), 0x2000).unwrap();
        let oa = PhysAddr::new(u64::MAX - 0xfff);
        assert_eq!(Mapping::new(iova, oa, Access::RW), Err(MappingError { iova, oa }));
        let top = Mapping::new(iova, PhysAddr::new(u64::MAX - 0x1fff), Access::RW).unwrap();
        assert_eq!(top.oa_last(), PhysAddr::new(u64::MAX));
    }
}

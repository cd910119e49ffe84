//! What is fixed before a guest comes.

use std::ops::RangeInclusive;

use viommu_pasid::EndpointId;
use viommu_pgtable::{Iova, IovaRange};

use crate::protocol::{RESV_MEM_BYTES, ResvKind, ResvMem};

/// Where x86 takes message-signalled interrupts; never translated (Intel SDM volume 3, 12.11).
pub const X86_MSI_WINDOW: ResvMem = ResvMem {
    kind: ResvKind::Msi,
    range: match IovaRange::new(Iova::new(0xfee0_0000), Iova::new(0xfeef_ffff)) {
        Some(range) => range,
        None => panic!("the window is not empty"),
    },
};

/// The device's properties and limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Page sizes that the guest is told; the lowest bit is the granule of every MAP.
    pub page_size_mask: u64,
    /// IOVAs that can be mapped.
    pub input: IovaRange,
    /// Numbers that a domain can have.
    pub domains: RangeInclusive<u32>,
    /// Bytes of properties in the answer to a PROBE.
    pub probe_size: u32,
    /// Domains that can exist at once: an ATTACH that would make another is NOMEM.
    pub max_domains: usize,
    /// Mappings that a domain can hold: a MAP past it is NOMEM.
    pub max_mappings: usize,
    /// `bypass` when a front-end comes.
    pub boot_bypass: bool,
}

impl Settings {
    /// 4 KiB, 2 MiB and 1 GiB.
    pub const DEFAULT_PAGE_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;
    /// What four levels of VT-d tables translate.
    pub const DEFAULT_INPUT_BITS: u8 = 48;
    /// Room for 21 reserved regions; QEMU's own device has as much.
    pub const DEFAULT_PROBE_SIZE: u32 = 512;
    /// More than there are functions on a PCI segment serves nobody.
    pub const DEFAULT_MAX_DOMAINS: usize = 1 << 16;
    /// 4 GiB in pages of 4 KiB; some 60 MiB of the daemon's memory.
    pub const DEFAULT_MAX_MAPPINGS: usize = 1 << 20;

    /// Cuts the input range to IOVAs of `bits` bits. One that has none of them stays as it is, and no such
    /// host can serve it.
    pub fn narrow(&mut self, bits: u8) {
        let Some(end) = 1_u64.checked_shl(bits.into()) else { return };
        let last = Iova::new(end - 1);
        if last < self.input.last()
            && let Some(cut) = IovaRange::new(self.input.start(), last)
        {
            log::info!("the host's IOMMU translates {bits} bits: the guest's range is {cut}");
            self.input = cut;
        }
    }

    /// The base-2 logarithm of the granule.
    #[must_use]
    pub(super) fn granule_lg2(&self) -> u8 {
        u8::try_from(self.page_size_mask.trailing_zeros()).unwrap_or(u8::MAX)
    }

    /// Checks what the other fields cannot say by their types.
    pub(super) fn check(&self) -> Result<(), SettingsError> {
        if self.page_size_mask == 0 {
            return Err(SettingsError::NoPageSize);
        }
        if !self.input.is_aligned(self.granule_lg2()) {
            let granule = 1 << self.granule_lg2();
            return Err(SettingsError::InputUnaligned { input: self.input, granule });
        }
        if self.domains.is_empty() {
            return Err(SettingsError::NoDomain(self.domains.clone()));
        }
        Ok(())
    }
}

/// What [`Settings::DEFAULT_INPUT_BITS`] reach.
const DEFAULT_INPUT: IovaRange =
    match IovaRange::with_len(Iova::new(0), 1 << Settings::DEFAULT_INPUT_BITS) {
        Some(range) => range,
        None => panic!("the range is not empty"),
    };

impl Default for Settings {
    fn default() -> Self {
        Self {
            page_size_mask: Self::DEFAULT_PAGE_SIZES,
            input: DEFAULT_INPUT,
            domains: 0..=u32::MAX,
            probe_size: Self::DEFAULT_PROBE_SIZE,
            max_domains: Self::DEFAULT_MAX_DOMAINS,
            max_mappings: Self::DEFAULT_MAX_MAPPINGS,
            boot_bypass: true,
        }
    }
}

/// An endpoint that the device serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSpec {
    /// Its id.
    pub id: EndpointId,
    /// What a PROBE says is reserved.
    pub reserved: Vec<ResvMem>,
}

impl EndpointSpec {
    /// An endpoint of an x86 machine: its one reserved region is the MSI window.
    #[must_use]
    pub fn x86(id: EndpointId) -> Self {
        Self { id, reserved: vec![X86_MSI_WINDOW] }
    }

    /// An endpoint of a machine whose interrupt controller takes messages at `window`: its one
    /// reserved region.
    #[must_use]
    pub fn with_msi_window(id: EndpointId, window: IovaRange) -> Self {
        Self { id, reserved: vec![ResvMem { kind: ResvKind::Msi, range: window }] }
    }

    /// Checks rule R1 and that a PROBE of `probe_size` can say it all.
    pub(super) fn check(&self, probe_size: u32) -> Result<(), SettingsError> {
        let endpoint = self.id;
        let room = usize::try_from(probe_size).unwrap_or(usize::MAX) / RESV_MEM_BYTES;
        if self.reserved.len() > room {
            return Err(SettingsError::ReservedTooMany { endpoint, room });
        }
        if self.reserved.iter().filter(|region| region.kind == ResvKind::Msi).count() > 1 {
            return Err(SettingsError::TwoMsiRegions(endpoint));
        }
        let mut ranges: Vec<_> = self.reserved.iter().map(|region| region.range).collect();
        ranges.sort_by_key(IovaRange::start);
        for (first, second) in ranges.iter().zip(ranges.iter().skip(1)) {
            if first.overlaps(second) {
                let (first, second) = (*first, *second);
                return Err(SettingsError::ReservedOverlap { endpoint, first, second });
            }
        }
        Ok(())
    }
}

/// Settings or endpoints that make no device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Rule C1.
    #[error("the page sizes are none; there has to be one at least")]
    NoPageSize,
    /// The guest could not use its ends.
    #[error("the input range {input} does not start and end on the granule of {granule:#x}")]
    InputUnaligned {
        /// The range.
        input: IovaRange,
        /// The smallest page size, bytes.
        granule: u64,
    },
    /// No domain could ever be made.
    #[error("the domain range {0:?} is empty")]
    NoDomain(RangeInclusive<u32>),
    /// An endpoint is named twice.
    #[error("endpoint {0} is named twice")]
    EndpointTwice(EndpointId),
    /// Rule R1.
    #[error("endpoint {0} has more than one MSI region")]
    TwoMsiRegions(EndpointId),
    /// Rule R1.
    #[error("endpoint {endpoint}: the reserved regions {first} and {second} overlap")]
    ReservedOverlap {
        /// Whose.
        endpoint: EndpointId,
        /// The lower region.
        first: IovaRange,
        /// The upper one.
        second: IovaRange,
    },
    /// More regions than a PROBE can tell.
    #[error("endpoint {endpoint} has more than the {room} reserved regions that a probe can tell")]
    ReservedTooMany {
        /// Whose.
        endpoint: EndpointId,
        /// How many can be told.
        room: usize,
    },
}

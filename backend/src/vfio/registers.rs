//! Registers of devices among the guest's physical addresses: what a mapping of MMIO leads to.

use std::fmt;
use std::os::fd::BorrowedFd;

use viommu_pasid::EndpointId;
use viommu_pgtable::{AddrRange, PhysAddr};

use super::VfioError;
use super::sys::{RegionInfo, region_info};

/// Guest-physical addresses where the guest finds a part of a BAR, so that mappings for other devices can
/// lead there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BarWindow {
    /// The addresses; whole pages.
    pub gpa: AddrRange<PhysAddr>,
    /// Whose BAR.
    pub endpoint: EndpointId,
    /// Its number, 0 to 5.
    pub bar: u8,
    /// Where in the BAR the part starts, bytes; a multiple of a page.
    pub offset: u64,
}

impl BarWindow {
    /// Length, bytes; a window over all 2^64 addresses, which no BAR fills, says one less.
    pub(crate) fn bytes(&self) -> u64 {
        self.gpa.len_minus_one().saturating_add(1)
    }

    /// Where the part starts in the file of `device`, which it has to be inside of.
    ///
    /// # Errors
    /// There is no such BAR, it is shorter, or is none that can be mapped.
    pub(crate) fn locate(&self, device: BorrowedFd<'_>) -> Result<u64, VfioError> {
        let window = *self;
        let RegionInfo { bytes, offset, mappable } = region_info(device, self.bar.into())
            .map_err(|source| VfioError::NoBar { window, source })?;
        let inside = self.offset.checked_add(self.bytes()).is_some_and(|end| end <= bytes);
        if !inside {
            return Err(VfioError::ShortBar { window, bytes });
        }
        if !mappable {
            return Err(VfioError::UnmappableBar { window });
        }
        offset.checked_add(self.offset).ok_or(VfioError::ShortBar { window, bytes })
    }
}

impl fmt::Display for BarWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { gpa, endpoint, bar, offset } = self;
        write!(f, "{gpa} (BAR {bar} of {endpoint}, from {offset:#x})")
    }
}

//! The guest's memory as the front-end describes it.

use std::cell::Cell;
use std::fs::File;
use std::os::fd::AsFd;

use vhost::vhost_user::message::VhostUserMemoryRegion;
use viommu_backend::MemoryRegion;
use viommu_pgtable::PhysAddr;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{
    Address, Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap,
    GuestMemoryRegion, GuestRegionCollectionError, GuestRegionMmap, MmapRegion, VolatileSlice,
};

/// Most regions that a table holds; as many descriptors as one message can bring.
pub(super) const MAX_REGIONS: usize = 32;

/// Why a memory table is refused. The table in use stays.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    /// More regions than [`MAX_REGIONS`].
    #[error("{0} memory regions, at most {MAX_REGIONS} are served")]
    TooMany(usize),
    /// A range that ends beyond the address space.
    #[error("memory region {gpa:#x}+{size:#x} ends beyond the address space")]
    Wraps {
        /// Where it starts in the guest.
        gpa: u64,
        /// Its length in bytes.
        size: u64,
    },
    /// The file could not be mapped, or is shorter than the region.
    #[error("memory region {gpa:#x}+{size:#x}: {source}")]
    Unmappable {
        /// Where it starts in the guest.
        gpa: u64,
        /// Its length in bytes.
        size: u64,
        /// What the mapping said.
        source: MmapRegionError,
    },
    /// Regions that overlap in the guest.
    #[error(transparent)]
    Layout(#[from] GuestRegionCollectionError),
    /// No such region to remove.
    #[error("no memory region {gpa:#x}+{size:#x}")]
    Unknown {
        /// Where it would start in the guest.
        gpa: u64,
        /// Its length in bytes.
        size: u64,
    },
}

/// Where one region lies for the front-end and for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Placement {
    user: u64,
    gpa: u64,
    size_bytes: u64,
}

impl From<&VhostUserMemoryRegion> for Placement {
    fn from(region: &VhostUserMemoryRegion) -> Self {
        Self { user: region.user_addr, gpa: region.guest_phys_addr, size_bytes: region.memory_size }
    }
}

/// The guest's memory, mapped, and the way from the front-end's addresses to the guest's.
#[derive(Debug, Clone, Default)]
pub(super) struct GuestRam {
    mapped: GuestMemoryMmap,
    placements: Vec<Placement>,
}

impl GuestRam {
    /// The table that SET_MEM_TABLE brings: one file for each region, in the same order.
    pub(super) fn new(
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
    ) -> Result<Self, MemoryError> {
        let mut ram = Self::default();
        for (region, file) in regions.iter().zip(files) {
            ram = ram.with(region, file)?;
        }
        Ok(ram)
    }

    /// This table and one region more (ADD_MEM_REG).
    pub(super) fn with(
        &self,
        region: &VhostUserMemoryRegion,
        file: File,
    ) -> Result<Self, MemoryError> {
        let placement = Placement::from(region);
        if self.placements.len() >= MAX_REGIONS {
            return Err(MemoryError::TooMany(self.placements.len() + 1));
        }
        let mapped = map(placement, FileOffset::new(file, region.mmap_offset))?;
        let mapped = self.mapped.insert_region(mapped.into())?;
        let mut placements = self.placements.clone();
        placements.push(placement);
        Ok(Self { mapped, placements })
    }

    /// This table without a region (REM_MEM_REG); it is named by its place, the file does not count.
    pub(super) fn without(&self, region: &VhostUserMemoryRegion) -> Result<Self, MemoryError> {
        let gone = Placement::from(region);
        let unknown = || MemoryError::Unknown { gpa: gone.gpa, size: gone.size_bytes };
        let at = self.placements.iter().position(|known| *known == gone).ok_or_else(unknown)?;
        let (mapped, _) = self
            .mapped
            .remove_region(GuestAddress(gone.gpa), gone.size_bytes)
            .map_err(|_| unknown())?;
        let mut placements = self.placements.clone();
        placements.remove(at);
        Ok(Self { mapped, placements })
    }

    /// No memory at all: before the first table.
    pub(super) fn is_empty(&self) -> bool {
        self.placements.is_empty()
    }

    /// The memory itself, by guest-physical address.
    pub(super) fn mapped(&self) -> &GuestMemoryMmap {
        &self.mapped
    }

    /// The regions and the files that hold them.
    pub(super) fn regions(&self) -> impl Iterator<Item = MemoryRegion<'_>> {
        self.mapped.iter().filter_map(|region| {
            let file = region.file_offset()?;
            Some(MemoryRegion {
                gpa: PhysAddr::new(region.start_addr().raw_value()),
                bytes: region.len(),
                file: file.file().as_fd(),
                offset: file.start(),
            })
        })
    }

    /// The guest-physical address of what lies at `user` in the front-end; `None` outside all regions.
    pub(super) fn guest_address(&self, user: u64) -> Option<GuestAddress> {
        self.placements.iter().find_map(|place| {
            let offset =
                user.checked_sub(place.user).filter(|offset| *offset < place.size_bytes)?;
            place.gpa.checked_add(offset).map(GuestAddress)
        })
    }
}

/// Guest memory during a turn of serving.
///
/// It remembers the region that was used last: one guest's requests lie in one region nearly always.
#[derive(Debug)]
pub(super) struct View<'m> {
    ram: &'m GuestMemoryMmap,
    recent: Cell<Option<Region<'m>>>,
}

/// One region of guest memory.
#[derive(Debug, Clone, Copy)]
struct Region<'m> {
    start: GuestAddress,
    bytes: VolatileSlice<'m>,
}

impl<'m> Region<'m> {
    /// `bytes` bytes from `at` on, if all of them are in this region.
    #[inline]
    fn slice(&self, at: GuestAddress, bytes: usize) -> Option<VolatileSlice<'m>> {
        let offset = usize::try_from(at.0.checked_sub(self.start.0)?).ok()?;
        self.bytes.subslice(offset, bytes).ok()
    }
}

impl<'m> View<'m> {
    /// A view of all of `ram`.
    pub(super) const fn new(ram: &'m GuestMemoryMmap) -> Self {
        Self { ram, recent: Cell::new(None) }
    }

    /// `bytes` bytes from `at` on; `None` unless all of them are in one region.
    #[inline]
    pub(super) fn slice(&self, at: GuestAddress, bytes: usize) -> Option<VolatileSlice<'m>> {
        let known = self.recent.get().and_then(|region| region.slice(at, bytes));
        known.or_else(|| self.look_up(at)?.slice(at, bytes))
    }

    /// Reads bytes; false, and some of `into` perhaps written, if some are not guest memory.
    pub(super) fn read(&self, at: GuestAddress, into: &mut [u8]) -> bool {
        match self.slice(at, into.len()) {
            Some(slice) => slice.copy_to(into) == into.len(),
            None => self.ram.read_slice(into, at).is_ok(),
        }
    }

    /// Writes bytes; false, and some perhaps written, if some are not guest memory.
    pub(super) fn write(&self, at: GuestAddress, bytes: &[u8]) -> bool {
        match self.slice(at, bytes.len()) {
            Some(slice) => {
                slice.copy_from(bytes);
                true
            }
            None => self.ram.write_slice(bytes, at).is_ok(),
        }
    }

    /// Whether `bytes` bytes from `at` on are guest memory, in one region or several.
    pub(super) fn has(&self, at: GuestAddress, bytes: usize) -> bool {
        self.slice(at, bytes).is_some() || GuestMemoryBackend::check_range(self.ram, at, bytes)
    }

    /// The region of an address, remembered.
    #[cold]
    fn look_up(&self, at: GuestAddress) -> Option<Region<'m>> {
        let found = self.ram.find_region(at)?;
        let region = Region { start: found.start_addr(), bytes: found.as_volatile_slice().ok()? };
        self.recent.set(Some(region));
        Some(region)
    }
}

/// Maps one region of a file at its place.
fn map(place: Placement, file: FileOffset) -> Result<GuestRegionMmap, MemoryError> {
    let Placement { gpa, size_bytes: size, .. } = place;
    let wraps = || MemoryError::Wraps { gpa, size };
    let unmappable = |source| MemoryError::Unmappable { gpa, size, source };
    let length = usize::try_from(size).map_err(|_| wraps())?;
    reaches(&file, size).map_err(unmappable)?;
    let mapping = MmapRegion::from_file(file, length).map_err(unmappable)?;
    GuestRegionMmap::new(mapping, GuestAddress(gpa)).ok_or_else(wraps)
}

/// Checks that a regular file has `size` bytes from its offset on: touching what it has not would end the
/// process. Other files, a DAX device for one, have no length to compare.
fn reaches(file: &FileOffset, size: u64) -> Result<(), MmapRegionError> {
    let end = file.start().checked_add(size).ok_or(MmapRegionError::InvalidOffsetLength)?;
    let metadata = file.file().metadata().map_err(MmapRegionError::Mmap)?;
    if metadata.is_file() && metadata.len() < end {
        return Err(MmapRegionError::MappingPastEof);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: u64 = 0x7f00_0000_0000;

    fn region(gpa: u64, size: u64, user: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(gpa, size, user, 0)
    }

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        file
    }

    #[test]
    fn addresses_of_the_front_end_become_the_guests() {
        let regions = [region(0x10_0000, 0x1000, USER), region(0, 0x2000, USER + 0x1000)];
        let ram = GuestRam::new(&regions, vec![file(0x1000), file(0x2000)]).unwrap();
        assert_eq!(ram.guest_address(USER), Some(GuestAddress(0x10_0000)));
        assert_eq!(ram.guest_address(USER + 0xfff), Some(GuestAddress(0x10_0fff)));
        assert_eq!(ram.guest_address(USER + 0x1000), Some(GuestAddress(0)));
        assert_eq!(ram.guest_address(USER + 0x3000), None);
        assert_eq!(ram.guest_address(USER - 1), None);
    }

    #[test]
    fn a_region_longer_than_its_file_is_refused() {
        let refused = GuestRam::new(&[region(0, 0x2000, USER)], vec![file(0x1000)]);
        assert!(matches!(refused, Err(MemoryError::Unmappable { gpa: 0, size: 0x2000, .. })));
    }

    #[test]
    fn overlapping_regions_are_refused() {
        let regions = [region(0, 0x2000, USER), region(0x1000, 0x1000, USER + 0x2000)];
        let refused = GuestRam::new(&regions, vec![file(0x2000), file(0x1000)]);
        assert!(matches!(refused, Err(MemoryError::Layout(_))));
    }

    #[test]
    fn a_region_that_is_taken_away_is_gone_and_only_that() {
        let regions = [region(0, 0x1000, USER), region(0x1000, 0x1000, USER + 0x1000)];
        let ram = GuestRam::new(&regions, vec![file(0x1000), file(0x1000)]).unwrap();
        let less = ram.without(&regions[0]).unwrap();
        assert_eq!(less.guest_address(USER), None);
        assert_eq!(less.guest_address(USER + 0x1000), Some(GuestAddress(0x1000)));
        assert_eq!(less.mapped().num_regions(), 1);
        assert!(matches!(less.without(&regions[0]), Err(MemoryError::Unknown { gpa: 0, .. })));
    }

    #[test]
    fn a_view_reads_and_writes_across_regions_and_slices_only_within_one() {
        let regions = [region(0, 0x1000, USER), region(0x1000, 0x1000, USER + 0x1000)];
        let ram = GuestRam::new(&regions, vec![file(0x1000), file(0x1000)]).unwrap();
        let view = View::new(ram.mapped());
        assert!(view.write(GuestAddress(0xffe), &[1, 2, 3, 4]));
        let mut bytes = [0; 4];
        assert!(view.read(GuestAddress(0xffe), &mut bytes));
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert!(view.slice(GuestAddress(0xffe), 4).is_none());
        assert_eq!(view.slice(GuestAddress(0x1000), 2).unwrap().load::<u8>(1, ORDER).unwrap(), 4);
        assert!(view.has(GuestAddress(0), 0x2000) && !view.has(GuestAddress(1), 0x2000));
        for outside in [0x1fff, 0x2000, u64::MAX] {
            assert!(view.slice(GuestAddress(outside), 2).is_none(), "{outside:#x}");
            assert!(!view.read(GuestAddress(outside), &mut [0; 2]), "{outside:#x}");
            assert!(!view.write(GuestAddress(outside), &[0; 2]), "{outside:#x}");
        }
    }

    const ORDER: std::sync::atomic::Ordering = std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn one_region_above_the_limit_is_refused() {
        let many: Vec<_> = (0..=MAX_REGIONS as u64)
            .map(|n| region(n * 0x1000, 0x1000, USER + n * 0x1000))
            .collect();
        let files = || many.iter().map(|_| file(0x1000)).collect::<Vec<_>>();
        assert!(GuestRam::new(&many[..MAX_REGIONS], files()).is_ok());
        assert!(matches!(GuestRam::new(&many, files()), Err(MemoryError::TooMany(33))));
    }
}

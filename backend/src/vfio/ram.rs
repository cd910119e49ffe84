//! The guest's memory as files, for a host that pins it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use viommu_pasid::EndpointId;
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

use super::BarWindow;
use crate::{HostError, MemoryRegion};

/// One region, memory or registers, with a descriptor of our own of its file.
#[derive(Debug, Clone)]
pub(crate) struct Region {
    gpa: PhysAddr,
    bytes: u64,
    file: Arc<OwnedFd>,
    offset: u64,
    /// Device and inode: two descriptors of one file are the same memory.
    inode: (u64, u64),
    /// Whose registers it is; memory is no device's.
    device: Option<EndpointId>,
}

/// A part of a region that a mapping leads to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece<'a> {
    /// The region.
    pub(crate) region: &'a Region,
    /// Where the part starts in the region, bytes.
    pub(crate) at: u64,
    /// How long it is, bytes.
    pub(crate) bytes: u64,
}

impl Region {
    fn new(region: &MemoryRegion<'_>) -> Result<Self, HostError> {
        let refused = |call| move |source| HostError::Refused { call, source };
        let file = region.file.try_clone_to_owned().map_err(refused("dup of a memory file"))?;
        let stat = rustix::fs::fstat(&file)
            .map_err(|errno| refused("fstat of a memory file")(io::Error::from(errno)))?;
        let MemoryRegion { gpa, bytes, offset, .. } = *region;
        let (file, inode) = (Arc::new(file), (stat.st_dev, stat.st_ino));
        Ok(Self { gpa, bytes, file, offset, inode, device: None })
    }

    /// The registers that `window` shows, which start in `file` at `offset`, bytes.
    ///
    /// # Errors
    /// A descriptor that cannot be duplicated or looked at.
    pub(crate) fn registers(
        window: &BarWindow,
        (file, offset): (BorrowedFd<'_>, u64),
    ) -> Result<Self, HostError> {
        let (gpa, bytes) = (window.gpa.start(), window.bytes());
        let region = Self::new(&MemoryRegion { gpa, bytes, file, offset })?;
        Ok(Self { device: Some(window.endpoint), ..region })
    }

    /// Whose registers it is; memory is no device's.
    pub(crate) const fn device(&self) -> Option<EndpointId> {
        self.device
    }

    /// Where the guest has it, as an identity mapping.
    pub(crate) fn identity(&self) -> Option<Mapping> {
        let iova = IovaRange::with_len(Iova::new(self.gpa.raw()), self.bytes)?;
        Mapping::new(iova, self.gpa, Access::RW).ok()
    }

    /// The file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Where it starts for the guest.
    pub(crate) const fn gpa(&self) -> PhysAddr {
        self.gpa
    }

    /// Its length, bytes.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Where it starts in the file, bytes.
    pub(crate) const fn offset(&self) -> u64 {
        self.offset
    }

    /// What the VMM has told of it.
    pub(crate) fn told(&self) -> MemoryRegion<'_> {
        MemoryRegion { gpa: self.gpa, bytes: self.bytes, file: self.file(), offset: self.offset }
    }

    /// The same memory at the same place.
    pub(crate) fn is(&self, other: &Self) -> bool {
        (self.gpa, self.bytes, self.offset, self.inode)
            == (other.gpa, other.bytes, other.offset, other.inode)
    }

    /// True if `mapping` leads into it.
    pub(crate) fn meets(&self, mapping: &Mapping) -> bool {
        let last = self.gpa.raw().saturating_add(self.bytes.saturating_sub(1));
        mapping.oa().raw() <= last && self.gpa <= mapping.oa_last()
    }
}

/// All regions, by their address.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ram(Vec<Region>);

impl Ram {
    /// The memory that `regions` say.
    ///
    /// # Errors
    /// A descriptor that cannot be duplicated or looked at.
    pub(crate) fn new(regions: &[MemoryRegion<'_>]) -> Result<Self, HostError> {
        Ok(Self::of(regions.iter().map(Region::new).collect::<Result<_, _>>()?))
    }

    /// These regions, which do not overlap.
    pub(crate) fn of(mut regions: Vec<Region>) -> Self {
        regions.sort_by_key(|region| region.gpa);
        Self(regions)
    }

    /// Takes the regions out that `wanted` holds for.
    pub(crate) fn take(&mut self, wanted: impl Fn(&Region) -> bool) -> Vec<Region> {
        let (taken, left) = std::mem::take(&mut self.0).into_iter().partition(wanted);
        self.0 = left;
        taken
    }

    /// The regions, by their address.
    pub(crate) fn regions(&self) -> &[Region] {
        &self.0
    }

    /// The regions that `other` does not have.
    pub(crate) fn without(&self, other: &Self) -> Vec<Region> {
        let gone = |region: &&Region| !other.0.iter().any(|other| region.is(other));
        self.0.iter().filter(gone).cloned().collect()
    }

    /// Where `mapping` leads, piece by piece in its order; `None` if a part of it leads to no memory.
    pub(crate) fn pieces(&self, mapping: &Mapping) -> Option<Vec<Piece<'_>>> {
        let (mut at, last) = (mapping.oa().raw(), mapping.oa_last().raw());
        let mut pieces = Vec::new();
        loop {
            let index = self.0.partition_point(|region| region.gpa.raw() <= at).checked_sub(1)?;
            let region = self.0.get(index)?;
            let into = at - region.gpa.raw();
            let room = region.bytes.checked_sub(into).filter(|room| *room != 0)?;
            let wanted = last - at;
            if wanted < room {
                pieces.push(Piece { region, at: into, bytes: wanted + 1 });
                return Some(pieces);
            }
            pieces.push(Piece { region, at: into, bytes: room });
            at = at.checked_add(room)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;

    fn ram(places: &[(u64, u64)]) -> Ram {
        let file = File::open("/dev/null").unwrap();
        let region = |&(gpa, bytes): &(u64, u64)| MemoryRegion {
            gpa: PhysAddr::new(gpa),
            bytes,
            file: file.as_fd(),
            offset: gpa / 2,
        };
        Ram::new(&places.iter().map(region).collect::<Vec<_>>()).unwrap()
    }

    fn mapping(oa: u64, bytes: u64) -> Mapping {
        let iova = IovaRange::with_len(Iova::new(0x10_0000), bytes).unwrap();
        Mapping::new(iova, PhysAddr::new(oa), Access::READ).unwrap()
    }

    fn pieces(ram: &Ram, oa: u64, bytes: u64) -> Option<Vec<(u64, u64, u64)>> {
        let pieces = ram.pieces(&mapping(oa, bytes))?;
        Some(pieces.iter().map(|piece| (piece.region.gpa.raw(), piece.at, piece.bytes)).collect())
    }

    #[test]
    fn a_mapping_over_neighbours_is_cut_where_they_meet() {
        let ram = ram(&[(0x4000, 0x2000), (0, 0x4000), (0x8000, 0x1000)]);
        assert_eq!(pieces(&ram, 0x1000, 0x1000), Some(vec![(0, 0x1000, 0x1000)]));
        assert_eq!(
            pieces(&ram, 0x3000, 0x3000),
            Some(vec![(0, 0x3000, 0x1000), (0x4000, 0, 0x2000)])
        );
        assert_eq!(pieces(&ram, 0x8000, 0x1000), Some(vec![(0x8000, 0, 0x1000)]));
    }

    #[test]
    fn a_mapping_that_leaves_the_memory_anywhere_leads_nowhere() {
        let ram = ram(&[(0x1000, 0x3000), (0x8000, 0x1000)]);
        for (oa, bytes) in [
            (0, 0x1000),
            (0, 0x2000),
            (0x3000, 0x2000),
            (0x3000, 0x6000),
            (0x9000, 0x1000),
            (u64::MAX - 0xfff, 0x1000),
        ] {
            assert_eq!(pieces(&ram, oa, bytes), None, "{oa:#x}+{bytes:#x}");
        }
    }

    #[test]
    fn the_same_file_at_the_same_place_is_the_same_memory() {
        let (one, other) = (ram(&[(0, 0x1000), (0x1000, 0x1000)]), ram(&[(0, 0x1000)]));
        let gone = one.without(&other);
        assert_eq!(gone.iter().map(Region::gpa).collect::<Vec<_>>(), [PhysAddr::new(0x1000)]);
        assert!(other.without(&one).is_empty());
    }

    #[test]
    fn a_region_meets_what_leads_into_it_and_nothing_beside() {
        let ram = ram(&[(0x2000, 0x2000)]);
        let meets = |oa, bytes| ram.regions()[0].meets(&mapping(oa, bytes));
        assert!(meets(0x1000, 0x2000) && meets(0x3000, 0x1000) && meets(0, 0x10000));
        assert!(!meets(0x1000, 0x1000) && !meets(0x4000, 0x1000));
    }
}

//! iommufd's calls, and those of a VFIO device that belong to them (linux/iommufd.h, linux/vfio.h).
#![expect(unsafe_code, reason = "what the kernel is given for its requests")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use iommufd_bindings as abi;
use vfio_bindings::bindings::vfio::{
    vfio_device_attach_iommufd_pt, vfio_device_bind_iommufd, vfio_device_detach_iommufd_pt,
};
use viommu_pgtable::{Access, Iova, IovaRange};

use crate::ioctl::{Structure, call, call_with_pointers, iommufd, structures, vfio};

/// Most ranges of usable IOVAs that an address space is asked for. A machine has a hole for its MSI
/// doorbell and a few for firmware.
const MAX_RANGES: u32 = 256;

/// The id that no object has: the kernel counts from 1.
const NO_OBJECT: u32 = 0;

structures! {
    "6.2" iommufd(abi::IOMMUFD_CMD_DESTROY) => abi::iommu_destroy, size, Plain;
    "6.2" iommufd(abi::IOMMUFD_CMD_IOAS_ALLOC) => abi::iommu_ioas_alloc, size, Plain;
    "6.2" iommufd(abi::IOMMUFD_CMD_IOAS_COPY) => abi::iommu_ioas_copy, size, Plain;
    "6.2" iommufd(abi::IOMMUFD_CMD_IOAS_UNMAP) => abi::iommu_ioas_unmap, size, Plain;
    "6.2" iommufd(abi::IOMMUFD_CMD_IOAS_IOVA_RANGES) => abi::iommu_ioas_iova_ranges, size;
    "6.6" iommufd(abi::IOMMUFD_CMD_HWPT_ALLOC) => abi::iommu_hwpt_alloc, size;
    "6.6" iommufd(abi::IOMMUFD_CMD_GET_HW_INFO) => abi::iommu_hw_info, size;
    // of dma-bufs: 7.0
    "6.13" iommufd(abi::IOMMUFD_CMD_IOAS_MAP_FILE) => abi::iommu_ioas_map_file, size, Plain;
    "6.6" vfio(18) => vfio_device_bind_iommufd, argsz;
    "6.6" vfio(19) => vfio_device_attach_iommufd_pt, argsz, Plain;
    "6.6" vfio(20) => vfio_device_detach_iommufd_pt, argsz, Plain;
}

/// The requests that are used while the daemon serves: what a filter of system calls has to let pass.
pub const REQUESTS: [u32; 10] = [
    vfio_device_attach_iommufd_pt::REQUEST,
    vfio_device_detach_iommufd_pt::REQUEST,
    abi::iommu_destroy::REQUEST,
    abi::iommu_ioas_alloc::REQUEST,
    abi::iommu_ioas_copy::REQUEST,
    abi::iommu_ioas_iova_ranges::REQUEST,
    abi::iommu_ioas_map_file::REQUEST,
    abi::iommu_ioas_unmap::REQUEST,
    abi::iommu_hwpt_alloc::REQUEST,
    abi::iommu_hw_info::REQUEST,
];

/// The first Linux that has all of these.
pub(super) const NEEDED: &str = abi::iommu_ioas_map_file::SINCE;

/// An open iommufd.
#[derive(Debug)]
pub(super) struct Iommufd(pub(super) OwnedFd);

/// A part of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct FilePart<'a> {
    /// The file: a memfd, one of hugetlbfs, or a dma-buf.
    pub(super) file: BorrowedFd<'a>,
    /// Where the part starts, bytes.
    pub(super) start: u64,
    /// How long it is, bytes.
    pub(super) bytes: u64,
}

/// What an address space can map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usable {
    /// IOVAs, in ascending order.
    pub(super) ranges: Vec<IovaRange>,
    /// What every mapping is aligned to, bytes.
    pub(super) alignment: u64,
}

impl Iommufd {
    /// Whether it is an iommufd: other files do not know the call.
    pub(super) fn is_one(&self) -> bool {
        let unknown = |error: &io::Error| error.raw_os_error() == Some(libc::ENOTTY);
        !self.destroy(NO_OBJECT).is_err_and(|error| unknown(&error))
    }

    /// A new address space, with nothing mapped.
    pub(super) fn ioas_alloc(&self) -> io::Result<u32> {
        let mut alloc = abi::iommu_ioas_alloc::default();
        call(&self.0, &mut alloc)?;
        Ok(alloc.out_ioas_id)
    }

    /// A page table of the IOMMU of device `device`, filled from address space `ioas`.
    pub(super) fn hwpt_alloc(&self, device: u32, ioas: u32) -> io::Result<u32> {
        let mut alloc = abi::iommu_hwpt_alloc { dev_id: device, pt_id: ioas, ..Default::default() };
        // SAFETY: `data_len` is 0, so the kernel does not follow the pointer.
        unsafe { call_with_pointers(&self.0, &mut alloc) }?;
        Ok(alloc.out_hwpt_id)
    }

    /// Ends an object that nothing uses.
    pub(super) fn destroy(&self, id: u32) -> io::Result<()> {
        let mut destroy = abi::iommu_destroy { size: 0, id };
        call(&self.0, &mut destroy).map(drop)
    }

    /// Maps and pins a part of a file.
    pub(super) fn map_file(
        &self,
        ioas: u32,
        part: FilePart<'_>,
        iova: Iova,
        access: Access,
    ) -> io::Result<()> {
        let mut map = abi::iommu_ioas_map_file {
            size: 0,
            flags: flags(access),
            ioas_id: ioas,
            fd: part.file.as_raw_fd(),
            start: part.start,
            length: part.bytes,
            iova: iova.raw(),
        };
        call(&self.0, &mut map).map(drop)
    }

    /// Maps a part of a file at an address that the kernel chooses, to be read.
    pub(super) fn map_file_anywhere(&self, ioas: u32, part: FilePart<'_>) -> io::Result<()> {
        let mut map = abi::iommu_ioas_map_file {
            size: 0,
            flags: abi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
            ioas_id: ioas,
            fd: part.file.as_raw_fd(),
            start: part.start,
            length: part.bytes,
            iova: 0,
        };
        call(&self.0, &mut map).map(drop)
    }

    /// Maps what `source` has at `from`, without pinning it again.
    pub(super) fn copy(
        &self,
        (ioas, to): (u32, IovaRange),
        (source, from): (u32, u64),
        access: Access,
    ) -> io::Result<()> {
        let mut copy = abi::iommu_ioas_copy {
            size: 0,
            flags: flags(access),
            dst_ioas_id: ioas,
            src_ioas_id: source,
            length: to.len_minus_one().saturating_add(1),
            dst_iova: to.start().raw(),
            src_iova: from,
        };
        call(&self.0, &mut copy).map(drop)
    }

    /// Unmaps whole mappings.
    pub(super) fn unmap(&self, ioas: u32, range: IovaRange) -> io::Result<()> {
        let mut unmap = abi::iommu_ioas_unmap {
            size: 0,
            ioas_id: ioas,
            iova: range.start().raw(),
            length: range.len_minus_one().saturating_add(1),
        };
        call(&self.0, &mut unmap).map(drop)
    }

    /// What an address space can map, for the devices that are attached to it.
    pub(super) fn usable(&self, ioas: u32) -> io::Result<Usable> {
        let mut ranges = vec![abi::iommu_iova_range::default(); MAX_RANGES as usize];
        let mut ask = abi::iommu_ioas_iova_ranges {
            ioas_id: ioas,
            num_iovas: MAX_RANGES,
            allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
            ..Default::default()
        };
        // SAFETY: the pointer is to `ranges`, which lives until after the call and has as many elements.
        unsafe { call_with_pointers(&self.0, &mut ask) }?;
        let told = ranges.iter().take(usize::try_from(ask.num_iovas).unwrap_or(usize::MAX));
        let ranges =
            told.filter_map(|range| IovaRange::new(Iova::new(range.start), Iova::new(range.last)));
        Ok(Usable { ranges: ranges.collect(), alignment: ask.out_iova_alignment })
    }

    /// Whether `device` is the id of a device that is bound.
    pub(super) fn is_device(&self, device: u32) -> bool {
        let mut info = abi::iommu_hw_info { dev_id: device, ..Default::default() };
        // SAFETY: `data_len` is 0, so the kernel does not follow the pointer.
        unsafe { call_with_pointers(&self.0, &mut info) }.is_ok()
    }
}

/// A VFIO device's own descriptor.
#[derive(Debug)]
pub(super) struct Cdev(pub(super) OwnedFd);

impl AsFd for Cdev {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Cdev {
    /// Makes the device ours, and iommufd's; its id there.
    pub(super) fn bind(&self, iommufd: &Iommufd) -> io::Result<u32> {
        let mut bind =
            vfio_device_bind_iommufd { iommufd: iommufd.0.as_raw_fd(), ..Default::default() };
        // SAFETY: no flag says that there is a token, so the kernel does not follow the pointer.
        unsafe { call_with_pointers(&self.0, &mut bind) }?;
        Ok(bind.out_devid)
    }

    /// Sends the device's DMA through `table`: one that is attached already is replaced in one step.
    pub(super) fn attach(&self, table: u32) -> io::Result<()> {
        let mut attach = vfio_device_attach_iommufd_pt { pt_id: table, ..Default::default() };
        call(&self.0, &mut attach).map(drop)
    }

    /// Has the kernel write to `eventfd` when it wants the device back.
    pub(super) fn announce_release(&self, eventfd: impl AsFd) -> io::Result<()> {
        crate::vfio::sys::announce_release(self.0.as_fd(), eventfd.as_fd())
    }

    /// Blocks the device's DMA.
    pub(super) fn detach(&self) -> io::Result<()> {
        let mut detach = vfio_device_detach_iommufd_pt::default();
        call(&self.0, &mut detach).map(drop)
    }
}

/// What IOAS_MAP_FILE and IOAS_COPY say of a mapping, which is to be where it is asked for.
fn flags(access: Access) -> u32 {
    let mut flags = abi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
    if access.contains(Access::READ) {
        flags |= abi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
    }
    if access.contains(Access::WRITE) {
        flags |= abi::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
    }
    flags
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;

    #[test]
    fn another_file_is_no_iommufd() {
        for path in ["/dev/null", "/proc/self/exe"] {
            assert!(!Iommufd(File::open(path).unwrap().into()).is_one(), "{path}");
        }
    }
}

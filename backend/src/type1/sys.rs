//! The calls of VFIO's groups and type1 containers (linux/vfio.h), and guest memory at addresses of ours,
//! for type1 maps addresses of the process that asks.
#![expect(unsafe_code, reason = "ioctls, and memory that others write")]

use std::ffi::{CString, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL,
    VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE1v2_IOMMU, vfio_group_status, vfio_iommu_type1_dma_map,
    vfio_iommu_type1_dma_unmap,
};
use viommu_pgtable::{Access, Iova, IovaRange};

use crate::ioctl::{Plain, Structure, answered, call, call_with_pointers, structures, vfio};

structures! {
    "3.6" vfio(3) => vfio_group_status, argsz, Plain;
    "3.6" vfio(13) => vfio_iommu_type1_dma_map, argsz;
    // to unmap everything at once (VFIO_DMA_UNMAP_FLAG_ALL): 5.12
    "3.6" vfio(14) => vfio_iommu_type1_dma_unmap, argsz;
}

/// Requests that take no structure; type1's second version came with 3.15.
const CHECK_EXTENSION: u32 = vfio(1);
const SET_IOMMU: u32 = vfio(2);
const GROUP_SET_CONTAINER: u32 = vfio(4);
const GROUP_GET_DEVICE_FD: u32 = vfio(6);

/// The requests that are used while the daemon serves: what a filter of system calls has to let pass.
pub const REQUESTS: [u32; 2] =
    [vfio_iommu_type1_dma_map::REQUEST, vfio_iommu_type1_dma_unmap::REQUEST];

/// Room for what GET_INFO says of the container, bytes: more than any kernel says. As words, so that it is
/// aligned.
pub(super) const INFO_WORDS: usize = 512;

/// Room for `struct vfio_iommu_type1_info` and the capabilities behind it.
struct Room([u64; INFO_WORDS]);

// SAFETY: 1. linux/vfio.h gives that structure for the request, and lets it be longer; 2. its size is in the
// first four bytes.
unsafe impl Structure for Room {
    const REQUEST: u32 = vfio(12);
    const SINCE: &'static str = "3.6";

    fn say_size(&mut self, bytes: u32) {
        let [a, b, c, d] = bytes.to_ne_bytes();
        if let Some(first) = self.0.first_mut() {
            *first = u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
        }
    }
}

// SAFETY: the kernel writes numbers and offsets into it, and reads no more than its size.
unsafe impl Plain for Room {}

/// A request that takes a number.
fn with_number(fd: BorrowedFd<'_>, request: u32, number: u32) -> io::Result<i32> {
    // SAFETY: 1. `fd` is open for the call; 2. each caller passes a request whose argument is a number, so
    // the kernel follows no pointer.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, u64::from(number)) };
    answered(done)
}

/// Whether all devices of a group are VFIO's.
pub(super) fn is_viable(group: impl AsFd) -> io::Result<bool> {
    let mut status = vfio_group_status::default();
    call(group, &mut status)?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group into a container.
pub(super) fn set_container(group: impl AsFd, container: impl AsFd) -> io::Result<()> {
    let container: RawFd = container.as_fd().as_raw_fd();
    let (group, request) = (group.as_fd().as_raw_fd(), GROUP_SET_CONTAINER as libc::Ioctl);
    // SAFETY: 1. the group is open for the call; 2. the request reads a descriptor's number, which `container`
    // is.
    let done = unsafe { libc::ioctl(group, request, std::ptr::from_ref(&container)) };
    answered(done).map(drop)
}

/// Makes a container, which has a group, a type1 one whose mappings are unmapped whole or not at all.
pub(super) fn set_type1(container: impl AsFd) -> io::Result<()> {
    if with_number(container.as_fd(), CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU)? == 0 {
        return Err(io::Error::from_raw_os_error(libc::EOPNOTSUPP));
    }
    with_number(container.as_fd(), SET_IOMMU, VFIO_TYPE1v2_IOMMU).map(drop)
}

/// The device of a group at that PCI address.
pub(super) fn device(group: impl AsFd, address: &str) -> io::Result<OwnedFd> {
    let name = CString::new(address).map_err(io::Error::other)?;
    // SAFETY: 1. the group is open for the call; 2. the request reads a string, which `name` is.
    let raw = unsafe {
        libc::ioctl(group.as_fd().as_raw_fd(), GROUP_GET_DEVICE_FD as libc::Ioctl, name.as_ptr())
    };
    let raw = answered(raw)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// What the kernel says of a container: `struct vfio_iommu_type1_info` and its capabilities, as it lies in
/// memory.
pub(super) fn info(container: impl AsFd) -> io::Result<[u64; INFO_WORDS]> {
    let mut room = Room([0; INFO_WORDS]);
    call(container, &mut room)?;
    Ok(room.0)
}

/// Maps and pins a part of `window`, which stays until it is unmapped or the container is gone.
pub(super) fn map_dma(
    container: impl AsFd,
    (window, at): (&Window, u64),
    iova: IovaRange,
    access: Access,
) -> io::Result<()> {
    let bytes = iova.len_minus_one().saturating_add(1);
    let vaddr = window.address(at, bytes).ok_or(io::ErrorKind::InvalidInput)?;
    let mut flags = 0;
    if access.contains(Access::READ) {
        flags |= VFIO_DMA_MAP_FLAG_READ;
    }
    if access.contains(Access::WRITE) {
        flags |= VFIO_DMA_MAP_FLAG_WRITE;
    }
    let iova = iova.start().raw();
    let mut map = vfio_iommu_type1_dma_map { argsz: 0, flags, vaddr, iova, size: bytes };
    // SAFETY: `vaddr` is in a `Window`, which nobody reads or writes through, and which outlives the mapping.
    unsafe { call_with_pointers(container, &mut map) }.map(drop)
}

/// Unmaps whole mappings; how many bytes they were.
pub(super) fn unmap_dma(container: impl AsFd, iova: IovaRange) -> io::Result<u64> {
    let bytes = iova.len_minus_one().saturating_add(1);
    unmap(container.as_fd(), iova.start(), bytes, 0)
}

/// Unmaps everything.
pub(super) fn unmap_all(container: impl AsFd) -> io::Result<()> {
    unmap(container.as_fd(), Iova::new(0), 0, VFIO_DMA_UNMAP_FLAG_ALL).map(drop)
}

fn unmap(container: BorrowedFd<'_>, iova: Iova, size_bytes: u64, flags: u32) -> io::Result<u64> {
    let mut unmap = vfio_iommu_type1_dma_unmap {
        flags,
        iova: iova.raw(),
        size: size_bytes,
        ..Default::default()
    };
    // SAFETY: no flag asks for the bitmap of dirty pages, so the kernel looks at nothing behind the structure.
    unsafe { call_with_pointers(container, &mut unmap) }?;
    Ok(unmap.size)
}

/// A file's part in our address space, for the kernel to find its pages by: memory, or a device's registers.
/// We never look into it.
#[derive(Debug)]
pub(super) struct Window {
    start: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: it is a range of addresses that nobody reads or writes through.
unsafe impl Send for Window {}

impl Window {
    /// Maps `bytes` of `file` from `offset`.
    pub(super) fn new(file: impl AsFd, offset: u64, bytes: u64) -> io::Result<Self> {
        let bytes = usize::try_from(bytes).map_err(io::Error::other)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let start =
            unsafe { mmap(std::ptr::null_mut(), bytes, access, MapFlags::SHARED, file, offset) }?;
        let start = NonNull::new(start).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, bytes })
    }

    /// The address of a part that lies inside.
    fn address(&self, at: u64, bytes: u64) -> Option<u64> {
        let end = at.checked_add(bytes)?;
        let inside = usize::try_from(end).is_ok_and(|end| end <= self.bytes);
        let start = u64::try_from(self.start.as_ptr().expose_provenance()).ok()?;
        inside.then(|| start.checked_add(at))?
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: 1. `new` mapped exactly these bytes; 2. no reference into them exists. Pages that are
        // mapped for a device still are pinned by the kernel.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}

//! The calls of VFIO's groups and type1 containers (linux/vfio.h), and guest memory at addresses of ours,
//! for type1 maps addresses of the process that asks. All of it is in every kernel since Linux 5.12.
#![expect(unsafe_code, reason = "ioctls, and memory that others write")]

use std::ffi::{CString, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_DMA_MAP_FLAG_READ, VFIO_DMA_MAP_FLAG_WRITE, VFIO_DMA_UNMAP_FLAG_ALL,
    VFIO_GROUP_FLAGS_VIABLE, VFIO_TYPE, VFIO_TYPE1v2_IOMMU, vfio_group_status,
    vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap,
};
use viommu_pgtable::{Access, Iova, IovaRange};

/// `_IO(VFIO_TYPE, VFIO_BASE + command)`.
const fn vfio(command: u32) -> u32 {
    (VFIO_TYPE as u32) << 8 | (VFIO_BASE + command)
}

const CHECK_EXTENSION: u32 = vfio(1);
const SET_IOMMU: u32 = vfio(2);
const GROUP_GET_STATUS: u32 = vfio(3);
const GROUP_SET_CONTAINER: u32 = vfio(4);
const GROUP_GET_DEVICE_FD: u32 = vfio(6);
const GET_INFO: u32 = vfio(12);
const MAP_DMA: u32 = vfio(13);
const UNMAP_DMA: u32 = vfio(14);

/// The requests that are used while the daemon serves: what a filter of system calls has to let pass.
pub const REQUESTS: [u32; 2] = [MAP_DMA, UNMAP_DMA];

/// Room for what GET_INFO says of the container, bytes: more than any kernel says. As words, so that it is
/// aligned.
pub(super) const INFO_WORDS: usize = 512;

/// A request that takes a number.
fn with_number(fd: BorrowedFd<'_>, request: u32, number: u32) -> io::Result<i32> {
    // SAFETY: 1. `fd` is open for the call; 2. each caller passes a request whose argument is a number, so
    // the kernel follows no pointer.
    let done = unsafe { libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, u64::from(number)) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

/// A request that takes a structure.
fn with_struct<T>(fd: BorrowedFd<'_>, request: u32, argument: &mut T) -> io::Result<()> {
    // SAFETY: 1. `fd` is open for the call; 2. each caller, all of them below, passes what linux/vfio.h
    // gives for the request, with its size in `argsz` where there is one, so the kernel stays inside
    // `argument`; 3. `map_dma`, whose structure names memory, has it from a `Window` that outlives the
    // mapping.
    let done = unsafe {
        libc::ioctl(fd.as_raw_fd(), request as libc::Ioctl, std::ptr::from_mut(argument))
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The size of a structure as its `argsz` says it.
fn size<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap_or(u32::MAX)
}

/// Whether all devices of a group are VFIO's.
pub(super) fn is_viable(group: impl AsFd) -> io::Result<bool> {
    let mut status = vfio_group_status { argsz: size::<vfio_group_status>(), flags: 0 };
    with_struct(group.as_fd(), GROUP_GET_STATUS, &mut status)?;
    Ok(status.flags & VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts a group into a container.
pub(super) fn set_container(group: impl AsFd, container: impl AsFd) -> io::Result<()> {
    let mut raw: RawFd = container.as_fd().as_raw_fd();
    with_struct(group.as_fd(), GROUP_SET_CONTAINER, &mut raw)
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
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// What the kernel says of a container: `struct vfio_iommu_type1_info` and its capabilities, as it lies in
/// memory.
pub(super) fn info(container: impl AsFd) -> io::Result<[u64; INFO_WORDS]> {
    let mut info = [0; INFO_WORDS];
    let argsz = size::<[u64; INFO_WORDS]>().to_ne_bytes();
    if let Some(first) = info.first_mut() {
        let [a, b, c, d] = argsz;
        *first = u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]);
    }
    with_struct(container.as_fd(), GET_INFO, &mut info)?;
    Ok(info)
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
    let argsz = size::<vfio_iommu_type1_dma_map>();
    let iova = iova.start().raw();
    let mut map = vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size: bytes };
    with_struct(container.as_fd(), MAP_DMA, &mut map)
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
        argsz: size::<vfio_iommu_type1_dma_unmap>(),
        flags,
        iova: iova.raw(),
        size: size_bytes,
        ..Default::default()
    };
    with_struct(container, UNMAP_DMA, &mut unmap)?;
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

//! VFIO's calls, and the memory that a device reaches.
#![expect(
    unsafe_code,
    reason = "ioctls and memory that a device writes behind the compiler's back"
)]

use std::ffi::{CStr, c_void};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};
use vfio_bindings::bindings::vfio::{
    vfio_group_status, vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap, vfio_iommu_type1_info,
    vfio_region_info,
};

/// The first of VFIO's request numbers: `_IO(';', 100)` (linux/vfio.h).
const BASE: libc::Ioctl = 0x3b64;

/// Bytes of a page.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A request that takes a number; its result.
fn with_number(file: &File, request: libc::Ioctl, number: libc::c_ulong) -> io::Result<i32> {
    // SAFETY: 1. `file` is open for the call; 2. each caller passes a request of linux/vfio.h whose
    // argument is a number, so the kernel follows no pointer.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), BASE + request, number) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A request that takes a structure, which the kernel reads and may answer in.
fn with_struct<T>(file: &File, request: libc::Ioctl, argument: &mut T) -> io::Result<i32> {
    // SAFETY: 1. `file` is open for the call; 2. each caller passes the structure that linux/vfio.h
    // gives for the request, with its size in `argsz`, so the kernel stays inside `argument`.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), BASE + request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// The size of a structure as its `argsz` says it.
fn size<T>() -> u32 {
    // no structure of VFIO is larger than a few hundred bytes
    u32::try_from(std::mem::size_of::<T>()).unwrap_or(u32::MAX)
}

/// VFIO_CHECK_EXTENSION on a container.
pub(crate) fn has_extension(container: &File, extension: u32) -> io::Result<bool> {
    with_number(container, 1, extension.into()).map(|answer| answer == 1)
}

/// VFIO_SET_IOMMU on a container that has a group.
pub(crate) fn set_iommu(container: &File, kind: u32) -> io::Result<()> {
    with_number(container, 2, kind.into()).map(drop)
}

/// VFIO_GROUP_GET_STATUS: its flags.
pub(crate) fn group_flags(group: &File) -> io::Result<u32> {
    let mut status = vfio_group_status { argsz: size::<vfio_group_status>(), flags: 0 };
    with_struct(group, 3, &mut status)?;
    Ok(status.flags)
}

/// VFIO_GROUP_SET_CONTAINER.
pub(crate) fn set_container(group: &File, container: &File) -> io::Result<()> {
    let mut descriptor: RawFd = container.as_raw_fd();
    with_struct(group, 4, &mut descriptor).map(drop)
}

/// VFIO_GROUP_GET_DEVICE_FD: the device of that PCI address.
pub(crate) fn device(group: &File, name: &CStr) -> io::Result<File> {
    // SAFETY: 1. `group` is open for the call; 2. the request reads a string, which `name` is.
    let result = unsafe { libc::ioctl(group.as_raw_fd(), BASE + 6, name.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(result) };
    Ok(File::from(owned))
}

/// VFIO_DEVICE_GET_REGION_INFO: where the region begins in the device's file, and its size.
pub(crate) fn region(device: &File, index: u32) -> io::Result<(u64, u64)> {
    let argsz = size::<vfio_region_info>();
    let mut info = vfio_region_info { argsz, index, ..Default::default() };
    with_struct(device, 8, &mut info)?;
    Ok((info.offset, info.size))
}

/// `struct vfio_irq_set` with one eventfd as its data.
#[repr(C)]
struct IrqSet {
    argsz: u32,
    flags: u32,
    index: u32,
    start: u32,
    count: u32,
    eventfd: RawFd,
}

const _: () = assert!(std::mem::size_of::<IrqSet>() == 24, "five words and a descriptor");

/// VFIO_DEVICE_SET_IRQS: vector 0 of interrupt kind `index` signals the eventfd.
pub(crate) fn set_eventfd(device: &File, index: u32, eventfd: &OwnedFd) -> io::Result<()> {
    const DATA_EVENTFD: u32 = 1 << 2;
    const ACTION_TRIGGER: u32 = 1 << 5;
    let mut set = IrqSet {
        argsz: size::<IrqSet>(),
        flags: DATA_EVENTFD | ACTION_TRIGGER,
        index,
        start: 0,
        count: 1,
        eventfd: eventfd.as_raw_fd(),
    };
    with_struct(device, 10, &mut set).map(drop)
}

/// VFIO_IOMMU_GET_INFO: the mask of page sizes.
pub(crate) fn page_sizes(container: &File) -> io::Result<u64> {
    let argsz = size::<vfio_iommu_type1_info>();
    let mut info = vfio_iommu_type1_info { argsz, ..Default::default() };
    with_struct(container, 12, &mut info)?;
    Ok(info.iova_pgsizes)
}

/// VFIO_IOMMU_MAP_DMA of one page of our memory; `flags`: 1 the device may read, 2 it may write.
pub(crate) fn map_page(container: &File, iova: u64, page: &Page, flags: u32) -> io::Result<()> {
    let argsz = size::<vfio_iommu_type1_dma_map>();
    let vaddr = page.0.addr().get() as u64;
    let size = PAGE_BYTES as u64;
    let mut map = vfio_iommu_type1_dma_map { argsz, flags, vaddr, iova, size };
    with_struct(container, 13, &mut map).map(drop)
}

/// VFIO_IOMMU_UNMAP_DMA; the bytes that were unmapped.
pub(crate) fn unmap(container: &File, iova: u64, bytes: u64) -> io::Result<u64> {
    let argsz = size::<vfio_iommu_type1_dma_unmap>();
    let mut unmap = vfio_iommu_type1_dma_unmap { argsz, iova, size: bytes, ..Default::default() };
    with_struct(container, 14, &mut unmap)?;
    Ok(unmap.size)
}

/// A page of memory that a device may read and write at any time. Only copies of its content are
/// handed out, so no reference to it ever exists.
#[derive(Debug)]
pub(crate) struct Page(NonNull<c_void>);

impl Page {
    /// A page of zeroes.
    pub(crate) fn new() -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let address =
            unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE_BYTES, access, MapFlags::PRIVATE) }?;
        NonNull::new(address).map(Self).ok_or_else(|| io::Error::other("a page at address 0"))
    }

    /// Its content now.
    pub(crate) fn read(&self) -> Vec<u8> {
        let words = self.0.as_ptr().cast::<u64>();
        let read = |index| {
            // SAFETY: 1. `index` is below the words of the page, which `new` mapped and only `drop`
            // unmaps; 2. the page is aligned; 3. volatile, because a device may write meanwhile.
            unsafe { words.wrapping_add(index).read_volatile() }
        };
        (0..PAGE_BYTES / 8).flat_map(|index| read(index).to_le_bytes()).collect()
    }

    /// Replaces its content; what goes beyond a page is left out.
    pub(crate) fn write(&self, content: &[u8]) {
        let words = self.0.as_ptr().cast::<u64>();
        for (index, bytes) in content.chunks_exact(8).take(PAGE_BYTES / 8).enumerate() {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            // SAFETY: as in `read`; 4. nobody else in this program writes: `Page` is not shared
            // between threads.
            unsafe { words.wrapping_add(index).write_volatile(u64::from_le_bytes(word)) };
        }
    }
}

impl Drop for Page {
    fn drop(&mut self) {
        // SAFETY: 1. `new` mapped exactly these bytes; 2. no reference into them exists. VFIO holds
        // pins of its own on pages that are still mapped for a device.
        // A page that stays is no harm to a program about to end.
        let _ = unsafe { munmap(self.0.as_ptr(), PAGE_BYTES) };
    }
}

//! What both interfaces ask of a VFIO device (linux/vfio.h).
#![expect(unsafe_code, reason = "ioctls")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_DEVICE_FEATURE_DMA_BUF, VFIO_DEVICE_FEATURE_GET, VFIO_IRQ_SET_ACTION_TRIGGER,
    VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_REQ_IRQ_INDEX, VFIO_REGION_INFO_FLAG_MMAP,
    vfio_region_info,
};

use crate::ioctl::{call, structures, vfio};

structures! {
    "3.6" vfio(8) => vfio_region_info, argsz, Plain;
    "3.6" vfio(10) => IrqSet, argsz, Plain;
    // as all of VFIO_DEVICE_FEATURE since 5.7; dma-bufs with CONFIG_VFIO_PCI_DMABUF
    "6.19" vfio(17) => DmaBufOf, argsz, Plain;
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

const _: () = assert!(size_of::<IrqSet>() == 24, "five words and a descriptor");

/// `struct vfio_device_feature` with a `struct vfio_device_feature_dma_buf` of one range as its data.
#[repr(C)]
struct DmaBufOf {
    argsz: u32,
    flags: u32,
    region_index: u32,
    open_flags: u32,
    dma_buf_flags: u32,
    nr_ranges: u32,
    offset: u64,
    length: u64,
}

const _: () = assert!(size_of::<DmaBufOf>() == 40, "six words and a range");

/// What the kernel says of a region: for the first six, of the BAR of that number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RegionInfo {
    /// Its length, bytes; 0 if there is none.
    pub(super) bytes: u64,
    /// Where the device's descriptor has it, bytes.
    pub(super) offset: u64,
    /// It can be mapped: memory, and whole pages of it.
    pub(super) mappable: bool,
}

/// Has the kernel write to `eventfd` when it wants `device` back.
pub(crate) fn announce_release(device: BorrowedFd<'_>, eventfd: BorrowedFd<'_>) -> io::Result<()> {
    let mut set = IrqSet {
        argsz: 0,
        flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        index: VFIO_PCI_REQ_IRQ_INDEX,
        start: 0,
        count: 1,
        eventfd: eventfd.as_raw_fd(),
    };
    call(device, &mut set).map(drop)
}

/// Where `device`'s descriptor has region `index`.
pub(super) fn region_info(device: BorrowedFd<'_>, index: u32) -> io::Result<RegionInfo> {
    let mut info = vfio_region_info { index, ..Default::default() };
    call(device, &mut info)?;
    let mappable = info.flags & VFIO_REGION_INFO_FLAG_MMAP != 0;
    Ok(RegionInfo { bytes: info.size, offset: info.offset, mappable })
}

/// A dma-buf of `bytes` bytes of region `index` from `offset`.
pub(crate) fn dma_buf(
    device: BorrowedFd<'_>,
    index: u32,
    (offset, bytes): (u64, u64),
) -> io::Result<OwnedFd> {
    let mut feature = DmaBufOf {
        argsz: 0,
        flags: VFIO_DEVICE_FEATURE_GET | VFIO_DEVICE_FEATURE_DMA_BUF,
        region_index: index,
        open_flags: (libc::O_RDWR | libc::O_CLOEXEC).cast_unsigned(),
        dma_buf_flags: 0,
        nr_ranges: 1,
        offset,
        length: bytes,
    };
    let raw = call(device, &mut feature)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

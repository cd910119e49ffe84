//! What both interfaces ask of a VFIO device (linux/vfio.h).
#![expect(unsafe_code, reason = "an ioctl")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_REQ_IRQ_INDEX,
    VFIO_TYPE,
};

/// `VFIO_DEVICE_SET_IRQS`.
const SET_IRQS: u32 = (VFIO_TYPE as u32) << 8 | (VFIO_BASE + 10);

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

/// Has the kernel write to `eventfd` when it wants `device` back.
pub(crate) fn announce_release(device: BorrowedFd<'_>, eventfd: BorrowedFd<'_>) -> io::Result<()> {
    let mut set = IrqSet {
        argsz: u32::try_from(size_of::<IrqSet>()).unwrap_or(u32::MAX),
        flags: VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER,
        index: VFIO_PCI_REQ_IRQ_INDEX,
        start: 0,
        count: 1,
        eventfd: eventfd.as_raw_fd(),
    };
    // SAFETY: 1. `device` is open for the call; 2. the structure is the one of the request, its size and
    // the number of descriptors in it are said, so the kernel stays inside; 3. the kernel takes a reference
    // of its own to the eventfd.
    let done = unsafe {
        libc::ioctl(device.as_raw_fd(), SET_IRQS as libc::Ioctl, std::ptr::from_mut(&mut set))
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

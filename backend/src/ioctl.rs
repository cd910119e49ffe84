//! Requests of the kernel's that take a structure (ioctl(2)).
//!
//! Which request a structure belongs to is said once, with its type, so that no call can pass another's: each
//! file of calls lists its own with [`structures!`](crate::ioctl::structures), and the kernel since which there
//! is the request.
#![expect(unsafe_code, reason = "ioctls: the kernel follows the structures that it is given")]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use iommufd_bindings::IOMMUFD_TYPE;
use vfio_bindings::bindings::vfio::{VFIO_BASE, VFIO_TYPE};

/// `_IO(VFIO_TYPE, VFIO_BASE + command)` (linux/vfio.h).
pub(crate) const fn vfio(command: u32) -> u32 {
    (VFIO_TYPE as u32) << 8 | (VFIO_BASE + command)
}

/// `_IO(IOMMUFD_TYPE, command)` (linux/iommufd.h).
pub(crate) const fn iommufd(command: u32) -> u32 {
    (IOMMUFD_TYPE as u32) << 8 | command
}

/// Opens a file that takes requests, to be read and written.
///
/// # Errors
/// What the kernel says.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).open(path)
}

/// What a request takes.
///
/// # Safety
/// 1. The kernel's header gives this structure for [`Structure::REQUEST`]. 2. [`Structure::say_size`] writes the
///    field in which the header has the structure's own size, by which the kernel knows where it ends.
pub(crate) unsafe trait Structure: Sized {
    /// The request.
    const REQUEST: u32;
    /// The first Linux that has it.
    const SINCE: &'static str;

    /// Says how long it is, bytes: a call does that, whatever is there before.
    fn say_size(&mut self, bytes: u32);
}

/// A structure in which the kernel follows no pointer.
///
/// # Safety
/// It has none, or none that the kernel looks at whatever the other fields say.
pub(crate) unsafe trait Plain: Structure {}

/// Lists structures: which request takes them, which field has their size, and since which Linux.
macro_rules! structures {
    ($($since:literal $request:expr => $structure:ty, $size:ident $(, $plain:ident)?;)+) => {$(
        // SAFETY: 1. the list has it so, from the kernel's header; 2. the field as well.
        unsafe impl $crate::ioctl::Structure for $structure {
            const REQUEST: u32 = $request;
            const SINCE: &'static str = $since;

            fn say_size(&mut self, bytes: u32) {
                self.$size = bytes;
            }
        }
        $(
            // SAFETY: the list says that no field of it is a pointer, from the kernel's header.
            unsafe impl $crate::ioctl::$plain for $structure {}
        )?
    )+};
}
pub(crate) use structures;

/// One call; what it returns.
///
/// # Errors
/// What the kernel says.
pub(crate) fn call<T: Plain>(fd: impl AsFd, argument: &mut T) -> io::Result<i32> {
    // SAFETY: the structure has no pointer.
    unsafe { call_with_pointers(fd, argument) }
}

/// One call with a structure that has pointers; what it returns.
///
/// # Safety
/// Memory that the structure points to is the kernel's to read and to write, as the request has it, for as long as
/// the request says.
///
/// # Errors
/// What the kernel says.
pub(crate) unsafe fn call_with_pointers<T: Structure>(
    fd: impl AsFd,
    argument: &mut T,
) -> io::Result<i32> {
    argument.say_size(size_of::<T>().try_into().map_err(io::Error::other)?);
    // SAFETY: 1. `fd` is open for the call; 2. by `Structure` the request takes what `argument` is, which says its
    // own size, so the kernel stays inside; 3. the caller answers for what it points to.
    let done = unsafe {
        libc::ioctl(fd.as_fd().as_raw_fd(), T::REQUEST as libc::Ioctl, std::ptr::from_mut(argument))
    };
    answered(done)
}

/// What an ioctl returned.
pub(crate) fn answered(done: i32) -> io::Result<i32> {
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

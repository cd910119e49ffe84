//! Taking over a descriptor that the command line names.
#![expect(unsafe_code, reason = "a number becomes an owned descriptor here and nowhere else")]

use std::fs;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::io::FdFlags;

/// Descriptors below are standard input, output and error.
const FIRST_FREE: RawFd = 3;

/// Takes over descriptor `raw`, which whoever started us left open.
///
/// To be called before the process opens anything of its own: a number that was not handed over could
/// otherwise be one of ours.
///
/// # Errors
/// Nothing is open there, or it is a standard stream.
pub(super) fn take_over(raw: RawFd) -> io::Result<OwnedFd> {
    let entry = Path::new("/proc/self/fd").join(raw.to_string());
    let is_open = fs::symlink_metadata(entry).is_ok();
    if raw < FIRST_FREE || !is_open {
        return Err(io::Error::from_raw_os_error(libc::EBADF));
    }
    // SAFETY: 1. it is open: looked up above, and no other thread runs that could close it;
    // 2. nobody else owns it: our caller has opened nothing yet, and it is no standard stream.
    let fd = unsafe { OwnedFd::from_raw_fd(raw) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}

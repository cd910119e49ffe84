//! Who is at the other end of a socket: two socket options that rustix does not wrap safely (its
//! `UCred` cannot hold process id 0, which the kernel gives for a peer in a foreign pid namespace).
#![expect(unsafe_code, reason = "getsockopt")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags};

/// `SO_PEERPIDFD` (Linux 6.5, include/uapi/asm-generic/socket.h).
const SO_PEERPIDFD: libc::c_int = 77;

/// The process that connected a socket.
#[derive(Debug)]
pub(crate) struct Peer {
    /// Its id; `None` for a process in a foreign pid namespace.
    pub(crate) pid: Option<Pid>,
    /// A handle of exactly that process; `None` where the kernel gives none.
    pub(crate) pidfd: Option<OwnedFd>,
}

impl Peer {
    /// The peer of `socket`.
    pub(crate) fn of(socket: &impl AsFd) -> Self {
        let pid = peer_pid(socket.as_fd()).ok().and_then(Pid::from_raw);
        let pidfd = peer_pidfd(socket.as_fd());
        // Before Linux 6.5 a process id has to do. It is the peer's own as long as the socket is
        // connected, which the caller sees before it uses the handle.
        let pidfd = pidfd.or_else(|_| {
            let pid = pid.ok_or(rustix::io::Errno::SRCH)?;
            rustix::process::pidfd_open(pid, PidfdFlags::empty())
        });
        Self { pid, pidfd: pidfd.ok() }
    }
}

fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<i32> {
    let mut credentials = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len: libc::socklen_t = 12;
    const { assert!(size_of::<libc::ucred>() == 12) };
    let (fd, value) = (socket.as_raw_fd(), (&raw mut credentials).cast());
    // SAFETY: 1. `fd` is open, it is borrowed; 2. the kernel writes at most `len` bytes, asserted
    // to be the size of `credentials`; 3. any three integers are a `ucred`.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, value, &raw mut len) };
    if result == 0 { Ok(credentials.pid) } else { Err(io::Error::last_os_error()) }
}

fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let mut pidfd: RawFd = -1;
    let mut len: libc::socklen_t = 4;
    const { assert!(size_of::<RawFd>() == 4) };
    let (fd, value) = (socket.as_raw_fd(), (&raw mut pidfd).cast());
    // SAFETY: 1. `fd` is open, it is borrowed; 2. the kernel writes at most `len` bytes, asserted
    // to be the size of `pidfd`.
    let result =
        unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_PEERPIDFD, value, &raw mut len) };
    if result != 0 || pidfd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: 1. the kernel has just made this descriptor for us; 2. nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(pidfd) })
}

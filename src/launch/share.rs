//! Descriptors that a process which we start is to have.

use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};

/// Something with a descriptor.
pub(super) trait Shared {
    /// Leaves the descriptor open in what is started until the result goes.
    fn leave_open(&self) -> io::Result<Open<'_>>;
}

impl<F: AsFd> Shared for F {
    fn leave_open(&self) -> io::Result<Open<'_>> {
        fcntl_setfd(self, FdFlags::empty())?;
        Ok(Open(self.as_fd()))
    }
}

/// A descriptor that stays open in what is started now.
#[derive(Debug)]
pub(super) struct Open<'a>(BorrowedFd<'a>);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        // It can fail only for a descriptor that is not open.
        let _ = fcntl_setfd(self.0, FdFlags::CLOEXEC);
    }
}

/// A file in memory with these bytes.
pub(super) fn file_of(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("viommu", MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(bytes)?;
    Ok(file.into())
}

/// Asks with one line, and waits for one. An end instead of it is [`io::ErrorKind::UnexpectedEof`].
pub(super) fn ask(mut socket: UnixStream, line: &str, within: Duration) -> io::Result<String> {
    socket.set_read_timeout(Some(within))?;
    // In one piece: a line that is formatted into a socket arrives in several.
    socket.write_all(format!("{line}\n").as_bytes())?;
    let mut answer = String::new();
    if BufReader::new(socket).read_line(&mut answer)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(answer.trim_end().to_owned())
}

/// A process's end as our own exit status, as shells tell it.
pub(super) fn exit_of(status: ExitStatus) -> u8 {
    let signal = status.signal().map(|signal| signal.saturating_add(128));
    let code = status.code().or(signal).unwrap_or(1);
    u8::try_from(code).unwrap_or(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::io::fcntl_getfd;

    #[test]
    fn a_descriptor_is_open_in_what_is_started_only_for_as_long_as_asked() {
        let file = file_of(b"x").unwrap();
        let open = file.leave_open().unwrap();
        assert_eq!(fcntl_getfd(&file).unwrap(), FdFlags::empty());
        drop(open);
        assert_eq!(fcntl_getfd(&file).unwrap(), FdFlags::CLOEXEC);
    }

    #[test]
    fn an_end_by_a_signal_is_128_and_its_number() {
        assert_eq!(exit_of(ExitStatus::from_raw(15)), 143);
        assert_eq!(exit_of(ExitStatus::from_raw(3 << 8)), 3);
    }
}

//! SIGTERM and SIGINT as something to poll.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::signal::register_signal_handler;

/// Readable once a signal has come. It lives as long as the process, for so does the handler.
static STOP: OnceLock<OwnedFd> = OnceLock::new();

/// The wish to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct StopRequest {
    fd: BorrowedFd<'static>,
}

impl StopRequest {
    /// From now on SIGTERM and SIGINT do not kill the process: they make this readable.
    pub(super) fn new() -> io::Result<Self> {
        let new = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let fd = STOP.get_or_init(|| new).as_fd();
        for signal in [libc::SIGTERM, libc::SIGINT] {
            register_signal_handler(signal, on_signal)
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        }
        Ok(Self { fd })
    }
}

impl AsFd for StopRequest {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}

/// Does nothing but one write to an eventfd that is never closed: that may happen at any moment.
extern "C" fn on_signal(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
    if let Some(fd) = STOP.get() {
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }
}

//! Signals as something to poll.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};
use vmm_sys_util::signal::register_signal_handler;

/// Readable once SIGTERM or SIGINT has come. It lives as long as the process, for so does the handler.
static STOP: OnceLock<OwnedFd> = OnceLock::new();

/// Readable while a SIGUSR1 is not answered; lives as long.
static REPORT: OnceLock<OwnedFd> = OnceLock::new();

type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);

/// Signals that have come.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Signals {
    fd: BorrowedFd<'static>,
}

impl Signals {
    /// From now on SIGTERM and SIGINT do not kill the process: they make this readable.
    pub(crate) fn stop() -> io::Result<Self> {
        Self::new(&STOP, &[libc::SIGTERM, libc::SIGINT], on_stop)
    }

    /// From now on SIGUSR1 does not kill the process: it makes this readable.
    pub(crate) fn report() -> io::Result<Self> {
        Self::new(&REPORT, &[libc::SIGUSR1], on_report)
    }

    fn new(
        slot: &'static OnceLock<OwnedFd>,
        signals: &[c_int],
        handler: Handler,
    ) -> io::Result<Self> {
        let new = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let fd = slot.get_or_init(|| new).as_fd();
        for signal in signals {
            register_signal_handler(*signal, handler)
                .map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
        }
        Ok(Self { fd })
    }

    /// Forgets those that have come: no longer readable until the next one.
    pub(crate) fn forget(self) {
        // empty already is as good
        let _ = rustix::io::read(self.fd, &mut [0; 8]);
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd
    }
}

extern "C" fn on_stop(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
    note(&STOP);
}

extern "C" fn on_report(_signal: c_int, _info: *mut libc::siginfo_t, _context: *mut c_void) {
    note(&REPORT);
}

/// Does nothing but one write to an eventfd that is never closed: that may happen at any moment.
fn note(slot: &OnceLock<OwnedFd>) {
    if let Some(fd) = slot.get() {
        let _ = rustix::io::write(fd, &1_u64.to_ne_bytes());
    }
}

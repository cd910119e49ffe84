//! SIGTERM and SIGINT end the process with exit code 0, at whatever it is.
//!
//! That is safe for a device: what the guest was told to be on the disk is there, and the IOMMU's
//! daemon sees the connection end and waits for this process no longer.

use std::ffi::{c_int, c_void};
use std::fs;
use std::io;
use std::path::PathBuf;
use std::process;
use std::sync::OnceLock;
use std::thread;

use libc::{SIGINT, SIGTERM, siginfo_t};
use log::info;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::register_signal_handler;

/// What the handler tells the waiting thread through.
static SIGNALLED: OnceLock<EventFd> = OnceLock::new();

/// Removes `socket` and ends the process when SIGTERM or SIGINT comes. Call it once.
///
/// # Errors
/// What the kernel says.
pub(crate) fn exit_on_signals(socket: PathBuf) -> io::Result<()> {
    let event = EventFd::new(0)?;
    let waiting = event.try_clone()?;
    SIGNALLED.set(event).map_err(|_| io::Error::other("signals are handled already"))?;
    thread::Builder::new().name("signals".into()).spawn(move || {
        let code = match waiting.read() {
            Ok(_) => 0,
            Err(_) => 1,
        };
        info!("ending");
        // the name may be gone already; nothing else is left to tidy up
        fs::remove_file(&socket).unwrap_or_default();
        process::exit(code)
    })?;
    for signal in [SIGTERM, SIGINT] {
        register_signal_handler(signal, on_signal)?;
    }
    Ok(())
}

/// Runs inside whatever thread the signal interrupts: a `write` is all that it may do.
extern "C" fn on_signal(_signal: c_int, _about: *mut siginfo_t, _context: *mut c_void) {
    if let Some(event) = SIGNALLED.get() {
        event.write(1).unwrap_or_default();
    }
}

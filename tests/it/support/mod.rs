//! Everybody but the daemon.

pub(crate) mod daemon;
pub(crate) mod device;
pub(crate) mod guest;
pub(crate) mod queue;
pub(crate) mod vmm;
pub(crate) mod wire;

use std::time::{Duration, Instant};

/// How long anything may take before a test fails. Machines that run tests can be slow; nothing here
/// waits this long when all is well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Waits until `done` holds, looking again and again.
///
/// # Panics
/// It does not hold within [`PATIENCE`].
pub(crate) fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(100));
    }
}

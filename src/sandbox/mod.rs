//! The sandbox: what the daemon can no longer do once it serves.
//!
//! What it is: no new privileges, no capabilities, landlock, and a seccomp allow-list, entered when all
//! files and sockets are open. What it guarantees: nothing can be opened or executed any more, no network
//! is reached, and a system call that serving does not need ends the process. What it leaves out: limits
//! on memory and time, which whoever starts the daemon can set.
//!
//! Each part that the kernel lacks is left out and said once; the others still hold.

mod landlock;
mod privileges;
mod syscalls;

use std::fmt;
use std::path::PathBuf;

use rustix::thread::CapabilitySet;

/// What the sandbox could not do here, part by part.
#[derive(Debug, Default)]
pub struct Report {
    missing: Vec<Missing>,
}

/// A part of the sandbox that is not in force, and why.
#[derive(Debug)]
struct Missing {
    part: &'static str,
    why: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.missing.is_empty() {
            return f.write_str("in force");
        }
        f.write_str("in force, but for ")?;
        for (n, Missing { part, why }) in self.missing.iter().enumerate() {
            let comma = if n == 0 { "" } else { ", " };
            write!(f, "{comma}{part} ({why})")?;
        }
        Ok(())
    }
}

impl Report {
    /// True if every part is in force.
    #[must_use]
    pub const fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    fn note(&mut self, part: &'static str, done: Result<(), String>) {
        if let Err(why) = done {
            self.missing.push(Missing { part, why });
        }
    }
}

/// Enters the sandbox, for good. `sockets` are the files that the daemon removes when it ends; in their
/// folders nothing else than removing is possible.
///
/// With `vfio` the calls that map guest memory for the host's IOMMU stay possible, and the capability
/// to pin more than RLIMIT_MEMLOCK stays, if the process has it.
///
/// Call it on the only thread, when everything is open.
#[must_use]
pub fn enter(sockets: &[PathBuf], vfio: bool) -> Report {
    let kept = if vfio { CapabilitySet::IPC_LOCK } else { CapabilitySet::empty() };
    let mut report = Report::default();
    report.note("no new privileges", privileges::gain_none());
    report.note("landlock", landlock::restrict(sockets));
    report.note("dropped capabilities", privileges::drop_all_but(kept));
    report.note("seccomp", syscalls::allow_only_serving(vfio));
    report
}

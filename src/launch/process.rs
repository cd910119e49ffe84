//! A process that we start.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use super::share::Shared;
use super::{LaunchError, system};

/// A time that the kernel cannot be told.
pub(super) fn too_long() -> LaunchError {
    system("a limit of time")(io::ErrorKind::InvalidInput.into())
}

/// A process that is killed if it is left behind.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    /// Readable when it has ended.
    ended: OwnedFd,
}

impl Process {
    /// Starts it; what is `shared` is open in it under the same numbers.
    pub(super) fn start(mut command: Command, shared: &[&dyn Shared]) -> Result<Self, LaunchError> {
        let program = command.get_program().to_owned();
        let open: Result<Vec<_>, _> = shared.iter().map(|one| one.leave_open()).collect();
        let open = open.map_err(system("leaving descriptors open"))?;
        let child = command.spawn().map_err(|source| LaunchError::Start { program, source })?;
        drop(open);
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(|errno| system("pidfd_open")(errno.into()))?;
        Ok(Self { child, ended })
    }

    pub(super) fn signal(&self, signal: Signal) {
        // It may have ended, which is what the signal is for.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits for its end, but no longer than `limit`; how it has ended, if it has.
    pub(super) fn ends_within(
        &mut self,
        limit: Duration,
    ) -> Result<Option<ExitStatus>, LaunchError> {
        let limit = Timespec::try_from(limit).map_err(|_| too_long())?;
        let mut watched = [PollFd::new(&self.ended, PollFlags::IN)];
        retry_on_intr(|| poll(&mut watched, Some(&limit)))
            .map_err(|errno| system("poll")(errno.into()))?;
        self.child.try_wait().map_err(system("waiting for a process"))
    }
}

/// Readable when the process has ended.
impl AsFd for Process {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! From a QEMU that was started to its end: what happens meanwhile, and what comes of it.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::Signal;

use super::process::{Process, too_long};
use super::qmp::Qmp;
use super::{LaunchError, system};
use crate::daemon::signal::Signals;

/// How long a process may take to end once it has closed its connections, or was asked to end: QEMU's memory
/// is given back then, which takes seconds for hundreds of gigabytes.
const LEAVES_WITHIN: Duration = Duration::from_secs(30);

/// What may happen, in the order in which it is looked at when several did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    /// The beginning is over.
    Begun,
    /// QEMU has ended.
    QemuEnded,
    /// The daemon has ended.
    DaemonEnded,
    /// Somebody wants all of it to end.
    Asked,
    /// What was awaited did not come in time.
    Late,
}

/// The way to a running guest, gone by a thread: signals and ends are heard meanwhile.
#[derive(Debug)]
pub(super) struct Beginning<'scope> {
    /// What comes of it: QEMU's monitor.
    pub(super) thread: ScopedJoinHandle<'scope, Result<Qmp, LaunchError>>,
    /// The thread holds the other end of it, so it can be read when the thread is over.
    pub(super) over: UnixStream,
}

/// Both processes, and how far all is.
#[derive(Debug)]
pub(super) struct Watch<'scope> {
    qemu: Process,
    /// None when it has ended.
    daemon: Option<Process>,
    /// None when it is over.
    beginning: Option<Beginning<'scope>>,
    /// QEMU's monitor, once the guest runs: it is QEMU's as long as it is open.
    monitor: Option<Qmp>,
    /// Somebody has asked for the end.
    asked: bool,
    /// One of the processes has left the others: until when it may end by itself, and what is told if it
    /// does not.
    leaving: Option<(Instant, LaunchError)>,
}

impl<'scope> Watch<'scope> {
    pub(super) const fn new(
        qemu: Process,
        daemon: Process,
        beginning: Option<Beginning<'scope>>,
    ) -> Self {
        let daemon = Some(daemon);
        Self { qemu, daemon, beginning, monitor: None, asked: false, leaving: None }
    }

    /// Waits until QEMU has ended, and passes on the wish to end; QEMU's status.
    ///
    /// # Errors
    /// QEMU has ended before its guest ran, or has to; then it goes with this.
    pub(super) fn until_the_end(mut self, stop: Signals) -> Result<ExitStatus, LaunchError> {
        loop {
            for event in self.events(stop)? {
                if event == Event::Asked {
                    stop.forget();
                }
                if let Some(status) = self.step(event)? {
                    return Ok(status);
                }
            }
        }
    }

    /// Waits for events.
    fn events(&self, stop: Signals) -> Result<Vec<Event>, LaunchError> {
        let mut watched = Vec::new();
        watched.extend(self.beginning.as_ref().map(|one| (Event::Begun, one.over.as_fd())));
        watched.push((Event::QemuEnded, self.qemu.as_fd()));
        watched.extend(self.daemon.as_ref().map(|one| (Event::DaemonEnded, one.as_fd())));
        watched.push((Event::Asked, stop.as_fd()));
        let (events, fds): (Vec<_>, Vec<_>) = watched.into_iter().unzip();
        let mut fds: Vec<_> =
            fds.into_iter().map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        let left = |until: &Instant| until.saturating_duration_since(Instant::now());
        let limit = self.leaving.as_ref().map(|(until, _)| Timespec::try_from(left(until)));
        let limit = limit.transpose().map_err(|_| too_long())?;
        match poll(&mut fds, limit.as_ref()) {
            Ok(0) => return Ok(vec![Event::Late]),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(system("poll")(errno.into())),
        }
        let happened = events.into_iter().zip(fds).filter(|(_, fd)| !fd.revents().is_empty());
        Ok(happened.map(|(event, _)| event).collect())
    }

    /// What comes of an event: QEMU's status if that is the end.
    fn step(&mut self, event: Event) -> Result<Option<ExitStatus>, LaunchError> {
        match event {
            Event::Begun => self.begun()?,
            Event::QemuEnded => return self.qemu_ended(),
            Event::DaemonEnded => self.daemon_ended()?,
            Event::Asked => {
                self.asked = true;
                self.qemu.signal(Signal::TERM);
            }
            Event::Late => {
                if let Some((_, why)) = self.leaving.take() {
                    return Err(self.without_qemu(why));
                }
            }
        }
        Ok(None)
    }

    /// The guest runs, or never will. If a connection is gone, its owner's end tells more than that.
    fn begun(&mut self) -> Result<(), LaunchError> {
        let Some(beginning) = self.beginning.take() else { return Ok(()) };
        match beginning.thread.join().unwrap_or_else(|_| Err(LaunchError::Panicked)) {
            Ok(monitor) => self.monitor = Some(monitor),
            Err(error) if is_silence(&error) => self.leave(error),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn qemu_ended(&mut self) -> Result<Option<ExitStatus>, LaunchError> {
        let Some(status) = self.qemu.ends_within(Duration::ZERO)? else { return Ok(None) };
        if let Some(daemon) = &mut self.daemon {
            // QEMU's connection is closed, so it ends by itself
            daemon.ends_within(LEAVES_WITHIN)?;
        }
        if self.monitor.is_some() || self.asked {
            Ok(Some(status))
        } else {
            Err(LaunchError::QemuEnded(status))
        }
    }

    /// A daemon whose front-end leaves ends by itself, and QEMU leaves it before it ends: then that end is
    /// awaited. Else, and where QEMU goes on without its IOMMU, it is ended, for the devices keep their last
    /// mappings.
    fn daemon_ended(&mut self) -> Result<(), LaunchError> {
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        let Some(status) = daemon.ends_within(Duration::ZERO)? else { return Ok(()) };
        self.daemon = None;
        let error = LaunchError::DaemonEnded(status);
        if !status.success() {
            return Err(self.without_qemu(error));
        }
        self.leave(error);
        Ok(())
    }

    /// Waits for an end from now on, if it does not already.
    fn leave(&mut self, why: LaunchError) {
        if self.leaving.is_none() {
            self.leaving = Some((Instant::now() + LEAVES_WITHIN, why));
        }
    }

    /// Ends QEMU; what is told then. A QEMU that does not end is killed with this.
    fn without_qemu(&mut self, why: LaunchError) -> LaunchError {
        self.qemu.signal(Signal::TERM);
        self.qemu.ends_within(LEAVES_WITHIN).err().unwrap_or(why)
    }
}

/// Whether that only says that a connection is gone.
fn is_silence(error: &LaunchError) -> bool {
    use super::qmp::QmpError;
    let closed =
        [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset, io::ErrorKind::UnexpectedEof];
    match error {
        LaunchError::Qmp(QmpError::Ended) => true,
        LaunchError::Qmp(QmpError::Io(source)) | LaunchError::System { source, .. } => {
            closed.contains(&source.kind())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command, &[]).unwrap()
    }

    /// It would end by itself only long after the test.
    fn lives() -> Process {
        shell("exec sleep 1000")
    }

    /// It has ended, with that status.
    fn ended(status: i32) -> Process {
        let mut process = shell(&format!("exit {status}"));
        assert!(process.ends_within(LEAVES_WITHIN).unwrap().is_some());
        process
    }

    fn status(code: i32) -> ExitStatus {
        std::os::unix::process::ExitStatusExt::from_raw(code << 8)
    }

    /// A watch over a guest that runs.
    fn running(qemu: Process, daemon: Process) -> Watch<'static> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let monitor = Some(Qmp::new(ours, LEAVES_WITHIN).unwrap());
        Watch { monitor, ..Watch::new(qemu, daemon, None) }
    }

    #[test]
    fn a_qemu_that_leaves_the_daemon_and_ends_has_its_own_status() {
        let mut watch = running(ended(3), ended(0));
        assert_eq!(watch.step(Event::DaemonEnded).unwrap(), None);
        assert_eq!(watch.step(Event::QemuEnded).unwrap(), Some(status(3)));
    }

    #[test]
    fn a_daemon_that_fails_takes_qemu_along() {
        let mut watch = running(lives(), ended(1));
        let told = watch.step(Event::DaemonEnded).unwrap_err();
        assert!(matches!(told, LaunchError::DaemonEnded(ended) if ended == status(1)), "{told}");
        assert!(watch.qemu.ends_within(Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn a_qemu_that_goes_on_without_its_daemon_is_ended_when_it_is_late() {
        let mut watch = running(lives(), ended(0));
        assert_eq!(watch.step(Event::DaemonEnded).unwrap(), None);
        let told = watch.step(Event::Late).unwrap_err();
        assert!(matches!(told, LaunchError::DaemonEnded(ended) if ended == status(0)), "{told}");
        assert!(watch.qemu.ends_within(Duration::ZERO).unwrap().is_some());
    }

    #[test]
    fn the_wish_to_end_reaches_qemu_after_the_daemons_end_too() {
        let mut watch = running(lives(), ended(0));
        for event in [Event::DaemonEnded, Event::Asked] {
            assert_eq!(watch.step(event).unwrap(), None);
        }
        assert!(watch.qemu.ends_within(LEAVES_WITHIN).unwrap().is_some());
        assert!(watch.step(Event::QemuEnded).unwrap().is_some());
    }

    #[test]
    fn a_qemu_that_ends_before_the_guest_ran_is_a_failure_unless_it_was_asked_to() {
        let mut watch = Watch::new(ended(1), ended(0), None);
        let told = watch.step(Event::QemuEnded).unwrap_err();
        assert!(matches!(told, LaunchError::QemuEnded(ended) if ended == status(1)), "{told}");
        let mut watch = Watch::new(lives(), ended(0), None);
        assert_eq!(watch.step(Event::Asked).unwrap(), None);
        assert!(watch.qemu.ends_within(LEAVES_WITHIN).unwrap().is_some());
        assert!(watch.step(Event::QemuEnded).unwrap().is_some());
    }

    /// A beginning that ends with this.
    fn begun(with: LaunchError) -> Result<Option<ExitStatus>, LaunchError> {
        std::thread::scope(|scope| {
            let (over, _) = UnixStream::pair().unwrap();
            let thread = scope.spawn(|| Err(with));
            let mut watch = Watch::new(ended(1), lives(), Some(Beginning { thread, over }));
            watch.step(Event::Begun)?;
            // the daemon is killed when it does not end
            watch.daemon = None;
            watch.step(Event::QemuEnded)
        })
    }

    #[test]
    fn a_connection_that_is_gone_is_told_as_its_owners_end() {
        for gone in [
            LaunchError::Qmp(super::super::qmp::QmpError::Ended),
            system("the daemon's socket")(io::ErrorKind::UnexpectedEof.into()),
        ] {
            let told = begun(gone).unwrap_err();
            assert!(matches!(told, LaunchError::QemuEnded(ended) if ended == status(1)), "{told}");
        }
    }

    #[test]
    fn a_refusal_is_told_as_it_is() {
        let told = begun(LaunchError::Refused("error no".to_owned())).unwrap_err();
        assert!(matches!(&told, LaunchError::Refused(why) if why == "error no"), "{told}");
    }
}

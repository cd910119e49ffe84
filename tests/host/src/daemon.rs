//! The daemon's process.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait_until;

/// Where it is in the guest.
const PROGRAM: &str = "/bin/vhost-user-iommu";

/// What it says when it serves.
const SERVING: &str = "waiting for a front-end";

/// A daemon in a folder of its own. Dropped, it is killed.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    folder: PathBuf,
}

impl Daemon {
    /// Starts one and waits until it serves. Its log is `folder/daemon.log`, appended to by each.
    ///
    /// # Errors
    /// It ends, or does not come to serve; the error has its last words.
    pub(crate) fn start(folder: &str, options: &[&str]) -> io::Result<Self> {
        Self::spawn(Command::new(PROGRAM), folder, options)
    }

    /// The same where `command` starts the program: under a limit, say.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub(crate) fn spawn(mut command: Command, folder: &str, options: &[&str]) -> io::Result<Self> {
        let folder = PathBuf::from(folder);
        fs::create_dir_all(&folder)?;
        let log = File::create(folder.join("daemon.log"))?;
        command.arg("--socket-path").arg(folder.join("iommu.sock")).args(options);
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut daemon = Self { child, folder };
        let mut ended = false;
        wait_until("the daemon serves", || {
            ended = daemon.child.try_wait().is_ok_and(|status| status.is_some());
            ended || daemon.log().contains(SERVING)
        })?;
        if ended { Err(daemon.wrong("the daemon ended")) } else { Ok(daemon) }
    }

    /// The socket for front-ends.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("iommu.sock")
    }

    /// Its log so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("daemon.log")).unwrap_or_default()
    }

    /// An error with its last words.
    pub(crate) fn wrong(&self, what: &str) -> io::Error {
        let log = self.log();
        let said = log.lines().rev().take(3).collect::<Vec<_>>().join(" / ");
        io::Error::other(format!("{what}; its log ends, last line first: {said}"))
    }

    /// SIGTERM; it must end with status 0.
    ///
    /// # Errors
    /// It ends otherwise.
    pub(crate) fn end(mut self) -> io::Result<Self> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() { Ok(self) } else { Err(self.wrong(&status.to_string())) }
    }

    /// SIGKILL; it is gone when this returns.
    ///
    /// # Errors
    /// It cannot be killed.
    pub(crate) fn kill(mut self) -> io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Memory that it has pinned, KiB (proc_pid_status(5)).
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn pinned_kib(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmPin:"));
        let number = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
        number.ok_or_else(|| io::Error::other("no VmPin"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // it may have ended already, which is just as well
        let _ = self.child.kill();
        let _ = self.child.wait();
        copy_to_console(&self.folder.join("daemon.log"));
    }
}

/// The console is what is left of this machine when it is off.
fn copy_to_console(log: &Path) {
    eprintln!("-- {}:\n{}", log.display(), fs::read_to_string(log).unwrap_or_default());
}

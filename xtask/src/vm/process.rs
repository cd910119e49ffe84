//! A process that runs beside us: started with its output in a file, watched, ended in time.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::command;
use crate::error::{Error, Result};

/// How long a process may take to end once it is asked to.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How often a path that is to appear is looked for.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A tick of the kernel's processor clocks: Linux shows a hundred in a second on all machines that run
/// QEMU here.
const TICK: Duration = Duration::from_millis(10);

/// The moment at which a run is given up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
}

impl Deadline {
    /// That long from now.
    pub(crate) fn after(limit: Duration) -> Self {
        Self { at: Instant::now() + limit, limit }
    }

    /// The time left; zero when it is over.
    pub(crate) fn left(self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }

    /// The error for what did not come in time.
    pub(crate) fn missed(self, what: impl Into<String>) -> Error {
        Error::Late { what: what.into(), seconds: self.limit.as_secs() }
    }
}

/// A running process. It is killed when this value goes, and by the kernel when we die.
#[derive(Debug)]
pub(crate) struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it in `dir`, its output in `dir/NAME.log`.
    ///
    /// # Errors
    /// The log cannot be made or the program not started.
    pub(crate) fn start(name: &'static str, command: Command, dir: &Path) -> Result<Self> {
        let mut command = bound_to_us(command);
        command.stdin(Stdio::null());
        Self::start_with(name, command, dir, |command, log| {
            command.stdout(log);
        })
    }

    /// As [`Process::start`], but with pipes to its standard input and from its standard output;
    /// only standard error goes to the log.
    ///
    /// # Errors
    /// The log cannot be made or the program not started.
    pub(crate) fn start_piped(name: &'static str, command: Command, dir: &Path) -> Result<Self> {
        let mut command = bound_to_us(command);
        command.stdin(Stdio::piped());
        Self::start_with(name, command, dir, |command, _| {
            command.stdout(Stdio::piped());
        })
    }

    fn start_with(
        name: &'static str,
        mut command: Command,
        dir: &Path,
        stdout: impl FnOnce(&mut Command, File),
    ) -> Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .map_err(Error::file("make", &log))?;
        let copy = file.try_clone().map_err(Error::file("use", &log))?;
        stdout(&mut command, copy);
        let child = command
            .stderr(file)
            .current_dir(dir)
            .spawn()
            .map_err(|source| Error::Spawn { program: command::name(&command), source })?;
        Ok(Self { name, child, log })
    }

    /// The process itself.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// What it has written so far.
    pub(crate) fn log_text(&self) -> String {
        // a log that cannot be read is as good as an empty one: what is looked for is not there
        fs::read(&self.log)
            .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Fails if the process has ended.
    ///
    /// # Errors
    /// It has; the error carries its last words.
    pub(crate) fn running(&mut self) -> Result<()> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(self.ended(status)),
            Err(error) => Err(Error::Wrong(format!("{}: {error}", self.name))),
        }
    }

    /// Waits until a path exists that the process makes.
    ///
    /// # Errors
    /// The process ended, or the path did not come in time.
    pub(crate) fn until_path(&mut self, path: &Path, deadline: Deadline) -> Result<()> {
        self.until(&path.display().to_string(), deadline, |_| path.exists())
    }

    /// Waits until something holds that the process brings about.
    ///
    /// # Errors
    /// The process ended, or it did not come in time.
    pub(crate) fn until(
        &mut self,
        what: &str,
        deadline: Deadline,
        holds: impl Fn(&Self) -> bool,
    ) -> Result<()> {
        while !holds(self) {
            self.running()?;
            if deadline.left().is_zero() {
                return Err(deadline.missed(format!("{what} of {}", self.name)));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    /// Waits for the process to end by itself.
    ///
    /// # Errors
    /// It does not end in time.
    pub(crate) fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        let deadline = Deadline::after(within);
        let pid = self.pid();
        let system = |errno: rustix::io::Errno| Error::Wrong(format!("waiting: {errno}"));
        if matches!(self.child.try_wait(), Ok(None)) {
            let watched = pidfd_open(pid, PidfdFlags::empty()).map_err(system)?;
            let mut ended = [PollFd::new(&watched, PollFlags::IN)];
            let time = Timespec::try_from(deadline.left()).unwrap_or_default();
            if poll(&mut ended, Some(&time)).map_err(system)? == 0 {
                return Err(deadline.missed(format!("the end of {}", self.name)));
            }
        }
        self.child.wait().map_err(|error| Error::Wrong(format!("{}: {error}", self.name)))
    }

    /// Asks the process to end (SIGTERM) and expects that it does so with status 0.
    ///
    /// # Errors
    /// It does not end in time, or with another status.
    pub(crate) fn end(&mut self) -> Result<()> {
        self.running()?;
        self.signal(Signal::TERM)?;
        let status = self.wait(END_WITHIN)?;
        if status.success() { Ok(()) } else { Err(self.ended(status)) }
    }

    /// Kills the process (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// It had ended before.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.running()?;
        self.signal(Signal::KILL)?;
        self.wait(END_WITHIN).map(drop)
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// The process is gone.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill_process(self.pid(), signal)
            .map_err(|errno| Error::Wrong(format!("cannot signal {}: {errno}", self.name)))
    }

    /// The processor time that it has used, to 10 ms, as the kernel counts it (proc_pid_stat(5)).
    ///
    /// # Errors
    /// The process is gone.
    pub(crate) fn processor_time(&self) -> Result<Duration> {
        let path = format!("/proc/{}/stat", self.pid().as_raw_nonzero());
        let stat = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        // user and system time are fields 14 and 15; the second, the name, ends with the last bracket
        let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
        let ticks = fields.skip(11).take(2).map(|field| field.parse().unwrap_or(0)).sum::<u64>();
        Ok(TICK * u32::try_from(ticks).unwrap_or(u32::MAX))
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    fn ended(&self, status: ExitStatus) -> Error {
        Error::Failed {
            program: self.name.to_owned(),
            status,
            output: command::tail(&self.log_text(), 8),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may have ended already, which is just as well
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Has the kernel kill the process when we die, whatever we die of. `setpriv` is part of
/// util-linux; without it a killed run leaves its processes behind.
fn bound_to_us(command: Command) -> Command {
    if !command::exists("setpriv") {
        return command;
    }
    let mut bound = Command::new("setpriv");
    bound.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => bound.env(name, value),
            None => bound.env_remove(name),
        };
    }
    bound
}

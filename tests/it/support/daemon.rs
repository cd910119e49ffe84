//! The daemon's process, its files and its end.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::wait_until;

/// After this a daemon is killed, and with it whatever waits for it.
const WATCHDOG: Duration = Duration::from_secs(60);

/// What a daemon logs unless a test says otherwise.
const DEBUG: [&str; 2] = ["--log-level", "debug"];

/// The binary under test.
pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_vhost-user-iommu");

/// The architecture that all tests run with: what `VIOMMU_IT_ARCH` says, where a test names none.
fn architecture(options: &[&str]) -> Vec<String> {
    match std::env::var("VIOMMU_IT_ARCH") {
        Ok(arch) if !options.contains(&"--arch") => vec!["--arch".to_owned(), arch],
        _ => Vec::new(),
    }
}

/// A running daemon in a folder of its own. Dropped, it is killed; its folder stays if the test failed.
pub(crate) struct Daemon {
    child: Child,
    folder: Option<TempDir>,
    watchdog: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
}

impl Daemon {
    /// A daemon for one endpoint, 0000:00:02.0, with a device socket.
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// The same, with further options.
    pub(crate) fn with(options: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("viommu-it-").tempdir().unwrap();
        let endpoint = format!("00:02.0,socket={}", folder.path().join("02.0").display());
        let mut all = vec!["--endpoint", endpoint.as_str()];
        all.extend(options);
        Self::in_folder(folder, &all)
    }

    /// A daemon with these options and a socket in `folder`.
    pub(crate) fn in_folder(folder: TempDir, options: &[&str]) -> Self {
        let log = File::create(folder.path().join("daemon.log")).unwrap();
        let child = Command::new(BINARY)
            .arg("--socket-path")
            .arg(folder.path().join("vu"))
            .args(if options.contains(&"--log-level") { &[][..] } else { &DEBUG })
            .args(options)
            .args(architecture(options))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let watchdog = watch(&child, folder.path().join("daemon.log"));
        let mut daemon = Self { child, folder: Some(folder), watchdog: Some(watchdog) };
        wait_until("the daemon listens", || {
            assert_eq!(daemon.child.try_wait().unwrap(), None, "{}", daemon.log());
            daemon.log().contains("waiting for a front-end")
        });
        daemon
    }

    /// The folder with the sockets and the log.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.as_ref().unwrap().path()
    }

    /// The front-ends' socket.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder().join("vu")
    }

    /// The socket of the device process of 0000:00:02.0.
    pub(crate) fn device_socket(&self) -> PathBuf {
        self.folder().join("02.0")
    }

    /// A new connection of a front-end.
    pub(crate) fn connect(&self) -> UnixStream {
        UnixStream::connect(self.socket()).unwrap()
    }

    /// The whole log.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder().join("daemon.log")).unwrap()
    }

    /// Waits until the log has a line with `text`.
    pub(crate) fn wait_for_log(&self, text: &str) {
        wait_until(text, || self.log().contains(text));
    }

    /// How many lines of the log hold `text`.
    pub(crate) fn count_in_log(&self, text: &str) -> usize {
        self.log().lines().filter(|line| line.contains(text)).count()
    }

    /// The value that the last counters line has for `name`.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        let log = self.log();
        let line = log.lines().rev().find(|line| line.contains("counters: ")).unwrap();
        let key = format!("{name}=");
        let value = line.split_whitespace().find_map(|word| word.strip_prefix(&key)).unwrap();
        value.parse().unwrap()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Descriptors that it has open.
    pub(crate) fn open_fds(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }

    /// Threads that it has.
    pub(crate) fn threads(&self) -> usize {
        fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    /// Its resident memory, KiB.
    pub(crate) fn rss_kib(&self) -> u64 {
        self.status_kib("VmRSS:")
    }

    /// Its resident memory that it shares with nobody and that is no file's, KiB.
    pub(crate) fn private_kib(&self) -> u64 {
        self.status_kib("RssAnon:")
    }

    fn status_kib(&self, name: &str) -> u64 {
        let status = File::open(format!("/proc/{}/status", self.pid())).unwrap();
        let lines = BufReader::new(status).lines().map(Result::unwrap);
        let line = lines.into_iter().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Processor time that it has used so far, clock ticks.
    pub(crate) fn cpu_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        let (_, after_name) = stat.rsplit_once(')').unwrap();
        let fields: Vec<_> = after_name.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM; how it ended.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some((done, thread)) = self.watchdog.take() {
            drop(done);
            let _ = thread.join();
        }
        if let Some(folder) = self.folder.take().filter(|_| std::thread::panicking()) {
            let kept = folder.keep();
            let _ = writeln!(std::io::stderr(), "kept: {}/daemon.log", kept.display());
        }
    }
}

/// Kills `child` when it is not done with in time. A daemon that is gone ends every wait for it.
fn watch(child: &Child, log: PathBuf) -> (mpsc::Sender<()>, JoinHandle<()>) {
    let pid = Pid::from_child(child);
    let (done, is_done) = mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        if is_done.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
            let _ = writeln!(std::io::stderr(), "watchdog: daemon killed, see {}", log.display());
            let _ = kill_process(pid, Signal::KILL);
        }
    });
    (done, thread)
}

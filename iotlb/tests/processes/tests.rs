//! The daemon's side of each test.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use rustix::process::{Pid, Signal};
use viommu_iotlb::{DeviceEvent, DrainReport, HubConfig, StuckPolicy};
use viommu_pgtable::Access;

use crate::device::{STAY, stays};
use crate::support::{Daemon, ENDPOINT, PATIENCE};

/// Long enough to see that something waits.
const A_WHILE: Duration = Duration::from_millis(30);

/// A bound for stuck processes that a test can wait for.
pub(crate) const STUCK: Duration = Duration::from_millis(200);

/// A device process; it ends with the test.
pub(crate) struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts `role` and waits until it says that it is ready.
    pub(crate) fn start(role: &str, daemon: &Daemon) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["device", role])
            .arg(&daemon.socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut process = Self { child, output };
        assert_eq!(process.hear(), "ready");
        process
    }

    /// Tells it a line.
    pub(crate) fn tell(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }

    /// The next line that it says; empty if it is gone.
    pub(crate) fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub(crate) fn kill(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    /// Waits for its end; the signal that ended it.
    pub(crate) fn signal(mut self) -> Option<i32> {
        self.child.wait().unwrap().signal()
    }

    /// Waits for its end; true if it was good.
    pub(crate) fn end(mut self) -> bool {
        drop(self.child.stdin.take());
        self.child.wait().unwrap().success()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // it may be gone already
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

pub(crate) fn daemon(stuck: Duration, policy: StuckPolicy) -> Daemon {
    let daemon = Daemon::start(HubConfig { stuck, policy, ..HubConfig::default() });
    daemon.run(|world| {
        for page in 1..4 {
            world.map(page << 12, 0x1000, page << 20, Access::RW);
        }
    });
    daemon
}

pub(crate) fn unmap_and_drain(
    daemon: &Daemon,
    iova: u64,
) -> std::sync::mpsc::Receiver<DrainReport> {
    daemon.begin(move |world| {
        world.unmap(iova, 0x1000);
        world.hub.drain()
    })
}

pub(crate) fn killed_inside_a_section() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut process = Process::start("holds-guard", &daemon);
    process.kill();
    process.child.wait().unwrap();
    let report = unmap_and_drain(&daemon, 0x1000).recv_timeout(PATIENCE).unwrap();
    assert!(report.took < Duration::from_secs(1), "{report:?}");
    assert_eq!((report.killed, report.cut_off), (0, 0));
    let gone = DeviceEvent::Disconnected { endpoint: ENDPOINT };
    daemon.events(|events| events.contains(&gone));
    assert_eq!(daemon.run(|world| world.hub.connected()), 0);
}

pub(crate) fn killed_during_a_drain() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut process = Process::start("holds-guard", &daemon);
    let drained = unmap_and_drain(&daemon, 0x1000);
    assert_eq!(drained.recv_timeout(A_WHILE), Err(RecvTimeoutError::Timeout));
    process.kill();
    let report = drained.recv_timeout(Duration::from_secs(2)).unwrap();
    assert_eq!((report.killed, report.cut_off), (0, 0));
}

pub(crate) fn stuck_and_killed() {
    let daemon = daemon(STUCK, StuckPolicy::Kill);
    let mut process = Process::start("holds-guard", &daemon);
    let report = unmap_and_drain(&daemon, 0x1000).recv_timeout(PATIENCE).unwrap();
    assert_eq!((report.killed, report.cut_off), (1, 0));
    assert!(report.took >= STUCK && report.took < STUCK + Duration::from_secs(2), "{report:?}");
    let status = process.child.try_wait().unwrap().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    assert_eq!(daemon.run(|world| world.hub.counters().killed), 1);
}

pub(crate) fn replaced_after_kill() {
    let daemon = daemon(STUCK, StuckPolicy::Kill);
    let _stuck = Process::start("holds-guard", &daemon);
    unmap_and_drain(&daemon, 0x2000).recv_timeout(PATIENCE).unwrap();
    assert!(Process::start("holds-guard", &daemon).end());
}

pub(crate) fn pinned_and_killed() {
    let daemon = daemon(STUCK, StuckPolicy::Kill);
    let _pins = Process::start("holds-pin", &daemon);
    let elsewhere = unmap_and_drain(&daemon, 0x2000).recv_timeout(PATIENCE).unwrap();
    assert_eq!((elsewhere.killed, elsewhere.cut_off), (0, 0));
    let report = unmap_and_drain(&daemon, 0x1000).recv_timeout(PATIENCE).unwrap();
    assert_eq!((report.killed, report.cut_off), (1, 0));
}

/// The kernel itself counts: the first system call would be the process's end, as the last one is.
pub(crate) fn no_system_calls() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    daemon.run(|world| {
        (0..STAY).for_each(|page| world.map(stays(page), 0x1000, page << 13, Access::READ));
    });
    let mut process = Process::start("translates-strictly", &daemon);
    daemon.run(|world| {
        for _ in 0..100 {
            world.map(1 << 30, 0x1000, 0, Access::READ);
            world.unmap(1 << 30, 0x1000);
            assert_eq!(world.hub.drain().killed, 0);
        }
    });
    assert_eq!(process.hear(), format!("found {STAY}"));
    assert_eq!(process.signal(), Some(Signal::KILL.as_raw()), "the trap was not set");
}

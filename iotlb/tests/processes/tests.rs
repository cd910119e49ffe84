//! The daemon's side of each test, and the marks that both sides look at.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use viommu_iotlb::{Device, DeviceEvent, DrainReport, HubConfig, StuckPolicy};
use viommu_pgtable::{Access, Iova};

use crate::device::say;
use crate::support::{Daemon, ENDPOINT, PATIENCE};

/// Long enough to see that something waits.
const A_WHILE: Duration = Duration::from_millis(30);

/// A bound for stuck processes that a test can wait for.
const STUCK: Duration = Duration::from_millis(200);

/// A device process; it ends with the test.
struct Process {
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Process {
    /// Starts `role` and waits until it says that it is ready.
    fn start(role: &str, daemon: &Daemon) -> Self {
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

    /// The next line that it says; empty if it is gone.
    fn hear(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn kill(&mut self) {
        let pid = i32::try_from(self.child.id()).unwrap();
        rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }

    /// Waits for its end; true if it was good.
    fn end(mut self) -> bool {
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

fn daemon(stuck: Duration, policy: StuckPolicy) -> Daemon {
    let daemon = Daemon::start(HubConfig { stuck, policy, ..HubConfig::default() });
    daemon.run(|world| {
        for page in 1..4 {
            world.map(page << 12, 0x1000, page << 20, Access::RW);
        }
    });
    daemon
}

fn unmap_and_drain(daemon: &Daemon, iova: u64) -> std::sync::mpsc::Receiver<DrainReport> {
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

pub(crate) fn forged_slots() {
    let daemon = daemon(STUCK, StuckPolicy::Disconnect);
    let honest = daemon.connect();
    let reader = honest.reader().unwrap();
    let _hostile = Process::start("forges-slots", &daemon);
    let first = unmap_and_drain(&daemon, 0x1000).recv_timeout(PATIENCE).unwrap();
    assert_eq!((first.killed, first.cut_off), (0, 1));
    assert!(first.took >= STUCK && first.took < 2 * STUCK + Duration::from_secs(1), "{first:?}");
    let second = unmap_and_drain(&daemon, 0x2000).recv_timeout(PATIENCE).unwrap();
    assert!(second.took < STUCK, "{second:?}");
    assert_eq!(second.cut_off, 0);
    // both serve the endpoint that is now refused, and the honest one is told in order
    assert!(reader.enter().is_err());
}

pub(crate) fn forged_rings() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut hostile = Process::start("forges-rings", &daemon);
    let (done, told) = channel();
    let watch = std::thread::spawn(move || {
        done.send(hostile.hear()).unwrap();
        hostile
    });
    let mut visits = 0;
    let said = loop {
        // the daemon serves others meanwhile
        let start = Instant::now();
        daemon.drain();
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        visits += 1;
        match told.try_recv() {
            Ok(said) => break said,
            Err(_) => std::thread::yield_now(),
        }
    };
    assert_eq!(said, "done");
    assert!(visits > 0);
    drop(watch.join().unwrap());
    let counters = daemon.run(|world| world.hub.counters());
    assert!(counters.bad_faults > 0, "{counters:?}");
}

pub(crate) fn tables_are_read_only() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    assert!(Process::start("writes-tables", &daemon).end());
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    assert!(crate::device::read(&reader.enter().unwrap(), 0x1000), "the tables are as before");
}

pub(crate) fn blocking_doorbell() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut hostile = Process::start("blocks-doorbell", &daemon);
    assert_eq!(hostile.hear(), "done");
    assert_eq!(daemon.drain().cut_off, 0);
}

/// Pages whose mappings come and go.
const PAGES: u64 = 16;

/// Where the marks are: a file beside the socket, one page for each page of IOVAs.
fn marks_path(socket: &Path) -> std::path::PathBuf {
    socket.with_file_name("marks")
}

/// A mark that says: mapped, may be read.
const OWNED: u64 = 1;

/// A mark that says: withdrawn, and the daemon was told that nobody reads any more.
const STALE: u64 = 2;

/// How long readers and the daemon work against each other.
const STRESS: Duration = Duration::from_secs(2);

fn map_marks(socket: &Path) -> vm_memory::GuestMemoryMmap {
    use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
    let file = std::fs::File::options().read(true).write(true).open(marks_path(socket)).unwrap();
    let bytes = usize::try_from(PAGES << 12).unwrap();
    let file = FileOffset::new(file, 0);
    GuestMemoryMmap::from_ranges_with_files([(GuestAddress(0), bytes, Some(file))]).unwrap()
}

/// Reads through translations and looks at the marks, until the parent ends it.
pub(crate) fn read_marks(socket: &Path) {
    use vm_memory::{Bytes, GuestAddress};
    let marks = map_marks(socket);
    let device = Device::connect(socket).unwrap();
    let reader = device.reader().unwrap();
    say("ready");
    let until = Instant::now() + STRESS;
    let (mut seen, mut page) = (0u64, 0);
    while Instant::now() < until {
        let guard = reader.enter().unwrap();
        for _ in 0..8 {
            page = (page + 7) % PAGES;
            let iova = Iova::new(0x10_0000 + (page << 12));
            let Some(Ok(piece)) = guard.translate(None, iova, 8, Access::READ).next() else {
                continue;
            };
            let at = GuestAddress(piece.gpa.raw());
            for _ in 0..4 {
                let mark: u64 = marks.load(at, std::sync::atomic::Ordering::Acquire).unwrap();
                assert_eq!(mark, OWNED, "stale access to page {page}");
                seen += 1;
            }
        }
    }
    say(&format!("read {seen}"));
}

pub(crate) fn no_stale_access() {
    use vm_memory::{Bytes, GuestAddress};
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    std::fs::File::create(marks_path(&daemon.socket)).unwrap().set_len(PAGES << 12).unwrap();
    let marks = map_marks(&daemon.socket);
    let mut readers = [(); 2].map(|()| Process::start("reads-marks", &daemon));
    let until = Instant::now() + STRESS;
    let turns = daemon.run(move |world| {
        let mark = |page: u64, mark: u64| {
            let at = GuestAddress(page << 12);
            marks.store(mark, at, std::sync::atomic::Ordering::Release).unwrap();
        };
        let iova = |page: u64| 0x10_0000 + (page << 12);
        (0..PAGES).for_each(|page| mark(page, STALE));
        let (mut turns, mut mapped) = (0u64, BTreeSet::new());
        while Instant::now() < until {
            let page = turns.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 60;
            if mapped.remove(&page) {
                world.unmap(iova(page), 0x1000);
                assert_eq!(world.hub.drain().killed, 0);
                mark(page, STALE);
            } else {
                mark(page, OWNED);
                world.map(iova(page), 0x1000, page << 12, Access::READ);
                mapped.insert(page);
            }
            turns += 1;
        }
        turns
    });
    for reader in &mut readers {
        let said = reader.hear();
        let read: u64 = said.strip_prefix("read ").unwrap_or("0").parse().unwrap();
        assert!(read > 1000, "a reader ended with {said:?}");
    }
    assert!(turns > 1000, "{turns} turns only");
}

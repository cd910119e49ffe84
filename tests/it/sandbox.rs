//! What the daemon can no longer do once it serves.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};

use tempfile::NamedTempFile;
use viommu::sandbox;

use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::wire::OK;

/// The signal that ends a process at a system call that its filter does not allow: SIGSYS.
const SIGSYS: i32 = 31;

/// Says to a process of this binary what to try in the sandbox, and where the sockets' folder is.
const TRIES: &str = "VIOMMU_IT_TRIES";
const FOLDER: &str = "VIOMMU_IT_FOLDER";

/// A file in another folder.
const OTHER: &str = "VIOMMU_IT_OTHER";

/// Exit codes of such a process: it could do it, or was told that it may not.
const COULD: i32 = 10;
const WAS_REFUSED: i32 = 11;

/// Runs this binary to try `what` in the sandbox of `daemon`'s sockets.
fn outcome(what: &str, daemon: &Daemon) -> ExitStatus {
    let other = NamedTempFile::new().unwrap();
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "sandbox::try_what_is_told", "--test-threads=1"])
        .env(TRIES, what)
        .env(FOLDER, daemon.folder())
        .env(OTHER, other.path())
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap()
}

/// The process that tries. Run with the others it has nothing to do; the tests that start it are the ones
/// that can fail.
#[test]
fn try_what_is_told() {
    let (Some(what), Some(folder)) = (std::env::var_os(TRIES), std::env::var_os(FOLDER)) else {
        return;
    };
    let folder = PathBuf::from(folder);
    let report = sandbox::enter(&[folder.join("vu")], false);
    assert!(report.is_complete(), "{report}");
    let done = match what.to_str().unwrap() {
        "nothing" => true,
        "open a file" => File::open("/dev/null").is_ok(),
        "open a file of ours" => File::open(folder.join("daemon.log")).is_ok(),
        "make a file" => File::create(folder.join("new")).is_ok(),
        "execute a program" => Command::new("/bin/true").status().is_ok(),
        "start a thread" => std::thread::Builder::new().spawn(|| {}).is_ok(),
        "reach the network" => TcpListener::bind("127.0.0.1:0").is_ok(),
        "look into a folder" => fs::read_dir(&folder).is_ok(),
        "remove a socket" => fs::remove_file(folder.join("vu")).is_ok(),
        "remove another file" => fs::remove_file(std::env::var_os(OTHER).unwrap()).is_ok(),
        other => panic!("nobody tries {other}"),
    };
    std::process::exit(if done { COULD } else { WAS_REFUSED });
}

#[test]
fn a_forbidden_call_ends_the_process() {
    let daemon = Daemon::start();
    for what in [
        "open a file",
        "open a file of ours",
        "make a file",
        "execute a program",
        "start a thread",
        "reach the network",
        "look into a folder",
    ] {
        assert_eq!(outcome(what, &daemon).signal(), Some(SIGSYS), "{what}");
    }
}

#[test]
fn of_all_files_only_the_sockets_can_be_removed() {
    let daemon = Daemon::start();
    assert_eq!(outcome("nothing", &daemon).code(), Some(COULD));
    assert_eq!(outcome("remove another file", &daemon).code(), Some(WAS_REFUSED));
    assert_eq!(outcome("remove a socket", &daemon).code(), Some(COULD));
    assert!(!daemon.socket().exists());
}

/// The line `name` of what the kernel says of a process.
fn status(daemon: &Daemon, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let lines = || text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = lines().find(|(key, _)| *key == name).unwrap();
    value.trim().to_owned()
}

#[test]
fn the_daemon_serves_without_privileges_under_a_filter() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(status(&daemon, "NoNewPrivs"), "1");
    assert_eq!(status(&daemon, "Seccomp"), "2", "a filter is in force");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(&status(&daemon, set), 16), Ok(0), "{set}");
    }
    assert_eq!(daemon.count_in_log("sandbox in force"), 1, "said once");
}

#[test]
fn the_sandbox_is_left_out_where_asked() {
    let daemon = Daemon::with(&["--sandbox", "none"]);
    assert_eq!(status(&daemon, "Seccomp"), "0");
    assert_eq!(daemon.count_in_log("no sandbox, as asked"), 1);
}

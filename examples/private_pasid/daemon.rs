//! The daemon's process: built if it has to be, started, ended.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::Failure;

/// The daemon's binary.
const NAME: &str = "vhost-user-iommu";

/// How long it may take until its sockets are there.
const START_WITHIN: Duration = Duration::from_secs(10);

/// How often that is looked at.
const LOOK_UP: Duration = Duration::from_millis(5);

/// A running daemon. Dropped, it is killed.
pub(crate) struct Daemon {
    child: Child,
    folder: TempDir,
}

impl Daemon {
    /// Starts it with these structures and one endpoint, and waits until it serves.
    pub(crate) fn start(arch: &str, endpoint: &str) -> Result<Self, Failure> {
        let program = program()?;
        let folder = tempfile::Builder::new().prefix("private-pasid-").tempdir()?;
        let socket = folder.path().join("iotlb");
        let child = Command::new(&program)
            .arg("--socket-path")
            .arg(folder.path().join("iommu"))
            .args(["--arch", arch, "--log-level", "warn"])
            .args(["--endpoint", &format!("{endpoint},pasid-bits=20,socket={}", socket.display())])
            .stdin(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let mut daemon = Self { child, folder };
        daemon.wait_for_sockets()?;
        Ok(daemon)
    }

    fn wait_for_sockets(&mut self) -> Result<(), Failure> {
        let begin = Instant::now();
        while !(self.front_end().exists() && self.iotlb().exists()) {
            if let Some(status) = self.child.try_wait()? {
                return Err(format!("the daemon ended with {status}").into());
            }
            if begin.elapsed() > START_WITHIN {
                return Err("the daemon does not listen".into());
            }
            thread::sleep(LOOK_UP);
        }
        Ok(())
    }

    /// The folder of its sockets.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where a VMM connects.
    pub(crate) fn front_end(&self) -> PathBuf {
        self.folder().join("iommu")
    }

    /// Where the endpoint's device process connects.
    pub(crate) fn iotlb(&self) -> PathBuf {
        self.folder().join("iotlb")
    }

    /// SIGTERM; it has to end with status 0.
    pub(crate) fn end(mut self) -> Result<(), Failure> {
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let status = self.child.wait()?;
        if status.success() {
            Ok(())
        } else {
            Err(format!("the daemon ended with {status}").into())
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // one that has ended cannot be killed, and is as good
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The daemon's binary beside this example's folder. cargo builds an example without it: started by
/// cargo, we let cargo bring it up to date.
fn program() -> Result<PathBuf, Failure> {
    let this = env::current_exe()?;
    let profile = this.parent().and_then(Path::parent).ok_or("no folder above this program")?;
    if let Some(cargo) = env::var_os("CARGO") {
        let mut build = Command::new(cargo);
        build.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--quiet", "--bin", NAME]);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        let status = build.status()?;
        if !status.success() {
            return Err(format!("building {NAME} ended with {status}").into());
        }
    }
    let program = profile.join(NAME);
    if program.exists() {
        Ok(program)
    } else {
        Err(format!("there is no {}: run `cargo build --bin {NAME}`", program.display()).into())
    }
}

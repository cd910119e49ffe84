//! A QEMU that runs no guest, started and ended by us.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::fs::MemfdFlags;

use crate::error::{Error, Result};
use crate::memory::GuestRam;
use crate::qtest::{Batch, Qtest};

/// How long one machine may live. A mode's comparison takes seconds; one that takes this long
/// hangs.
const LIFETIME: Duration = Duration::from_secs(240);

/// How much of what the emulator said is shown when it is gone.
const SAID_BYTES: u64 = 2048;

/// How an emulator is started.
#[derive(Debug, Clone, Default)]
pub struct Program {
    /// Its path.
    pub path: PathBuf,
    /// Arguments that come before all others.
    pub args: Vec<OsString>,
    /// Additions to its environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Program {
    /// A program of the machine's own, or a script that runs one.
    #[must_use]
    pub fn installed(path: PathBuf) -> Self {
        Self { path, ..Self::default() }
    }

    /// `name` out of Debian's packages unpacked at `root`: the loader, libraries and firmware are
    /// named, because none of them is where the program looks for them.
    #[must_use]
    pub fn unpacked(root: &Path, name: &str) -> Self {
        let (loader, triplet) = match std::env::consts::ARCH {
            "aarch64" => ("usr/lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
            _ => ("usr/lib64/ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
        };
        let libraries = root.join("usr/lib").join(triplet);
        let mut search = libraries.clone().into_os_string();
        search.push(":");
        search.push(libraries.join("pulseaudio"));
        let mut args = vec!["--library-path".into(), search];
        args.push(root.join("usr/bin").join(name).into_os_string());
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            args.extend(["-L".into(), root.join(firmware).into_os_string()]);
        }
        // accelerators are modules
        let modules = ("QEMU_MODULE_DIR".into(), libraries.join("qemu").into_os_string());
        Self { path: root.join(loader), args, environment: vec![modules] }
    }
}

/// A running machine: no guest, all memory shared with us.
///
/// It is ended when this is dropped, when it outlives four minutes, and by itself when this process
/// dies.
#[derive(Debug)]
pub struct Emulator {
    qtest: Qtest<ChildStdout, ChildStdin>,
    child: Arc<Mutex<Child>>,
    said: File,
    /// Dropped to let the watchdog go.
    _alive: Sender<()>,
}

impl Emulator {
    /// Starts `program` with `machine` and devices in `args`, and `ram` as its memory.
    ///
    /// # Errors
    /// If the program does not start.
    pub fn start(program: &Program, ram: &GuestRam, args: &[&str]) -> Result<Self> {
        let said = rustix::fs::memfd_create("viommu-oracle-stderr", MemfdFlags::CLOEXEC)
            .map_err(|error| Error::io("make a file for messages")(error.into()))?;
        let said = File::from(said);
        let errors = said.try_clone().map_err(Error::io("share the file for messages"))?;
        let mut child = Command::new(&program.path)
            .envs(program.environment.iter().cloned())
            .args(&program.args)
            .args(args)
            .args(arguments(ram))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(|source| Error::Start { program: program.path.clone(), source })?;
        let (Some(answers), Some(commands)) = (child.stdout.take(), child.stdin.take()) else {
            return Err(Error::Gone { said: String::from("nothing: it has no pipes") });
        };
        let child = Arc::new(Mutex::new(child));
        let alive = watch(Arc::clone(&child));
        Ok(Self { qtest: Qtest::new(answers, commands), child, said, _alive: alive })
    }

    /// Carries out the commands of `batch`: one number a command.
    ///
    /// # Errors
    /// If the emulator is gone or refuses one.
    pub fn run(&mut self, batch: &Batch) -> Result<Vec<u64>> {
        match self.qtest.run(batch) {
            Err(Error::Gone { .. } | Error::Io { .. }) => Err(Error::Gone { said: self.said() }),
            result => result,
        }
    }

    /// The answer to the last command of `batch`.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn ask(&mut self, batch: &Batch) -> Result<u64> {
        Ok(self.run(batch)?.last().copied().unwrap_or(0))
    }

    /// The end of what the emulator wrote to its standard error.
    fn said(&mut self) -> String {
        let mut text = Vec::new();
        let length = self.said.metadata().map_or(0, |metadata| metadata.len());
        let from = SeekFrom::Start(length.saturating_sub(SAID_BYTES));
        let read = self.said.seek(from).and_then(|_| self.said.read_to_end(&mut text));
        match read {
            Ok(_) => String::from_utf8_lossy(&text).trim().to_owned(),
            Err(error) => format!("(unreadable: {error})"),
        }
    }
}

impl Drop for Emulator {
    fn drop(&mut self) {
        end(&self.child);
    }
}

/// Arguments that every machine needs.
fn arguments(ram: &GuestRam) -> Vec<String> {
    let (bytes, path) = (ram.bytes(), ram.path());
    let memory = format!(
        "memory-backend-file,id=ram,size={bytes},mem-path={},share=on,prealloc=off",
        path.display()
    );
    let size = format!("{}M", bytes >> 20);
    ["-object", &memory, "-m", &size, "-accel", "qtest", "-qtest", "stdio", "-qtest-log", "none"]
        .iter()
        .chain(&["-nodefaults", "-display", "none", "-run-with", "exit-with-parent=on"])
        .map(ToString::to_string)
        .collect()
}

/// Ends the child after [`LIFETIME`], unless the sender is dropped before.
fn watch(child: Arc<Mutex<Child>>) -> Sender<()> {
    let (alive, gone) = mpsc::channel();
    thread::spawn(move || {
        if gone.recv_timeout(LIFETIME) == Err(RecvTimeoutError::Timeout) {
            end(&child);
        }
    });
    alive
}

fn end(child: &Mutex<Child>) {
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    // both fail only if it has ended before
    let _ = child.kill();
    let _ = child.wait();
}

//! `launch` and what it starts: a daemon, and a QEMU out of the packages that the machine around us shares.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};

use crate::bench::{EDU_AT, SECOND_AT, TEST_AT};
use crate::wait_until;

/// Where our program is.
const PROGRAM: &str = "/bin/vhost-user-iommu";

/// How long a guest may take from its first instruction to its end: an emulator emulates the machine that
/// emulates its own.
const LIFE: Duration = Duration::from_secs(480);

/// What `launch` says when the guest runs.
const RUNS: &str = "the guest runs";

/// Folders that the machine around us shares, by their tags: QEMU's packages, and what its guest boots.
const PACKAGES: &str = "qemu";
const INNER: &str = "inner";

/// How they are reached (Documentation/filesystems/9p.rst in Linux); they are read, and never change.
const OVER_9P: &std::ffi::CStr = c"trans=virtio,version=9p2000.L,msize=512000,cache=loose";

/// QEMU's libraries, below the packages.
const LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// The machine: memory that is shared, as `launch` wants it, and nothing that a boot has no need of. An
/// emulator in an emulator is slow.
const MACHINE: &[&str] = &[
    "-object",
    "memory-backend-memfd,id=ram,size=96M,share=on",
    "-m",
    "96M",
    "-machine",
    "q35,memory-backend=ram,sata=off,smbus=off,usb=off,i8042=off,vmport=off",
    "-global",
    "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
    "-accel",
    "tcg,tb-size=256",
    "-nodefaults",
    "-display",
    "none",
    "-no-reboot",
];

/// What the guest's kernel is told; virtio-iommu remaps no interrupts, and VFIO then wants that said. The
/// 256 terminals that nobody uses take a tenth of its boot.
const APPEND: &str = "console=ttyS0 loglevel=1 panic=-1 no_timer_check pty.legacy_count=0 \
    vfio_iommu_type1.allow_unsafe_interrupts=1 iommufd.allow_unsafe_interrupts=1";

/// `launch` at work. Dropped, all of it is killed.
#[derive(Debug)]
pub(crate) struct Launched {
    child: Child,
    folder: PathBuf,
}

/// The folder with this tag, where it is in our own file system.
fn shared(tag: &str) -> PathBuf {
    Path::new("/tmp").join(tag)
}

/// Makes the shared folders appear.
///
/// # Errors
/// The machine around us shares none.
pub(crate) fn mount_shared() -> io::Result<()> {
    for tag in [PACKAGES, INNER] {
        let place = shared(tag);
        fs::create_dir_all(&place)?;
        mount(tag, &place, "9p", MountFlags::RDONLY, OVER_9P)?;
    }
    Ok(())
}

/// What the guest is to boot.
pub(crate) enum Boots {
    /// A kernel, with this program in it.
    Inner,
    /// Nothing: firmware looks for something to boot until it is ended.
    Nothing,
    /// It is no QEMU: what we start never answers.
    NoQemu,
}

impl Launched {
    /// Starts `launch` with all functions and these options, and waits until the guest runs; where none ever
    /// will, until both processes are there.
    ///
    /// # Errors
    /// It ends before; the error has its last words.
    pub(crate) fn start(name: &str, options: &[&str], boots: &Boots) -> io::Result<Self> {
        let folder = Path::new("/tmp/launch").join(name);
        fs::create_dir_all(&folder)?;
        let log = File::create(folder.join("launch.log"))?;
        let mut command = Command::new(PROGRAM);
        command.arg("launch");
        for function in [TEST_AT, EDU_AT, SECOND_AT] {
            command.args(["--vfio", function]);
        }
        command.args(options).arg("--");
        match boots {
            Boots::NoQemu => {
                // what launch adds becomes the script's arguments
                command.args(["sh", "-c", "exec sleep 1000"]);
            }
            Boots::Inner | Boots::Nothing => add_qemu(&mut command, &folder, boots),
        }
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        let mut launched = Self { child, folder };
        let mut ended = false;
        wait_until("the guest runs", || {
            ended = launched.child.try_wait().is_ok_and(|status| status.is_some());
            let ready = match boots {
                Boots::NoQemu => launched.parts().is_ok(),
                Boots::Inner | Boots::Nothing => launched.log().contains(RUNS),
            };
            ended || ready
        })?;
        if ended { Err(io::Error::other(launched.log())) } else { Ok(launched) }
    }

    /// What `launch`, the daemon and QEMU have said.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("launch.log")).unwrap_or_default()
    }

    /// What the guest has said on its serial line.
    pub(crate) fn serial(&self) -> String {
        let bytes = fs::read(self.folder.join("serial.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The numbers of the processes that it has started.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub(crate) fn parts(&self) -> io::Result<Parts> {
        let ours = self.child.id().to_string();
        let (mut daemon, mut qemu) = (None, None);
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let Ok(stat) = fs::read_to_string(format!("/proc/{name}/stat")) else { continue };
            // number (name) state parent (proc_pid_stat(5))
            let Some((command, rest)) = stat.rsplit_once(") ") else { continue };
            if rest.split_whitespace().nth(1) != Some(&ours) {
                continue;
            }
            let part = if command.contains("vhost-user") { &mut daemon } else { &mut qemu };
            *part = name.parse().ok().and_then(Pid::from_raw);
        }
        let both = daemon.zip(qemu).map(|(daemon, qemu)| Parts { daemon, qemu });
        both.ok_or_else(|| io::Error::other("launch has not two processes"))
    }

    /// A signal to `launch` alone.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It does not end within [`LIFE`].
    pub(crate) fn wait(&mut self) -> io::Result<ExitStatus> {
        // not by looking again and again: the guest inside needs the processor
        let ended = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let limit = Timespec::try_from(LIFE).map_err(io::Error::other)?;
        if poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&limit))? == 0 {
            return Err(io::Error::other("launch does not end"));
        }
        self.child.wait()
    }
}

/// The processes behind a launch.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) daemon: Pid,
    pub(crate) qemu: Pid,
}

impl Parts {
    /// SIGKILL to the daemon.
    ///
    /// # Errors
    /// It has ended.
    pub(crate) fn kill_daemon(&self) -> io::Result<()> {
        Ok(kill_process(self.daemon, Signal::KILL)?)
    }

    /// Fails while one of them is there.
    ///
    /// # Errors
    /// The error says which.
    pub(crate) fn are_gone(&self) -> io::Result<()> {
        for (name, pid) in [("the daemon", self.daemon), ("QEMU", self.qemu)] {
            if rustix::process::test_kill_process(pid).is_ok() {
                return Err(io::Error::other(format!("{name} is still there")));
            }
        }
        Ok(())
    }
}

/// QEMU with its own loader, libraries and firmware, and what its guest boots.
fn add_qemu(command: &mut Command, folder: &Path, boots: &Boots) {
    let root = shared(PACKAGES);
    let libraries = root.join(LIBRARIES);
    command.env("QEMU_MODULE_DIR", libraries.join("qemu"));
    let path = format!("{}:{}", libraries.display(), libraries.join("pulseaudio").display());
    command.arg(libraries.join("ld-linux-x86-64.so.2")).arg("--library-path").arg(path);
    command.arg(root.join("usr/bin/qemu-system-x86_64"));
    for firmware in ["qemu", "seabios"] {
        command.arg("-L").arg(root.join("usr/share").join(firmware));
    }
    command.args(MACHINE);
    command.arg("-serial").arg(format!("file:{}", folder.join("serial.log").display()));
    if let Boots::Inner = boots {
        let inner = shared(INNER);
        command.arg("-kernel").arg(inner.join("vmlinux"));
        command.arg("-initrd").arg(inner.join("initrd")).args(["-append", APPEND]);
    }
}

impl Drop for Launched {
    fn drop(&mut self) {
        // it may have ended already, which is just as well
        if let Ok(Parts { qemu, daemon }) = self.parts() {
            let _ = kill_process(qemu, Signal::KILL);
            let _ = kill_process(daemon, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
        eprintln!(
            "-- {}:\n{}-- and its guest:\n{}",
            self.folder.display(),
            self.log(),
            self.serial()
        );
    }
}

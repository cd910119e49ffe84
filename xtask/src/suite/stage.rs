//! What stands around a guest in a scenario: the daemon, the devices, the guest itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::Arch;
use super::counters::Counters;
use super::tools::{BootKit, Tools};
use crate::command;
use crate::error::Result;
use crate::image;
use crate::setup::emulator::Emulator;
use crate::vm::machine::{Function, Guest, Machine, QMP_SOCKET};
use crate::vm::process::{Deadline, Process};
use crate::vm::qmp::Qmp;

/// Where the functions are on the root bus.
const IOMMU_SLOT: u8 = 1;
const DISK_SLOT: u8 = 3;
const ENGINE_SLOT: u8 = 4;

/// The files and sockets of a run, in its folder.
const IOMMU_SOCKET: &str = "iommu.sock";
const DISK_SOCKET: &str = "disk.sock";
const DISK_IOTLB: &str = "disk.iotlb";
const DISK_IMAGE: &str = "disk.img";
const ENGINE_SOCKET: &str = "engine.sock";
const ENGINE_IOTLB: &str = "engine.iotlb";

/// How long our processes may take until their sockets are there.
const START_WITHIN: Duration = Duration::from_secs(10);

/// The seed of the disk's first content.
pub(crate) const DISK_SEED: u64 = 1;

/// What a scenario wants around its guest.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Set {
    /// Whether there is an IOMMU; without one the devices take addresses as the guest gives them.
    pub(crate) iommu: bool,
    /// More words for the kernel's command line.
    pub(crate) append: &'static str,
    /// A vfio-user disk behind the IOMMU, of that many MiB.
    pub(crate) disk_mib: Option<u64>,
    /// A vfio-user DMA engine behind the IOMMU.
    pub(crate) engine: bool,
    /// QEMU's own disks behind the IOMMU.
    pub(crate) own: &'static [OwnDisk],
    /// Whether the guest may start anew.
    pub(crate) reboots: bool,
}

/// A disk that QEMU itself emulates.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnDisk {
    /// Its PCI address.
    pub(crate) at: &'static str,
    /// Its image, in the run's folder.
    pub(crate) image: &'static str,
    /// QEMU's arguments for it.
    pub(crate) arguments: &'static [&'static str],
}

/// The size of such a disk.
const OWN_DISK_MIB: u64 = 64;

/// A guest, the IOMMU and nothing behind it.
pub(crate) const BARE: Set =
    Set { iommu: true, append: "", disk_mib: None, engine: false, own: &[], reboots: false };

/// Where and with what a scenario runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    /// What runs.
    pub(crate) tools: &'a Tools,
    /// What is booted.
    pub(crate) kit: &'a BootKit,
    /// The structures that the daemon keeps.
    pub(crate) arch: Arch,
    /// The folder for its files, empty.
    pub(crate) dir: &'a Path,
}

/// A scenario under way.
#[derive(Debug)]
pub(crate) struct Stage<'a> {
    /// The guest.
    pub(crate) guest: Guest,
    /// The IOMMU, if there is one.
    pub(crate) daemon: Option<Process>,
    /// The disk, if there is one.
    pub(crate) disk: Option<Process>,
    /// The DMA engine, if there is one.
    pub(crate) engine: Option<Process>,
    /// When the run is given up.
    pub(crate) deadline: Deadline,
    dir: PathBuf,
    machine: Machine<'a>,
    emulator: &'a Emulator,
}

impl<'a> Stage<'a> {
    /// Starts everything.
    ///
    /// # Errors
    /// A part does not start.
    pub(crate) fn open(
        scenario: &str,
        set: &Set,
        place: &Place<'a>,
        limit: Duration,
    ) -> Result<Self> {
        let Place { tools, dir, .. } = *place;
        let deadline = Deadline::after(limit);
        let endpoints = endpoints(set);
        let (daemon, viot) = if set.iommu {
            let program = &tools.programs.daemon;
            let daemon = start_daemon(place, &endpoints)?;
            (Some(daemon), Some(viot(program, &endpoints, dir)?))
        } else {
            (None, None)
        };
        let disk = match set.disk_mib {
            Some(mib) => {
                image::make(&dir.join(DISK_IMAGE), DISK_SEED, mib << 20)?;
                Some(start_disk(set, tools, dir)?)
            }
            None => None,
        };
        for disk in set.own {
            image::make(&dir.join(disk.image), DISK_SEED, OWN_DISK_MIB << 20)?;
        }
        let engine = if set.engine { Some(start_engine(set, tools, dir)?) } else { None };
        let machine = machine(scenario, set, place, viot);
        let guest = machine.boot(&tools.emulator, dir)?;
        let (dir, emulator) = (dir.to_owned(), &tools.emulator);
        Ok(Self { guest, daemon, disk, engine, deadline, dir, machine, emulator })
    }

    /// Listens until the guest waits for the host.
    ///
    /// # Errors
    /// A check failed, the guest ended or the time is over.
    pub(crate) fn until_ready(&mut self, name: &str) -> Result<()> {
        self.guest.talk.until_ready(name, self.deadline)
    }

    /// Waits for the guest to power off and boots it once more, under a new QEMU. The processes
    /// beside it stay.
    ///
    /// # Errors
    /// A check failed, QEMU cannot be started or the time is over.
    pub(crate) fn boot_again(&mut self) -> Result<()> {
        self.guest.until_off(self.deadline)?;
        self.guest = self.machine.boot(self.emulator, &self.dir)?;
        Ok(())
    }

    /// Waits for the guest to power off, then ends the processes beside it. They must still be
    /// there, and end with status 0.
    ///
    /// # Errors
    /// A check failed, a process had ended or ended with an error, or the time is over.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.guest.until_off(self.deadline)?;
        for process in self.disk.iter_mut().chain(&mut self.engine).chain(&mut self.daemon) {
            process.end()?;
        }
        Ok(())
    }

    /// What the daemon wrote.
    pub(crate) fn daemon_log(&self) -> String {
        self.daemon.as_ref().map_or_else(String::new, Process::log_text)
    }

    /// What the daemon counted until it ended.
    ///
    /// # Errors
    /// It wrote no such line.
    pub(crate) fn counters(&self) -> Result<Counters> {
        Counters::last_in(&self.daemon_log())
    }

    /// The image behind the disk.
    pub(crate) fn image(&self) -> PathBuf {
        self.file(DISK_IMAGE)
    }

    /// A file of the run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A connection to QEMU's monitor.
    ///
    /// # Errors
    /// QEMU is gone.
    pub(crate) fn monitor(&mut self) -> Result<Qmp> {
        let socket = self.dir.join(QMP_SOCKET);
        self.guest.process.until_path(&socket, Deadline::after(START_WITHIN))?;
        Qmp::connect(&socket)
    }
}

/// The daemon's and the ACPI table's endpoints: PCI address, and the socket for its device.
fn endpoints(set: &Set) -> Vec<(String, Option<&'static str>)> {
    let mut all: Vec<_> = set.own.iter().map(|disk| (disk.at.to_owned(), None)).collect();
    if set.disk_mib.is_some() {
        all.push((format!("00:{DISK_SLOT:02x}.0"), Some(DISK_IOTLB)));
    }
    if set.engine {
        all.push((format!("00:{ENGINE_SLOT:02x}.0"), Some(ENGINE_IOTLB)));
    }
    all
}

fn start_daemon(
    place: &Place<'_>,
    endpoints: &[(String, Option<&'static str>)],
) -> Result<Process> {
    let dir = place.dir;
    let mut daemon = Command::new(&place.tools.programs.daemon);
    daemon.args(["--socket-path", IOMMU_SOCKET, "--log-level", "info"]);
    daemon.args(["--arch", place.arch.option()]);
    for (at, socket) in endpoints {
        let socket = socket.map_or_else(String::new, |path| format!(",socket={path}"));
        daemon.args(["--endpoint", &format!("{at}{socket}")]);
    }
    let mut process = Process::start("daemon", daemon, dir)?;
    process.until_path(&dir.join(IOMMU_SOCKET), Deadline::after(START_WITHIN))?;
    Ok(process)
}

fn start_disk(set: &Set, tools: &Tools, dir: &Path) -> Result<Process> {
    let mut disk = Command::new(&tools.programs.disk);
    disk.args(["--socket", DISK_SOCKET, "--image", DISK_IMAGE]);
    if set.iommu {
        disk.args(["--iotlb", DISK_IOTLB]);
    }
    let mut process = Process::start("disk", disk, dir)?;
    process.until_path(&dir.join(DISK_SOCKET), Deadline::after(START_WITHIN))?;
    Ok(process)
}

fn start_engine(set: &Set, tools: &Tools, dir: &Path) -> Result<Process> {
    let mut engine = Command::new(&tools.programs.engine);
    engine.args(["--socket", ENGINE_SOCKET]);
    if set.iommu {
        engine.args(["--iotlb", ENGINE_IOTLB]);
    }
    let mut process = Process::start("engine", engine, dir)?;
    process.until_path(&dir.join(ENGINE_SOCKET), Deadline::after(START_WITHIN))?;
    Ok(process)
}

/// The table that the daemon's program writes for these endpoints.
fn viot(
    program: &Path,
    endpoints: &[(String, Option<&'static str>)],
    dir: &Path,
) -> Result<PathBuf> {
    let path = dir.join("viot.bin");
    let mut write = Command::new(program);
    write.args(["viot", "--iommu", &format!("00:{IOMMU_SLOT:02x}.0")]);
    for (at, _) in endpoints {
        write.args(["--endpoint", at]);
    }
    command::output(write.arg("--output").arg(&path))?;
    Ok(path)
}

fn machine<'a>(scenario: &str, set: &Set, place: &Place<'a>, viot: Option<PathBuf>) -> Machine<'a> {
    let mut functions = Vec::new();
    if set.iommu {
        functions.push(Function::Iommu { slot: IOMMU_SLOT, socket: IOMMU_SOCKET });
    }
    functions.extend(set.own.iter().map(|disk| Function::Own(disk.arguments)));
    let arch = place.arch.option();
    let mut append = format!("viommu.scenario={scenario} viommu.arch={arch} {}", set.append);
    if let Some(mib) = set.disk_mib {
        functions.push(Function::VfioUser { slot: DISK_SLOT, socket: DISK_SOCKET });
        append = format!("{append} viommu.seed={DISK_SEED} viommu.bytes={}", mib << 20);
    }
    if set.engine {
        functions.push(Function::VfioUser { slot: ENGINE_SLOT, socket: ENGINE_SOCKET });
    }
    Machine {
        kernel: &place.kit.kernel,
        initrd: &place.kit.initrd,
        append,
        memory_mib: 1024,
        cpus: 2,
        viot,
        functions,
        reboots: set.reboots,
    }
}

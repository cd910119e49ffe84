//! What stands around a guest in a scenario: the daemon, the devices, the guest itself.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;

use super::Arch;
use super::counters::Counters;
use super::parts::{self, IOMMU_SOCKET, START_WITHIN};
use super::set::{DISKS, IOMMU_SLOT, Iommu, Seat, Set};
use super::tools::{BootKit, Tools};
use super::topology;
use crate::error::{Error, Result};
use crate::setup::guest_kernel::Architecture;
use crate::vm::machine::{Function, Guest, Machine, QMP_SOCKET};
use crate::vm::process::{Deadline, Process};
use crate::vm::qmp::Qmp;

/// How long the daemon may take to tell its counters.
const TOLD_WITHIN: Duration = Duration::from_secs(10);

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
    /// The daemon, if it is the IOMMU.
    pub(crate) daemon: Option<Process>,
    /// The disks.
    pub(crate) disks: Vec<Process>,
    /// The DMA engines.
    pub(crate) engines: Vec<Process>,
    /// When the run is given up.
    pub(crate) deadline: Deadline,
    set: Set,
    place: Place<'a>,
    machine: Machine<'a>,
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
        let (set, place, deadline) = (*set, *place, Deadline::after(limit));
        parts::make_images(&set, place.dir)?;
        let daemon = match set.iommu {
            Iommu::Ours => Some(parts::start_daemon(&set, &place)?),
            Iommu::None | Iommu::Qemus => None,
        };
        let disks = start_disks(&set, &place)?;
        let engines = start_engines(&set, &place)?;
        let mut machine = machine(scenario, &set, &place);
        if set.iommu == Iommu::Ours {
            let tools = (place.tools.programs.daemon.as_path(), &place.tools.emulator);
            machine.topology = Some(topology::write(&machine, &set.slots(), tools, place.dir)?);
        }
        let guest = machine.boot(&place.tools.emulator, place.dir)?;
        Ok(Self { guest, daemon, disks, engines, deadline, set, place, machine })
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
        self.boot()
    }

    /// Boots a guest under a new QEMU; the one before is gone.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub(crate) fn boot(&mut self) -> Result<()> {
        self.guest = self.machine.boot(&self.place.tools.emulator, self.place.dir)?;
        Ok(())
    }

    /// Starts the daemon anew; the one before is gone.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn start_daemon(&mut self) -> Result<()> {
        self.daemon = Some(parts::start_daemon(&self.set, &self.place)?);
        Ok(())
    }

    /// Starts the devices anew, the disks on their images as they are; those before are gone, or go now.
    ///
    /// # Errors
    /// One does not start.
    pub(crate) fn start_devices(&mut self) -> Result<()> {
        self.disks.clear();
        self.disks = start_disks(&self.set, &self.place)?;
        self.engines.clear();
        self.engines = start_engines(&self.set, &self.place)?;
        Ok(())
    }

    /// Waits for the guest to power off, then ends the processes beside it. They must still be
    /// there, and end with status 0.
    ///
    /// # Errors
    /// A check failed, a process had ended or ended with an error, or the time is over.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.guest.until_off(self.deadline)?;
        for process in self.disks.iter_mut().chain(&mut self.engines).chain(&mut self.daemon) {
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

    /// What the daemon counts at this moment.
    ///
    /// # Errors
    /// There is no daemon, or it does not tell.
    pub(crate) fn counters_now(&mut self) -> Result<Counters> {
        let daemon = self.daemon.as_mut().ok_or_else(|| Error::Wrong("no daemon".to_owned()))?;
        let told = |daemon: &Process| Counters::lines_in(&daemon.log_text());
        let before = told(daemon);
        daemon.signal(Signal::USR1)?;
        daemon.until("its counters", Deadline::after(TOLD_WITHIN), |it| told(it) > before)?;
        self.counters()
    }

    /// The image behind the first disk.
    pub(crate) fn image(&self) -> PathBuf {
        let [first, _] = &DISKS;
        self.image_of(first)
    }

    /// The image behind a disk of ours.
    pub(crate) fn image_of(&self, seat: &Seat) -> PathBuf {
        self.file(&parts::image_of(seat))
    }

    /// A file of the run.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.place.dir.join(name)
    }

    /// The guest's processor.
    pub(crate) fn architecture(&self) -> Architecture {
        self.place.kit.kernel.architecture
    }

    /// A connection to QEMU's monitor.
    ///
    /// # Errors
    /// QEMU is gone.
    pub(crate) fn monitor(&mut self) -> Result<Qmp> {
        let socket = self.file(QMP_SOCKET);
        self.guest.process.until_path(&socket, Deadline::after(START_WITHIN))?;
        Qmp::connect(&socket)
    }
}

fn start_disks(set: &Set, place: &Place<'_>) -> Result<Vec<Process>> {
    set.disk_seats().map(|seat| parts::start_disk(set, seat, place)).collect()
}

fn start_engines(set: &Set, place: &Place<'_>) -> Result<Vec<Process>> {
    set.engine_seats().map(|seat| parts::start_engine(set, seat, place)).collect()
}

/// The machine, without what tells it of the IOMMU.
fn machine<'a>(scenario: &str, set: &Set, place: &Place<'a>) -> Machine<'a> {
    let mut functions = Vec::new();
    match set.iommu {
        Iommu::None => {}
        Iommu::Qemus => functions.push(Function::QemusIommu { slot: IOMMU_SLOT }),
        Iommu::Ours => functions.push(Function::Iommu { slot: IOMMU_SLOT, socket: IOMMU_SOCKET }),
    }
    functions.extend(set.own.iter().map(|disk| Function::Own(disk.arguments)));
    functions.extend(
        set.seats().map(|seat| Function::VfioUser { slot: seat.slot, socket: seat.socket }),
    );
    Machine {
        kernel: &place.kit.kernel,
        initrd: &place.kit.initrd,
        append: append(scenario, set, place),
        memory_mib: set.memory_mib,
        cpus: set.cpus,
        topology: None,
        functions,
        reboots: set.reboots,
        firmware_reads: set.firmware_reads,
    }
}

/// The scenario's words on the kernel's command line, with what its script wants to know.
fn append(scenario: &str, set: &Set, place: &Place<'_>) -> String {
    let arch = place.arch.option();
    let mut append = format!("viommu.scenario={scenario} viommu.arch={arch}");
    if let Some(mib) = set.disks.first() {
        append = format!("{append} viommu.seed={} viommu.bytes={}", parts::DISK_SEED, mib << 20);
    }
    // Debian's kernels invalidate lazily on x86, strictly on Arm: the same everywhere, unless said
    // otherwise later on the line
    format!("{append} iommu.strict=0 {}", set.append)
}

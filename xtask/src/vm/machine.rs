//! The virtual machine: QEMU's command line, and the guest while it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command};

use super::fdt::Fdt;
use super::process::{Deadline, Process};
use super::talk::Talk;
use crate::command;
use crate::error::{Error, Result};
use crate::setup::emulator::Emulator;
use crate::setup::guest_kernel::{Architecture, GuestKernel};

/// The monitor's socket in the run's folder.
pub(crate) const QMP_SOCKET: &str = "qmp.sock";

/// A function on the machine's root bus.
#[derive(Debug, Clone)]
pub(crate) enum Function {
    /// The IOMMU: QEMU's generic vhost-user device, told to be a virtio-iommu.
    Iommu {
        /// The device number.
        slot: u8,
        /// The daemon's socket.
        socket: &'static str,
    },
    /// QEMU's own virtio-iommu.
    QemusIommu {
        /// The device number.
        slot: u8,
    },
    /// A function that another process serves over vfio-user.
    VfioUser {
        /// The device number.
        slot: u8,
        /// That process's socket.
        socket: &'static str,
    },
    /// A folder of this machine, to be read over 9p.
    Folder {
        /// The device number.
        slot: u8,
        /// The name by which the guest mounts it.
        tag: &'static str,
        /// The folder.
        path: PathBuf,
    },
    /// Arguments of QEMU's own devices.
    Own(&'static [&'static str]),
}

/// What the guest is booted with.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// The kernel.
    pub(crate) kernel: &'a GuestKernel,
    /// Its first file system.
    pub(crate) initrd: &'a Path,
    /// More words for the kernel's command line.
    pub(crate) append: String,
    /// Main memory: one number for each NUMA node.
    pub(crate) memory_mib: &'static [u32],
    /// Processors.
    pub(crate) cpus: u8,
    /// What tells what is behind the IOMMU: an ACPI table, on Arm a device tree.
    pub(crate) topology: Option<PathBuf>,
    /// What is on the bus.
    pub(crate) functions: Vec<Function>,
    /// Whether a reset starts the guest anew; else it ends QEMU.
    pub(crate) reboots: bool,
    /// Whether firmware looks at the disks.
    pub(crate) firmware_reads: bool,
}

impl Machine<'_> {
    /// The whole call. Paths of sockets are relative to the run's folder: an absolute one may be
    /// longer than a socket's address can be.
    fn command(&self, emulator: &Emulator) -> Command {
        let mut qemu = emulator.command(self.kernel.architecture);
        self.add_board("", &mut qemu);
        qemu.args(["-serial", "file:guest.log"]);
        qemu.args(["-chardev", "stdio,id=talk,signal=off", "-serial", "chardev:talk"]);
        qemu.args(["-qmp", &format!("unix:{QMP_SOCKET},server=on,wait=off")]);
        qemu.arg("-kernel").arg(&self.kernel.image).arg("-initrd").arg(self.initrd);
        let console = match self.kernel.architecture {
            Architecture::Amd64 => "ttyS0",
            Architecture::Arm64 => "ttyAMA0",
        };
        // on a busy host an emulated timer comes too late for the kernel's check that it works
        let append = format!("console={console} panic=-1 no_timer_check {}", self.append);
        qemu.args(["-append", &append]);
        if !self.reboots {
            qemu.arg("-no-reboot");
        }
        if !self.firmware_reads {
            qemu.args(["-boot", "strict=on"]);
        }
        if let Some(topology) = &self.topology {
            match self.kernel.architecture {
                Architecture::Amd64 => {
                    let mut file = std::ffi::OsString::from("file=");
                    file.push(topology);
                    qemu.arg("-acpitable").arg(file)
                }
                Architecture::Arm64 => qemu.arg("-dtb").arg(topology),
            };
        }
        for function in &self.functions {
            function.add_to(&mut qemu);
        }
        qemu
    }

    /// Board, processors and memory; `more` are options of the board.
    fn add_board(&self, more: &str, qemu: &mut Command) {
        let (board, cpu) = match self.kernel.architecture {
            Architecture::Amd64 => ("q35", "max"),
            Architecture::Arm64 => ("virt,gic-version=3", "cortex-a57"),
        };
        qemu.args(["-M", &format!("{board}{more}"), "-cpu", cpu]);
        // a KVM that is there may still fail in the middle of a boot; TCG is what every host has
        qemu.args(["-accel", "tcg,thread=multi", "-nodefaults", "-display", "none"]);
        qemu.args(["-smp", &self.cpus.to_string()]);
        qemu.args(["-m", &format!("{}M", self.memory_mib.iter().sum::<u32>())]);
        for (node, mib) in self.memory_mib.iter().enumerate() {
            let memory = format!("memory-backend-memfd,id=mem{node},size={mib}M,share=on");
            qemu.args(["-object", &memory]);
            // the processors are where the last of the memory is
            let last = node + 1 == self.memory_mib.len();
            let cpus = if last { format!(",cpus=0-{}", self.cpus - 1) } else { String::new() };
            qemu.args(["-numa", &format!("node,memdev=mem{node}{cpus}")]);
        }
    }

    /// The device tree that QEMU makes for this board, written to `to`.
    ///
    /// # Errors
    /// QEMU does not write it.
    pub(crate) fn device_tree(&self, emulator: &Emulator, to: &Path) -> Result<Fdt> {
        let mut qemu = emulator.command(self.kernel.architecture);
        self.add_board(&format!(",dumpdtb={}", to.display()), &mut qemu);
        // as many as there are in the run: each is a node of the tree
        qemu.args(["-serial", "null", "-serial", "null"]);
        command::output(&mut qemu)?;
        Fdt::parse(&fs::read(to).map_err(Error::file("read", to))?)
    }

    /// Boots the guest in `dir`.
    ///
    /// # Errors
    /// QEMU cannot be started.
    pub(crate) fn boot(&self, emulator: &Emulator, dir: &Path) -> Result<Guest> {
        let mut process = Process::start_piped("qemu", self.command(emulator), dir)?;
        let child = process.child();
        let (Some(from), Some(to)) = (child.stdout.take(), child.stdin.take()) else {
            return Err(Error::Wrong("QEMU has no pipes".to_owned()));
        };
        let talk = Talk::new(from, to, &dir.join("talk.log"))?;
        Ok(Guest { process, talk })
    }
}

impl Function {
    fn add_to(&self, qemu: &mut Command) {
        match self {
            Self::Iommu { slot, socket } => {
                qemu.args(["-chardev", &format!("socket,id=iommu,path={socket}")]);
                // 23 is the IOMMU's device type; 40 bytes are its configuration (virtio 1.4, 5.13)
                qemu.args([
                    "-device",
                    &format!(
                        "vhost-user-test-device-pci,virtio-id=23,num_vqs=2,config_size=40,\
                         vq_size=256,chardev=iommu,bus=pcie.0,addr={slot:x}"
                    ),
                ]);
            }
            Self::QemusIommu { slot } => {
                qemu.args(["-device", &format!("virtio-iommu-pci,bus=pcie.0,addr={slot:x}")]);
            }
            Self::VfioUser { slot, socket } => {
                let device = serde_json::json!({
                    "driver": "vfio-user-pci",
                    "bus": "pcie.0",
                    "addr": format!("0x{slot:x}"),
                    "socket": { "type": "unix", "path": socket },
                });
                qemu.args(["-device", &device.to_string()]);
            }
            Self::Folder { slot, tag, path } => {
                // a comma in an option's value is written twice
                let path = path.to_string_lossy().replace(',', ",,");
                let folder = format!("local,id={tag},path={path},security_model=none,readonly=on");
                qemu.args(["-fsdev", &folder]);
                let device =
                    format!("virtio-9p-pci,fsdev={tag},mount_tag={tag},bus=pcie.0,addr={slot:x}");
                qemu.args(["-device", &device]);
            }
            Self::Own(arguments) => {
                qemu.args(*arguments);
            }
        }
    }
}

/// A guest that runs.
#[derive(Debug)]
pub(crate) struct Guest {
    /// Its QEMU.
    pub(crate) process: Process,
    /// The line to its scenario.
    pub(crate) talk: Talk<ChildStdin>,
}

impl Guest {
    /// Waits for the end of the scenario and for the guest to power off.
    ///
    /// # Errors
    /// A check failed, QEMU ended with an error or the time is over.
    pub(crate) fn until_off(&mut self, deadline: Deadline) -> Result<()> {
        self.talk.until_ready("end", deadline)?;
        self.off(deadline)
    }

    /// Lets a guest whose scenario is over power off, and waits until it has.
    ///
    /// # Errors
    /// QEMU ended with an error or the time is over.
    pub(crate) fn off(&mut self, deadline: Deadline) -> Result<()> {
        self.talk.answer("off")?;
        let status = self.process.wait(deadline.left())?;
        if status.success() {
            return Ok(());
        }
        let output = command::tail(&self.process.log_text(), 8);
        Err(Error::Failed { program: "QEMU".to_owned(), status, output })
    }
}

//! Everything that scenarios use and that is made once for all of them.

use std::fs;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::initramfs;
use crate::setup::build::{self, Programs};
use crate::setup::cache::Cache;
use crate::setup::emulator::Emulator;
use crate::setup::guest_kernel::{GuestKernel, OwnKernel, ROWS};
use crate::ui::note;

/// Where QEMU and the guest's kernel come from.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Sources {
    /// A QEMU of your own (11.0 or newer); else Debian's newest is fetched
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) qemu: Option<PathBuf>,
    /// A guest kernel of your own, as /boot/vmlinuz-RELEASE with its modules in /lib/modules;
    /// else Debian's newest is fetched
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) kernel: Option<PathBuf>,
    /// A static busybox for a guest kernel of your own
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) busybox: Option<PathBuf>,
    /// The Debian mirror to fetch from; else the one that this machine's apt uses
    #[arg(long, value_name = "URL", global = true)]
    pub(crate) mirror: Option<String>,
}

/// A QEMU, a kernel with its first file system, and our own programs.
#[derive(Debug)]
pub(crate) struct Tools {
    /// What runs the guest.
    pub(crate) emulator: Emulator,
    /// What is booted.
    pub(crate) kernel: GuestKernel,
    /// Its first file system.
    pub(crate) initrd: PathBuf,
    /// What runs beside the guest.
    pub(crate) programs: Programs,
}

/// QEMU and a kernel, without what is built here.
///
/// # Errors
/// The packages cannot be had, or QEMU does not start.
pub(crate) fn fetch(sources: &Sources) -> Result<(Emulator, GuestKernel)> {
    let cache = Cache::open()?;
    let mirror = sources.mirror.as_deref();
    let emulator = Emulator::bring(sources.qemu.as_deref(), &cache, mirror)?;
    let kernel = match (&sources.kernel, ROWS) {
        (Some(image), _) => {
            GuestKernel::own(&OwnKernel { image, busybox: sources.busybox.as_deref() })?
        }
        (None, [default, ..]) => GuestKernel::bring(default, &cache, mirror)?,
        (None, []) => return Err(Error::Wrong("no kernel is known: give --kernel".to_owned())),
    };
    note(format_args!("{}; guest kernel {}", emulator.version()?, kernel.release));
    Ok((emulator, kernel))
}

impl Tools {
    /// Fetches what is missing and builds the rest. `scripts` are the scenarios that the guest is
    /// to know.
    ///
    /// # Errors
    /// A package cannot be had, a program does not compile, or QEMU does not start.
    pub(crate) fn prepare(sources: &Sources, scripts: &[(&str, &str)]) -> Result<Self> {
        let (emulator, kernel) = fetch(sources)?;
        let programs = build::programs()?;
        let guest_programs = build::guest_programs(kernel.architecture)?;
        let packed = initramfs::pack(&kernel, &guest_programs, scripts)?;
        let dir = build::target().join("guest");
        fs::create_dir_all(&dir).map_err(Error::file("make", &dir))?;
        let initrd = dir.join(format!("initrd-{}.img", kernel.release));
        fs::write(&initrd, packed).map_err(Error::file("write", &initrd))?;
        Ok(Self { emulator, kernel, initrd, programs })
    }
}

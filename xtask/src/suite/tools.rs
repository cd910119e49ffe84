//! Everything that scenarios use and that is made once for all of them.

use std::fs;
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::initramfs;
use crate::setup::build::{self, Programs};
use crate::setup::cache::Cache;
use crate::setup::emulator::Emulator;
use crate::setup::guest_kernel::{GuestKernel, OwnKernel, Row};
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

/// What scenarios run with.
#[derive(Debug)]
pub(crate) struct Tools {
    /// What runs the guests.
    pub(crate) emulator: Emulator,
    /// What runs beside a guest.
    pub(crate) programs: Programs,
    guests: Vec<(&'static str, BootKit)>,
}

/// A kernel and its first file system.
#[derive(Debug)]
pub(crate) struct BootKit {
    /// The kernel.
    pub(crate) kernel: GuestKernel,
    /// Its first file system.
    pub(crate) initrd: PathBuf,
}

/// QEMU and kernels, without what is built here. A kernel of the user's own stands for all.
///
/// # Errors
/// The packages cannot be had, or QEMU does not start.
pub(crate) fn fetch(
    sources: &Sources,
    rows: &[&'static Row],
) -> Result<(Emulator, Vec<(&'static str, GuestKernel)>)> {
    let cache = Cache::open()?;
    let mirror = sources.mirror.as_deref();
    let emulator = Emulator::bring(sources.qemu.as_deref(), &cache, mirror)?;
    note(emulator.version()?);
    let kernel = |row: &&'static Row| -> Result<_> {
        let kernel = match &sources.kernel {
            Some(image) => {
                GuestKernel::own(&OwnKernel { image, busybox: sources.busybox.as_deref() })?
            }
            None => GuestKernel::bring(row, &cache, mirror)?,
        };
        note(format_args!("guest kernel {}", kernel.release));
        Ok((row.name, kernel))
    };
    let kernels = rows.iter().map(kernel).collect::<Result<_>>()?;
    Ok((emulator, kernels))
}

impl Tools {
    /// Fetches what is missing and builds the rest. `scripts` are the scenarios that the guests are
    /// to know.
    ///
    /// # Errors
    /// A package cannot be had, a program does not compile, or QEMU does not start.
    pub(crate) fn prepare(
        sources: &Sources,
        rows: &[&'static Row],
        scripts: &[(&str, &str)],
    ) -> Result<Self> {
        let (emulator, kernels) = fetch(sources, rows)?;
        let programs = build::programs()?;
        let mut guests = Vec::new();
        for (name, kernel) in kernels {
            let guest_programs = build::guest_programs(kernel.architecture)?;
            let packed = initramfs::pack(&kernel, &guest_programs, scripts)?;
            let dir = build::target().join("guest");
            fs::create_dir_all(&dir).map_err(Error::file("make", &dir))?;
            let initrd = dir.join(format!("initrd-{}.img", kernel.release));
            fs::write(&initrd, packed).map_err(Error::file("write", &initrd))?;
            guests.push((name, BootKit { kernel, initrd }));
        }
        Ok(Self { emulator, programs, guests })
    }

    /// What the guest of that row is booted with.
    ///
    /// # Errors
    /// It was not prepared.
    pub(crate) fn guest(&self, name: &str) -> Result<&BootKit> {
        let kit = self.guests.iter().find(|(row, _)| *row == name).map(|(_, kit)| kit);
        kit.ok_or_else(|| Error::Wrong(format!("guest {name} was not prepared")))
    }
}

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
    guests: Vec<(&'static str, Kit)>,
}

/// What a guest is booted with, or why this machine cannot have it.
type Kit = std::result::Result<BootKit, String>;

/// A kernel and its first file system.
#[derive(Debug)]
pub(crate) struct BootKit {
    /// The kernel.
    pub(crate) kernel: GuestKernel,
    /// Its first file system.
    pub(crate) initrd: PathBuf,
}

/// QEMU and the kernels, without what is built here. A kernel of the user's own stands for all.
///
/// # Errors
/// The packages cannot be had, or QEMU does not start.
pub(crate) fn fetch(sources: &Sources, rows: &[&'static Row]) -> Result<()> {
    let cache = Cache::open()?;
    emulator(sources, &cache)?;
    rows.iter().try_for_each(|row| kernel(sources, row, &cache).map(drop))
}

fn emulator(sources: &Sources, cache: &Cache) -> Result<Emulator> {
    let emulator = Emulator::bring(sources.qemu.as_deref(), cache, sources.mirror.as_deref())?;
    note(emulator.version()?);
    Ok(emulator)
}

fn kernel(sources: &Sources, row: &'static Row, cache: &Cache) -> Result<GuestKernel> {
    let kernel = match &sources.kernel {
        Some(image) => GuestKernel::own(&OwnKernel { image, busybox: sources.busybox.as_deref() })?,
        None => GuestKernel::bring(row, cache, sources.mirror.as_deref())?,
    };
    note(format_args!("guest kernel {}", kernel.release));
    Ok(kernel)
}

impl Tools {
    /// Fetches what is missing and builds the rest. `scripts` are the scenarios that the guests are
    /// to know. A guest that this machine cannot have is told of, and left out as long as there is
    /// another.
    ///
    /// # Errors
    /// A package cannot be had, a program does not compile, or QEMU does not start.
    pub(crate) fn prepare(
        sources: &Sources,
        rows: &[&'static Row],
        scripts: &[(&str, &str)],
    ) -> Result<Self> {
        let cache = Cache::open()?;
        let emulator = emulator(sources, &cache)?;
        let kernels: Vec<_> = rows.iter().map(|row| (*row, kernel(sources, row, &cache))).collect();
        // others may want the cache while we build
        drop(cache);
        let programs = build::programs()?;
        let mut guests = Vec::new();
        for (row, kernel) in kernels {
            match kernel.and_then(|kernel| BootKit::new(kernel, scripts)) {
                Ok(kit) => guests.push((row.name, Ok(kit))),
                Err(error) if error.is_lacking() && rows.len() > 1 => {
                    note(format_args!("no guest {} here: {error}", row.name));
                    guests.push((row.name, Err(error.to_string())));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self { emulator, programs, guests })
    }

    /// What the guest of that row is booted with, or why it cannot be.
    pub(crate) fn guest(&self, name: &str) -> std::result::Result<&BootKit, &str> {
        let kit = self.guests.iter().find(|(row, _)| *row == name).map(|(_, kit)| kit);
        kit.map_or(Err("not prepared"), |kit| kit.as_ref().map_err(String::as_str))
    }
}

impl BootKit {
    /// Builds the programs for a kernel and packs its first file system.
    fn new(kernel: GuestKernel, scripts: &[(&str, &str)]) -> Result<Self> {
        let programs = build::guest_programs(kernel.architecture)?;
        let packed = initramfs::pack(&kernel, &programs, scripts)?;
        let dir = build::target().join("guest");
        fs::create_dir_all(&dir).map_err(Error::file("make", &dir))?;
        // a run with other scripts, beside this one, has a file system of its own
        let purpose = scripts.first().map_or("", |(name, _)| name);
        let initrd = dir.join(format!("initrd-{purpose}-{}.img", kernel.release));
        fs::write(&initrd, packed).map_err(Error::file("write", &initrd))?;
        Ok(Self { kernel, initrd })
    }
}

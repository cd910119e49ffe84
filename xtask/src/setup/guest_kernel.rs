//! The kernels that are booted as guests, each with its modules and a static busybox.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::Archive;
use super::bundle::{Bundle, Contents};
use super::cache::Cache;
use crate::command;
use crate::error::{Error, Result};

/// What a guest's processor is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Architecture {
    /// x86, 64 bit: the `q35` machine.
    Amd64,
    /// Arm, 64 bit: the `virt` machine.
    Arm64,
}

impl Architecture {
    /// The name of QEMU's program for it.
    pub(crate) const fn qemu(self) -> &'static str {
        match self {
            Self::Amd64 => "qemu-system-x86_64",
            Self::Arm64 => "qemu-system-aarch64",
        }
    }

    /// Its name in Debian's words.
    pub(crate) const fn debian(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }
}

/// A kernel that the suite knows how to get.
#[derive(Debug)]
pub(crate) struct Row {
    /// What it is called on the command line.
    pub(crate) name: &'static str,
    /// Its processor.
    pub(crate) architecture: Architecture,
    /// Modules that Debian's configuration of it leaves out.
    lacks: &'static [&'static str],
    bundle: Bundle,
}

/// The kernels, the default first.
pub(crate) const ROWS: [Row; 4] = [
    Row {
        name: NEWEST,
        architecture: Architecture::Amd64,
        bundle: Bundle {
            name: "guest-newest",
            archive: Archive {
                suites: &["trixie", "trixie-backports"],
                prefer: Some("trixie-backports"),
                architecture: "amd64",
            },
            ..AMD64
        },
        lacks: &[],
    },
    Row {
        name: "6.12",
        architecture: Architecture::Amd64,
        bundle: Bundle { name: "guest-6.12", ..AMD64 },
        lacks: &[],
    },
    Row {
        name: "6.1",
        architecture: Architecture::Amd64,
        bundle: Bundle {
            name: "guest-6.1",
            archive: Archive { suites: &["bookworm"], prefer: None, architecture: "amd64" },
            ..AMD64
        },
        lacks: &["virtio-iommu"],
    },
    Row {
        name: ARM64,
        architecture: Architecture::Arm64,
        bundle: Bundle {
            name: "guest-arm64",
            archive: Archive {
                suites: &["trixie", "trixie-backports"],
                prefer: Some("trixie-backports"),
                architecture: "arm64",
            },
            contents: Contents::Kernel {
                meta: "linux-image-cloud-arm64",
                with: &["busybox-static"],
            },
            ..AMD64
        },
        lacks: &[],
    },
];

/// The name of the default: the newest kernel in Debian's backports.
pub(crate) const NEWEST: &str = "newest";

/// The name of the newest kernel for Arm.
pub(crate) const ARM64: &str = "arm64";

/// Debian stable's kernel for virtual machines.
const AMD64: Bundle = Bundle {
    name: "",
    lead: "linux-image-",
    archive: Archive { suites: &["trixie"], prefer: None, architecture: "amd64" },
    contents: Contents::Kernel { meta: "linux-image-cloud-amd64", with: &["busybox-static"] },
};

impl Row {
    /// The row of that name.
    ///
    /// # Errors
    /// There is none; the error names those there are.
    pub(crate) fn named(name: &str) -> Result<&'static Self> {
        ROWS.iter().find(|row| row.name == name).ok_or_else(|| Error::Unknown {
            kind: "guest",
            name: name.to_owned(),
            known: ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", "),
        })
    }
}

/// A kernel on this machine, ready to be booted.
#[derive(Debug)]
pub(crate) struct GuestKernel {
    /// Its processor.
    pub(crate) architecture: Architecture,
    /// The bootable image.
    pub(crate) image: PathBuf,
    /// What `uname -r` says in the guest.
    pub(crate) release: String,
    /// A busybox that runs in the guest.
    pub(crate) busybox: PathBuf,
    modules: PathBuf,
    lacks: &'static [&'static str],
}

/// A kernel of the user's own.
#[derive(Debug)]
pub(crate) struct OwnKernel<'a> {
    /// The image, as `/boot/vmlinuz-RELEASE`.
    pub(crate) image: &'a Path,
    /// A static busybox; else the one on the PATH is taken.
    pub(crate) busybox: Option<&'a Path>,
}

impl GuestKernel {
    /// The newest kernel of that row.
    ///
    /// # Errors
    /// The packages cannot be had, or hold no kernel where one should be.
    pub(crate) fn bring(row: &Row, cache: &Cache, mirror: Option<&str>) -> Result<Self> {
        let root = row.bundle.bring(cache, mirror)?;
        let under = ["usr/lib/modules", "lib/modules"].map(|dir| root.join(dir));
        let modules = under
            .iter()
            .find_map(|dir| only_entry(dir))
            .ok_or_else(|| Error::Wrong(format!("no kernel modules under {}", root.display())))?;
        let release = file_name(&modules);
        let images = [modules.join("vmlinuz"), root.join(format!("boot/vmlinuz-{release}"))];
        let image = images
            .into_iter()
            .find(|image| image.is_file())
            .ok_or_else(|| Error::Wrong(format!("no kernel image under {}", root.display())))?;
        let places = ["usr/bin/busybox", "bin/busybox"].map(|path| root.join(path));
        let busybox = places.into_iter().find(|path| path.is_file());
        let busybox =
            busybox.ok_or_else(|| Error::Wrong(format!("no busybox under {}", root.display())))?;
        let (architecture, lacks) = (row.architecture, row.lacks);
        Ok(Self { architecture, image, release, busybox, modules, lacks })
    }

    /// A kernel of the user's own, its modules beside it or in `/lib/modules/RELEASE`.
    ///
    /// # Errors
    /// A file is missing; the message says which.
    pub(crate) fn own(own: &OwnKernel<'_>) -> Result<Self> {
        let image = fs::canonicalize(own.image).map_err(Error::file("find", own.image))?;
        let name = file_name(&image);
        let release = match name.strip_prefix("vmlinuz-") {
            Some(release) => release.to_owned(),
            None => image.parent().map(file_name).unwrap_or_default(),
        };
        let beside = image.parent().filter(|dir| dir.join("modules.builtin").is_file());
        let modules =
            beside.map_or_else(|| Path::new("/lib/modules").join(&release), Path::to_owned);
        let modules = fs::canonicalize(&modules).map_err(Error::file("find", &modules))?;
        let busybox = own.busybox.map_or_else(busybox_of_machine, |path| Ok(path.to_owned()))?;
        let architecture = Architecture::Amd64;
        Ok(Self { architecture, image, release, busybox, modules, lacks: &[] })
    }

    /// A kernel that was built here, in the folder `dir` of the cache with the list of what is built into
    /// it, which is all that there is.
    ///
    /// # Errors
    /// A file is missing.
    pub(crate) fn built(architecture: Architecture, dir: &Path, busybox: &Path) -> Result<Self> {
        let image = dir.join(super::linux::IMAGE);
        let image = fs::canonicalize(&image).map_err(Error::file("find", &image))?;
        let release = file_name(dir).split('_').nth(1).unwrap_or_default().to_owned();
        let (modules, busybox) = (dir.to_owned(), busybox.to_owned());
        Ok(Self { architecture, image, release, busybox, modules, lacks: &["virtio-blk"] })
    }

    /// The same image before it was packed; only what was built here has it, for amd64.
    pub(crate) fn unpacked(&self) -> PathBuf {
        self.image.with_file_name(super::linux::UNPACKED)
    }

    /// `7.3.4 amd64`: the version without Debian's additions, and the processor.
    pub(crate) fn title(&self) -> String {
        let version = self.release.split(['+', '-']).next().unwrap_or_default();
        format!("{version} {}", self.architecture.debian())
    }

    /// A module's bytes, uncompressed; nothing if it is built into the kernel or known to be left
    /// out.
    ///
    /// # Errors
    /// There is no such module, or it cannot be read.
    pub(crate) fn module(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if self.lacks.contains(&name) || self.built_in(name)? {
            return Ok(None);
        }
        let found = find(&self.modules, &|file| {
            file.split_once(".ko").is_some_and(|(stem, _)| stem.replace('_', "-") == name)
        });
        match found {
            Some(path) => self.uncompressed(&path).map(Some),
            None => Err(Error::NoModule { module: name.to_owned(), modules: self.modules.clone() }),
        }
    }

    fn built_in(&self, name: &str) -> Result<bool> {
        let path = self.modules.join("modules.builtin");
        let list = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let wanted = format!("/{name}.ko");
        Ok(list.lines().any(|line| line.replace('_', "-").ends_with(&wanted)))
    }

    fn uncompressed(&self, path: &Path) -> Result<Vec<u8>> {
        let mut unpack = match path.extension().and_then(|end| end.to_str()) {
            Some("xz") => Command::new("xz"),
            Some("zst") => Command::new("zstd"),
            Some("gz") => Command::new("gzip"),
            _ => return fs::read(path).map_err(Error::file("read", path)),
        };
        if !command::exists(&command::name(&unpack)) {
            // a minimal machine has none of these programs, the guest's busybox knows xz and gzip
            let applet = command::name(&unpack);
            unpack = Command::new(&self.busybox);
            unpack.arg(applet);
        }
        Ok(command::output(unpack.arg("-dc").arg(path))?.stdout)
    }
}

fn busybox_of_machine() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|dir| dir.join("busybox")).find(|file| file.is_file()).ok_or(
        Error::Lacking {
            missing: "a static busybox".to_owned(),
            install: "apt-get install busybox-static (or give --busybox)".to_owned(),
        },
    )
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn only_entry(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.find_map(|entry| Some(entry.ok()?.path()))
}

/// Looks through the folders below for a file whose name is wanted.
fn find(dir: &Path, wanted: &dyn Fn(&str) -> bool) -> Option<PathBuf> {
    fs::read_dir(dir).ok()?.flatten().map(|entry| entry.path()).find_map(|path| {
        if path.is_dir() && !path.is_symlink() {
            return find(&path, wanted);
        }
        wanted(&file_name(&path)).then_some(path)
    })
}

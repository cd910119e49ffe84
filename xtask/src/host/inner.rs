//! What a guest takes that runs an unpatched QEMU itself: Debian's packages, and what QEMU's guest boots.
//! Both are folders of this machine.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::initramfs::{self, Program};
use crate::setup::guest_kernel::GuestKernel;
use crate::vm::machine::Function;

/// The folders' device numbers; behind those of the functions that the scenarios are about.
const SLOTS: [u8; 2] = [8, 9];

/// The program that is the inner guest's first process.
const FIRST: &str = "host-suite";

/// The folders.
#[derive(Debug)]
pub(super) struct Inner {
    packages: PathBuf,
    boot: PathBuf,
}

impl Inner {
    /// Fills the folder `boot` for the kernel that the outer guest has; `packages` are QEMU's.
    ///
    /// # Errors
    /// The kernel is none that was built here, or a file cannot be written.
    pub(super) fn prepare(
        packages: PathBuf,
        kernel: &GuestKernel,
        programs: &[Program],
        boot: &Path,
    ) -> Result<Self> {
        let first = programs.iter().find(|program| program.name == FIRST);
        let first = first.ok_or_else(|| Error::Wrong(format!("no program {FIRST}")))?;
        fs::create_dir_all(boot).map_err(Error::file("make", boot))?;
        let initrd = boot.join("initrd");
        fs::write(&initrd, initramfs::alone(first)).map_err(Error::file("write", &initrd))?;
        let image = kernel.unpacked();
        fs::copy(&image, boot.join("vmlinux")).map_err(Error::file("copy", &image))?;
        Ok(Self { packages, boot: boot.to_owned() })
    }

    /// The devices through which the outer guest reads them, by the tags that `tests/host` has for them.
    pub(super) fn functions(&self) -> [Function; 2] {
        let [packages, boot] = SLOTS;
        [
            Function::Folder { slot: packages, tag: "qemu", path: self.packages.clone() },
            Function::Folder { slot: boot, tag: "inner", path: self.boot.clone() },
        ]
    }
}

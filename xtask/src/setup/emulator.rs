//! The QEMU that runs the guests: one out of Debian's packages, or one that is named.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::apt::Archive;
use super::bundle::{Bundle, Contents};
use super::cache::Cache;
use super::guest_kernel::Architecture;
use super::tree::Tree;
use crate::command;
use crate::error::{Error, Result};

/// QEMU for both guest architectures with its firmware, for an amd64 host.
const AMD64: Bundle = Bundle {
    name: "qemu",
    lead: "qemu-system-x86",
    archive: archive("amd64"),
    contents: Contents::Closure(&[
        "qemu-system-x86",
        "qemu-system-arm",
        "qemu-system-data",
        "seabios",
        "ipxe-qemu",
    ]),
};

/// The same for an arm64 host.
const ARM64: Bundle = Bundle { name: "qemu-arm64-host", archive: archive("arm64"), ..AMD64 };

const fn archive(architecture: &'static str) -> Archive {
    let suites = &["trixie", "trixie-backports"];
    Archive { suites, prefer: Some("trixie-backports"), architecture }
}

/// A QEMU that can be started.
#[derive(Debug)]
pub(crate) struct Emulator {
    place: Place,
}

#[derive(Debug)]
enum Place {
    /// A program of the machine's own, for its own architecture's guests.
    Program(PathBuf),
    /// Unpacked packages: the firmware in it is named on each call.
    Tree(Tree),
}

impl Emulator {
    /// The program given, or the newest that the mirror serves.
    ///
    /// # Errors
    /// The packages cannot be had, or there is none for this machine's architecture.
    pub(crate) fn bring(
        own: Option<&Path>,
        cache: &Cache,
        mirror: Option<&str>,
    ) -> Result<Emulator> {
        let place = match own {
            Some(program) => Place::Program(
                std::fs::canonicalize(program).map_err(Error::file("find", program))?,
            ),
            None => unpacked(cache, mirror)?,
        };
        Ok(Self { place })
    }

    /// Where packages with a QEMU for an amd64 machine are unpacked, whatever this machine is: what a guest
    /// takes that runs one itself.
    ///
    /// # Errors
    /// The packages cannot be had.
    pub(crate) fn for_a_guest(cache: &Cache, mirror: Option<&str>) -> Result<PathBuf> {
        AMD64.bring(cache, mirror)
    }

    /// Where its packages are unpacked, if it came out of packages.
    pub(crate) fn root(&self) -> Option<&Path> {
        match &self.place {
            Place::Program(_) => None,
            Place::Tree(tree) => Some(tree.root()),
        }
    }

    /// The call that starts it; arguments follow.
    pub(crate) fn command(&self, guest: Architecture) -> Command {
        match &self.place {
            Place::Program(program) => Command::new(program),
            Place::Tree(tree) => {
                let root = tree.root();
                let mut command = tree.command(guest.qemu(), &["pulseaudio"]);
                for firmware in ["qemu", "seabios"] {
                    command.arg("-L").arg(root.join("usr/share").join(firmware));
                }
                command.arg("-L").arg(root.join("usr/lib/ipxe/qemu"));
                command.env("QEMU_MODULE_DIR", tree.libraries().join("qemu"));
                command
            }
        }
    }

    /// Its own word for its version, which also shows that it starts at all.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) fn version(&self) -> Result<String> {
        let told = command::text(self.command(Architecture::Amd64).arg("--version"))?;
        Ok(told.lines().next().unwrap_or_default().to_owned())
    }
}

fn unpacked(cache: &Cache, mirror: Option<&str>) -> Result<Place> {
    let bundle = match std::env::consts::ARCH {
        "x86_64" => AMD64,
        "aarch64" => ARM64,
        other => {
            return Err(Error::Wrong(format!("no packaged QEMU for {other} here: give --qemu")));
        }
    };
    Tree::at(bundle.bring(cache, mirror)?).map(Place::Tree)
}

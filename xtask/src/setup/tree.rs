//! Programs out of unpacked packages: they run with the loader and the libraries that came along.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{Error, Result};

/// Packages of this machine's architecture, unpacked.
#[derive(Debug)]
pub(crate) struct Tree {
    root: PathBuf,
    loader: PathBuf,
    libraries: PathBuf,
}

impl Tree {
    /// The packages in `root`, with all that they depend on.
    ///
    /// # Errors
    /// A machine for which nothing is known of where loader and libraries lie.
    pub(crate) fn at(root: PathBuf) -> Result<Self> {
        let (loader, triplet) = match std::env::consts::ARCH {
            "x86_64" => ("usr/lib64/ld-linux-x86-64.so.2", "x86_64-linux-gnu"),
            "aarch64" => ("usr/lib/ld-linux-aarch64.so.1", "aarch64-linux-gnu"),
            other => return Err(Error::Wrong(format!("no packaged programs for {other} here"))),
        };
        let (loader, libraries) = (root.join(loader), root.join("usr/lib").join(triplet));
        Ok(Self { root, loader, libraries })
    }

    /// Where they are unpacked.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The folder of their libraries.
    pub(crate) fn libraries(&self) -> &Path {
        &self.libraries
    }

    /// The call that starts `usr/bin/PROGRAM`; arguments follow. Libraries are looked for in the
    /// folders `more` of [`libraries`](Self::libraries) too.
    pub(crate) fn command(&self, program: &str, more: &[&str]) -> Command {
        let mut path = self.libraries.clone().into_os_string();
        for folder in more {
            path.push(":");
            path.push(self.libraries.join(folder));
        }
        let mut command = Command::new(&self.loader);
        command.arg("--library-path").arg(path).arg(self.root.join("usr/bin").join(program));
        command
    }
}

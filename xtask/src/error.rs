//! What can go wrong while something is set up or run.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

/// Shorthand for everything in this program that can fail.
pub(crate) type Result<T> = std::result::Result<T, Error>;

/// Why a command of the project could not do its work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum Error {
    /// A file or folder could not be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    /// A program could not be started at all.
    #[error("cannot run {program}: {source}")]
    Spawn { program: String, source: io::Error },
    /// A program ran and failed; `output` is the end of what it said.
    #[error("{program} failed ({status}): {output}")]
    Failed { program: String, status: ExitStatus, output: String },
    /// Programs that this machine lacks, and the command that brings them.
    #[error("this machine lacks {missing}; install with: {install}")]
    Lacking { missing: String, install: String },
    /// Nobody says where packages come from.
    #[error("apt's sources name no Debian mirror: give one with --mirror URL")]
    NoMirror,
    /// Packages could not be fetched, and none are in the cache.
    #[error("no packages from the mirror, none in the cache: {0}")]
    Mirror(Box<Error>),
    /// An answer of a tool that is not what it should be.
    #[error("{program} answered something unexpected: {what}")]
    Answer { program: &'static str, what: String },
    /// A kernel module that is neither a file nor built in.
    #[error("no module {module} in {} and it is not built into that kernel", modules.display())]
    NoModule { module: String, modules: PathBuf },
    /// The VMM ended itself by a fault of its own, which is known: nothing was shown either way.
    #[error("the VMM ended itself: {0}")]
    VmmFell(&'static str),
    /// The name of a scenario or guest that does not exist.
    #[error("no {kind} {name:?}; there are: {known}")]
    Unknown { kind: &'static str, name: String, known: String },
    /// Something did not come within its time.
    #[error("{what} did not come within {seconds} s")]
    Late { what: String, seconds: u64 },
    /// A running part ended, or said something that it must not.
    #[error("{0}")]
    Wrong(String),
}

impl Error {
    /// Whether it is the machine that lacks something, not we.
    pub(crate) const fn is_lacking(&self) -> bool {
        matches!(self, Self::Lacking { .. } | Self::NoMirror | Self::Mirror(_))
    }

    /// Turns an I/O error into one that says what was tried on which path.
    pub(crate) fn file(
        action: &'static str,
        path: impl AsRef<Path>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.as_ref().to_owned();
        move |source| Self::File { action, path, source }
    }
}

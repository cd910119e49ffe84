//! What stops a comparison before it has a verdict.

use std::io;
use std::path::PathBuf;

use viommu_pgtable::PhysAddr;

/// A comparison that could not be made. A disagreement is not an error: it is a result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The emulator's program did not start.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The emulator ended, or was ended because it did not answer in time.
    #[error("the emulator is gone; it said: {said}")]
    Gone {
        /// The end of its standard error.
        said: String,
    },
    /// The emulator answered a command with something else than its result.
    #[error("the emulator answered {answer:?}")]
    Answer {
        /// The answer.
        answer: String,
    },
    /// A file or pipe that connects us with the emulator failed.
    #[error("{what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The emulated machine is not the one that this program knows how to program.
    #[error("{what} is {found:#x}, not what was expected")]
    Machine {
        /// The register.
        what: &'static str,
        /// Its content.
        found: u64,
    },
    /// The tables do not fit into the memory set aside for them, or an address is outside of it.
    #[error("no room for tables at {at}")]
    TableMemory {
        /// Where it was tried.
        at: PhysAddr,
    },
    /// Our own mapper refused what it should have taken.
    #[error("cannot build a table: {reason}")]
    Build {
        /// The mapper's words.
        reason: String,
    },
}

impl Error {
    /// An [`Error::Io`] for `what`.
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    /// An [`Error::Build`] from the mapper's error.
    pub(crate) fn build(reason: impl std::fmt::Display) -> Self {
        Self::Build { reason: reason.to_string() }
    }
}

/// What comparisons return.
pub type Result<T> = std::result::Result<T, Error>;

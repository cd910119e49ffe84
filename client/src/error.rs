//! What can go wrong between a driver and its device.

use std::io;

use crate::request::Status;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The device answered with another status than OK.
    #[error("{request} was refused: {status}")]
    Refused {
        /// Which request.
        request: &'static str,
        /// What it answered.
        status: Status,
    },
    /// The device does not know the request: it gave the buffer back as it was.
    #[error("{0} is not known to the device")]
    UnknownRequest(&'static str),
    /// The device answered with a length that is not that of the reply.
    #[error("{request} was answered with {used} bytes, its reply has {expected}")]
    WrongLength {
        /// Which request.
        request: &'static str,
        /// The used length.
        used: u32,
        /// That of the reply.
        expected: usize,
    },
    /// Nothing came in time.
    #[error("{0}: no answer")]
    NoAnswer(&'static str),
    /// Something that makes no sense came.
    #[error("{0}")]
    Malformed(&'static str),
    /// The device lacks features that are needed.
    #[error("the device does not offer features {missing:#x}")]
    Features {
        /// Their bits.
        missing: u64,
    },
    /// The device or memory could not be reached.
    #[error("{call}: {source}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

impl Error {
    /// For `map_err`: `call` was tried.
    pub(crate) fn io(call: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { call, source }
    }
}

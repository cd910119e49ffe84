//! The socket: VMMs are served one after the other, by the same function.

use std::convert::Infallible;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use log::{info, warn};
use vfio_user::Server;

use super::function::{Device, Function};
use super::termination;

/// Why a function cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ServeError {
    /// Something that is no socket has the socket's name; it is left alone.
    #[error("{0} exists and is not a socket")]
    NotASocket(PathBuf),
    /// The socket could not be made.
    #[error("cannot listen on {path}: {source}")]
    Listen {
        /// The socket's name.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Signals cannot be handled.
    #[error("cannot handle signals: {0}")]
    Signals(#[from] io::Error),
    /// No more connections can be accepted.
    #[error("cannot accept a connection: {0}")]
    Accept(vfio_user::Error),
}

/// Serves `function` on the socket `path`: each VMM that connects meets it as after power-on.
///
/// Ends the process with exit code 0 on SIGTERM and SIGINT, and removes the socket then.
///
/// # Errors
/// [`ServeError`]; a VMM that leaves, in whatever way, is none.
pub(crate) fn serve<D: Device>(
    path: &Path,
    function: &mut Function<D>,
) -> Result<Infallible, ServeError> {
    let listener = listen(path)?;
    termination::exit_on_signals(path.to_owned())?;
    let server =
        Server::from_owned_fd(OwnedFd::from(listener), true, function.irqs(), function.regions());
    info!("listening on {}", path.display());
    loop {
        match server.run(function) {
            Ok(()) => info!("the VMM has gone"),
            Err(vfio_user::Error::SocketAccept(source)) => {
                return Err(ServeError::Accept(vfio_user::Error::SocketAccept(source)));
            }
            Err(error) => warn!("the connection broke: {error}"),
        }
        function.disconnect();
    }
}

/// Listens on `path`; a socket that an earlier process left there is replaced.
fn listen(path: &Path) -> Result<UnixListener, ServeError> {
    match fs::symlink_metadata(path) {
        Ok(about) if !about.file_type().is_socket() => {
            return Err(ServeError::NotASocket(path.to_owned()));
        }
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
    .and_then(|()| UnixListener::bind(path))
    .map_err(|source| ServeError::Listen { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn an_old_socket_is_replaced_and_another_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(listen(&path).unwrap());
        let again = listen(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(again);

        let file = folder.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert!(matches!(listen(&file), Err(ServeError::NotASocket(_))));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
        let nowhere = folder.path().join("none/socket");
        assert!(matches!(listen(&nowhere), Err(ServeError::Listen { .. })));
    }
}

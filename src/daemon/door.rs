//! Where front-ends come from: one at a time.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::sockopt;

use super::DaemonError;
use crate::device::{Poll, Token, Trigger, Watched};

/// A way in for front-ends.
///
/// While one is served the door is not watched: a second one waits in the listening socket's queue until
/// the first has left.
#[derive(Debug)]
pub(super) struct Door {
    way: Way,
    watch: Option<Watched<UnixListener>>,
}

#[derive(Debug)]
enum Way {
    /// A listening socket: front-ends come and go.
    Listening { listener: UnixListener, _file: Option<SocketFile> },
    /// A connection that was handed over: one front-end, and then the end.
    Connected(Option<UnixStream>),
}

/// A socket file that we made, and remove unless somebody has put another one in its place.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Door {
    /// Listens at `path`. An old socket there is replaced; a file of another kind is not.
    pub(super) fn at_path(path: &Path) -> Result<Self, DaemonError> {
        let cannot = |source| DaemonError::Listen { path: path.to_owned(), source };
        remove_old_socket(path).map_err(cannot)?;
        let listener = UnixListener::bind(path).map_err(cannot)?;
        let file = SocketFile::new(path).map_err(cannot)?;
        Self::listening(listener, Some(file)).map_err(cannot)
    }

    /// Takes a socket that was handed over, listening or connected.
    pub(super) fn from_fd(fd: OwnedFd) -> Result<Self, DaemonError> {
        let raw = fd.as_raw_fd();
        let cannot = |source| DaemonError::Handed { raw, source };
        let listening = sockopt::socket_acceptconn(&fd).map_err(|errno| cannot(errno.into()))?;
        if listening {
            return Self::listening(UnixListener::from(fd), None).map_err(cannot);
        }
        Ok(Self { way: Way::Connected(Some(UnixStream::from(fd))), watch: None })
    }

    /// Watches for the next front-end; `poll` reports it as `token`.
    pub(super) fn open(&mut self, poll: &Arc<Poll>, token: Token) -> io::Result<()> {
        if let (Way::Listening { listener, .. }, None) = (&self.way, &self.watch) {
            self.watch = Some(Watched::new(poll, listener.try_clone()?, token, Trigger::Level)?);
        }
        Ok(())
    }

    /// Stops watching.
    pub(super) fn shut(&mut self) {
        self.watch = None;
    }

    /// The front-end that has come, if any; the door is closed behind it.
    pub(super) fn enter(&mut self) -> io::Result<Option<UnixStream>> {
        match &mut self.way {
            Way::Connected(stream) => Ok(stream.take()),
            Way::Listening { listener, .. } => match listener.accept() {
                Ok((stream, _)) => {
                    self.watch = None;
                    Ok(Some(stream))
                }
                Err(error) if is_nobody(&error) => Ok(None),
                Err(error) => Err(error),
            },
        }
    }

    /// No front-end can come any more.
    pub(super) fn is_used_up(&self) -> bool {
        matches!(self.way, Way::Connected(None))
    }

    fn listening(listener: UnixListener, file: Option<SocketFile>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { way: Way::Listening { listener, _file: file }, watch: None })
    }
}

impl SocketFile {
    fn new(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|there| there == self.identity) {
            // If it cannot be removed, the next start will replace it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Device and inode.
fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// Removes what an earlier daemon left behind, and nothing else.
fn remove_old_socket(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(io::Error::new(io::ErrorKind::AlreadyExists, "a file that is no socket")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Nobody is there, or nobody any more.
fn is_nobody(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | ConnectionAborted | Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_old_socket_is_replaced_and_ours_is_removed_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let door = Door::at_path(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        drop(door);
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        fs::write(&path, "precious").unwrap();
        let refused = Door::at_path(&path);
        assert!(matches!(refused, Err(DaemonError::Listen { .. })));
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_socket_that_took_our_place_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let first = Door::at_path(&path).unwrap();
        let _second = Door::at_path(&path).unwrap();
        drop(first);
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_connection_that_was_handed_over_serves_once() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut door = Door::from_fd(ours.into()).unwrap();
        assert!(!door.is_used_up());
        assert!(door.enter().unwrap().is_some());
        assert!(door.is_used_up());
        assert!(door.enter().unwrap().is_none());
    }
}

//! The launcher's side channel: when the VMM has bound the devices.
//!
//! Lines of text over a stream socket. `attach` asks for the devices to be taken over, and is answered
//! `ok`, or `error` and why; then it can be asked again. Other lines are answered with an error.

use std::cell::RefCell;
use std::io::{ErrorKind, Read, Write};
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use super::DaemonError;

/// Longest line that is listened to, bytes. A launcher writes one and waits for the answer.
const LINE_BYTES: usize = 64;

/// A launcher's socket.
#[derive(Debug)]
pub(super) struct Control {
    stream: UnixStream,
    /// A line that has not come to its end.
    begun: RefCell<Vec<u8>>,
}

impl Control {
    /// Takes over a connected socket.
    pub(super) fn new(socket: OwnedFd) -> Result<Self, DaemonError> {
        let raw = socket.as_raw_fd();
        let cannot = |source| DaemonError::Handed { raw, source };
        rustix::net::getpeername(&socket).map_err(|errno| cannot(errno.into()))?;
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(true).map_err(cannot)?;
        Ok(Self { stream, begun: RefCell::default() })
    }

    /// Answers what has come; breaks off when the launcher is gone, or does not read its answer.
    pub(super) fn hear(&self, attach: &mut dyn FnMut() -> Result<(), String>) -> ControlFlow<()> {
        let mut part = [0; LINE_BYTES];
        let heard = match (&self.stream).read(&mut part) {
            Ok(0) => return ControlFlow::Break(()),
            Ok(heard) => heard,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return ControlFlow::Continue(()),
            Err(_) => return ControlFlow::Break(()),
        };
        let mut line = self.begun.borrow_mut();
        line.extend(part.iter().take(heard));
        if line.last() != Some(&b'\n') && line.len() < LINE_BYTES {
            return ControlFlow::Continue(());
        }
        let done = match std::mem::take(&mut *line).as_slice() {
            b"attach\n" => attach(),
            _ => Err("only \"attach\" can be asked for".to_owned()),
        };
        let answer = match done {
            Ok(()) => {
                log::info!("the VFIO devices are taken over");
                "ok\n".to_owned()
            }
            Err(why) => format!("error {why}\n"),
        };
        match (&self.stream).write_all(answer.as_bytes()) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn say(line: &str, done: &Result<(), String>) -> (String, ControlFlow<()>) {
        let (mut launcher, ours) = UnixStream::pair().unwrap();
        let control = Control::new(ours.into()).unwrap();
        launcher.write_all(line.as_bytes()).unwrap();
        let flow = control.hear(&mut || done.clone());
        drop(control);
        let mut answer = String::new();
        launcher.read_to_string(&mut answer).unwrap();
        (answer, flow)
    }

    #[test]
    fn an_attach_is_answered_with_what_came_of_it() {
        assert_eq!(say("attach\n", &Ok(())), ("ok\n".to_owned(), ControlFlow::Continue(())));
        let refused = say("attach\n", &Err("not bound".to_owned()));
        assert_eq!(refused, ("error not bound\n".to_owned(), ControlFlow::Continue(())));
    }

    #[test]
    fn a_line_that_comes_in_parts_is_one_line() {
        let (mut launcher, ours) = UnixStream::pair().unwrap();
        let control = Control::new(ours.into()).unwrap();
        let mut attached = 0;
        for part in ["att", "ach", "\n"] {
            launcher.write_all(part.as_bytes()).unwrap();
            let flow = control.hear(&mut || {
                attached += 1;
                Ok(())
            });
            assert_eq!(flow, ControlFlow::Continue(()));
        }
        assert_eq!(attached, 1);
    }

    #[test]
    fn only_a_connected_socket_is_a_launchers() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let lonely = std::os::unix::net::UnixDatagram::unbound().unwrap();
        for (fd, why) in [(OwnedFd::from(file), "non-socket"), (lonely.into(), "not connected")] {
            let told = Control::new(fd).unwrap_err().to_string();
            assert!(told.starts_with("descriptor ") && told.contains(why), "{told}");
        }
    }

    #[test]
    fn another_word_attaches_nothing() {
        let (answer, _) = say("detach\n", &Ok(()));
        assert!(answer.starts_with("error "), "{answer}");
    }

    #[test]
    fn a_launcher_that_has_left_is_not_listened_to_any_more() {
        let (launcher, ours) = UnixStream::pair().unwrap();
        let control = Control::new(ours.into()).unwrap();
        drop(launcher);
        assert_eq!(control.hear(&mut || Ok(())), ControlFlow::Break(()));
    }
}

//! The front-end's connection: whole messages only, and never a wait.
//!
//! vhost's handler reads with blocking calls, and tries again for ever where a timeout of the socket
//! would end a read or a write. So it is called only when a message lies in the socket from end to end
//! and the reply has room; what does not come together in [`PATIENCE`] ends the connection.

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::RecvFlags;
use vhost::vhost_user::message::MAX_MSG_SIZE;
use vhost::vhost_user::{BackendReqHandler, Error};
use viommu_backend::HostIommu;

use super::Device;
use super::poll::{Poll, Token, Trigger, Watched};

/// How long a message may stay incomplete, or a reply unread. Front-ends send and read whole messages:
/// one that does not for this long is stuck, and keeps the next front-end out.
const PATIENCE: Duration = Duration::from_secs(2);

/// Messages after which the loop looks at other things first.
const MESSAGES_PER_TURN: usize = 32;

/// Length of a message's header: request, flags, size of the payload, 4 bytes each.
const HEADER_BYTES: usize = 12;

/// Where a connection stands after its turn.
#[derive(Debug)]
pub enum Progress {
    /// All that came is served.
    Idle,
    /// There is more: come back without waiting.
    More,
    /// Half a message, or a reply without room: come back at this moment at the latest.
    Until(Instant),
    /// It is over; the reason, if it is not simply that the front-end left.
    Gone(Option<String>),
}

/// What the socket holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inbox {
    Empty,
    Half,
    Whole,
    Closed,
}

/// One front-end and its device.
pub struct Connection<H: HostIommu> {
    stream: Watched<UnixStream>,
    handler: BackendReqHandler<Mutex<Device<H>>>,
    device: Arc<Mutex<Device<H>>>,
    stuck_since: Option<Instant>,
}

impl<H: HostIommu> std::fmt::Debug for Connection<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl<H: HostIommu> Connection<H> {
    /// Begins to serve a front-end; `poll` reports its messages as `token`.
    ///
    /// # Errors
    /// What the kernel says to watching the socket.
    pub fn new(
        stream: UnixStream,
        device: &Arc<Mutex<Device<H>>>,
        poll: &Arc<Poll>,
        token: Token,
    ) -> io::Result<Self> {
        let watched = Watched::new(poll, stream.try_clone()?, token, Trigger::Edge)?;
        let handler = BackendReqHandler::from_stream(stream, Arc::clone(device));
        Ok(Self { stream: watched, handler, device: Arc::clone(device), stuck_since: None })
    }

    /// Serves the messages that have come.
    pub fn serve(&mut self) -> Progress {
        for _ in 0..MESSAGES_PER_TURN {
            match self.inbox() {
                Ok(Inbox::Empty) => {
                    self.stuck_since = None;
                    return Progress::Idle;
                }
                Ok(Inbox::Half) => return self.wait_on(),
                Ok(Inbox::Closed) => return Progress::Gone(None),
                Ok(Inbox::Whole) => {}
                Err(error) => return Progress::Gone(Some(error.to_string())),
            }
            self.stuck_since = None;
            if let Some(end) = self.message() {
                return end;
            }
        }
        Progress::More
    }

    /// One whole message; `Some` if it was the last.
    fn message(&mut self) -> Option<Progress> {
        let error = self.handler.handle_request().err()?;
        if lock(&self.device).take_tolerable() {
            // A guest can cause as many as it likes, by what it writes to the configuration space.
            log::debug!("front-end message refused: {error}");
            return None;
        }
        Some(Progress::Gone(match error {
            Error::Disconnected => None,
            other => Some(other.to_string()),
        }))
    }

    /// Not now: until when to wait, or that it is over.
    fn wait_on(&mut self) -> Progress {
        let deadline = *self.stuck_since.get_or_insert_with(Instant::now) + PATIENCE;
        if Instant::now() < deadline {
            return Progress::Until(deadline);
        }
        Progress::Gone(Some(format!("it did not go on within {} s", PATIENCE.as_secs())))
    }

    /// Looks into the socket without taking anything out.
    fn inbox(&self) -> io::Result<Inbox> {
        let stream = self.stream.get();
        let mut header = [0; HEADER_BYTES];
        let (_, seen) =
            match rustix::net::recv(stream, &mut header, RecvFlags::PEEK | RecvFlags::DONTWAIT) {
                Ok(seen) => seen,
                Err(rustix::io::Errno::AGAIN) => return Ok(Inbox::Empty),
                Err(rustix::io::Errno::CONNRESET) => return Ok(Inbox::Closed),
                Err(error) => return Err(error.into()),
            };
        if seen == 0 {
            return Ok(Inbox::Closed);
        }
        let here = usize::try_from(rustix::io::ioctl_fionread(stream)?).unwrap_or(usize::MAX);
        let [.., a, b, c, d] = header;
        let payload = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        // The handler refuses a longer payload on sight of the header.
        let whole =
            seen == HEADER_BYTES && (payload > MAX_MSG_SIZE || here >= HEADER_BYTES + payload);
        self.room_or_end(whole)
    }

    /// A whole message can be handled if the socket has room for a reply: it says so only when three
    /// quarters of its buffer are free, far more than a reply takes.
    fn room_or_end(&self, whole: bool) -> io::Result<Inbox> {
        let mut fds = [PollFd::new(self.stream.get(), PollFlags::OUT | PollFlags::RDHUP)];
        poll(&mut fds, Some(&Timespec::default()))?;
        let [fd] = &fds;
        let says = |what| fd.revents().intersects(what);
        Ok(match whole {
            // With nobody at the other end a reply fails at once.
            true if says(PollFlags::OUT | PollFlags::HUP) => Inbox::Whole,
            false if says(PollFlags::RDHUP | PollFlags::HUP) => Inbox::Closed,
            _ => Inbox::Half,
        })
    }
}

/// The device. One thread serves it, so there is nobody to wait for; were a serving to panic, the state is
/// that of a host which refused.
pub(super) fn lock<H>(device: &Mutex<Device<H>>) -> MutexGuard<'_, Device<H>> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

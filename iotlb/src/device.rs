//! A device process's handle of its connection.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType};
use viommu_pasid::EndpointId;

use crate::abi;
use crate::conn::SLOT_LEN;
use crate::link::{Lane, Link};
use crate::message::{self, Message, Received, RefusedReason, WELCOME_FDS, Welcome};
use crate::reader::Reader;
use crate::shm::{Mapping, Rights, Shared};
use crate::view::View;

/// How long a daemon may take to accept and to answer.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a daemon may take to answer a function message: it may drain, and drains are bounded by
/// the daemon's `stuck` time, 1 s by default, plus the time that a killed process needs to go.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The daemon speaks another version.
    #[error("the daemon speaks version {daemon} of the shared layout, this device version {ours}")]
    Version {
        /// Ours.
        ours: u32,
        /// The daemon's.
        daemon: u32,
    },
    /// The endpoint is refused until the guest's IOMMU is reset.
    #[error("the endpoint is cut off until the IOMMU is reset")]
    CutOff,
    /// As many processes as there may be serve this endpoint.
    #[error("the endpoint has no place for another process")]
    Full,
    /// Refused for a reason that this version does not know.
    #[error("refused, reason {0}")]
    Refused(u32),
    /// No answer in time.
    #[error("no answer from the daemon")]
    NoAnswer,
    /// What answered is no daemon of ours.
    #[error("what answers at the socket is no IOMMU daemon")]
    NoDaemon,
    /// A system call failed.
    #[error("{call}: {source}")]
    Io {
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The shared memory is not what it should be.
    #[error("shared memory: {0}")]
    Memory(#[source] io::Error),
}

/// All [`abi::READER_SLOTS`] readers are in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("all {} readers of the connection are in use", abi::READER_SLOTS)]
pub struct NoFreeSlot;

/// What [`Device::dispatch`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notice {
    /// A drain waits for a guard or a pin of this process: close them. It happens before the daemon
    /// takes the process for stuck.
    pub revoked: bool,
    /// The daemon is there. If not, [`Reader::enter`] refuses from now on.
    pub connected: bool,
}

/// One connection to a daemon: one endpoint.
#[derive(Debug)]
pub struct Device {
    link: Arc<Link>,
}

impl Device {
    /// Connects to the daemon's socket at `path`.
    ///
    /// # Errors
    /// See [`ConnectError`]. Waits a few seconds at most.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, ConnectError> {
        let socket = open(path.as_ref())?;
        let hello = Message::Hello { version: abi::VERSION };
        hello.send(&socket, &[]).map_err(|source| ConnectError::Io { call: "send", source })?;
        let (welcome, fds) = await_welcome(&socket)?;
        let link = map(socket, &welcome, fds).map_err(ConnectError::Memory)?;
        Ok(Self { link: Arc::new(link) })
    }

    /// Who does DMA through this connection.
    #[must_use]
    pub fn endpoint(&self) -> EndpointId {
        self.link.endpoint
    }

    /// Width of the PASIDs that the endpoint may use, bits; 0 if it has none.
    #[must_use]
    pub fn pasid_bits(&self) -> u8 {
        self.link.pasid_bits
    }

    /// A reader, for one thread or queue.
    ///
    /// # Errors
    /// If there are [`abi::READER_SLOTS`] already.
    pub fn reader(&self) -> Result<Reader, NoFreeSlot> {
        let lane = Lane::take(&self.link.slot).ok_or(NoFreeSlot)?;
        Ok(Reader::new(Arc::clone(&self.link), lane))
    }

    /// Says that the function was reset, and that it does no DMA until
    /// [`function_started`](Self::function_started). Returns when the daemon has acted on it.
    ///
    /// # Errors
    /// If the daemon is gone, or does not answer within some seconds. Holding a guard meanwhile
    /// makes the daemon wait for us, and us for it. A notice that comes meanwhile is kept for
    /// [`dispatch`](Self::dispatch): call it afterwards.
    pub fn function_reset(&self) -> io::Result<()> {
        self.link.ask(|sequence| Message::FunctionReset { sequence }, ANSWER_TIMEOUT)
    }

    /// Says that the function, which was reset, is about to do DMA again. Returns when the daemon
    /// knows.
    ///
    /// # Errors
    /// As [`function_reset`](Self::function_reset).
    pub fn function_started(&self) -> io::Result<()> {
        self.link.ask(|sequence| Message::FunctionStarted { sequence }, ANSWER_TIMEOUT)
    }

    /// Takes what the daemon has sent, without waiting. Call it when [`as_fd`](AsFd::as_fd) is
    /// readable.
    pub fn dispatch(&self) -> Notice {
        let heard = self.link.hear();
        Notice { revoked: heard.revoked, connected: heard.connected }
    }

    /// False once the daemon was seen to be gone: by [`dispatch`](Self::dispatch), a function
    /// message, or a reader that waits.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.link.is_connected()
    }
}

impl AsFd for Device {
    /// Readable when [`dispatch`](Device::dispatch) has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.link.socket.as_fd()
    }
}

/// A connected socket whose calls take no longer than the handshake may.
fn open(path: &Path) -> Result<OwnedFd, ConnectError> {
    let io = |call| move |errno: rustix::io::Errno| ConnectError::Io { call, source: errno.into() };
    let address = SocketAddrUnix::new(path).map_err(io("socket path"))?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(io("socket"))?;
    for which in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, which, Some(HANDSHAKE_TIMEOUT)).map_err(io("setsockopt"))?;
    }
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => return Ok(socket),
            // it was still waiting for a place in the daemon's queue
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Err(ConnectError::NoAnswer),
            Err(errno) => return Err(io("connect")(errno)),
        }
    }
}

fn await_welcome(socket: &OwnedFd) -> Result<(Welcome, Vec<OwnedFd>), ConnectError> {
    match message::receive(socket, RecvFlags::empty()) {
        Received::Message(Message::Welcome(welcome), fds) => Ok((welcome, fds)),
        Received::Message(Message::Refused { version, reason }, _) => Err(match reason {
            RefusedReason::Version => ConnectError::Version { ours: abi::VERSION, daemon: version },
            RefusedReason::CutOff => ConnectError::CutOff,
            RefusedReason::Full => ConnectError::Full,
            RefusedReason::Other(raw) => ConnectError::Refused(raw),
        }),
        Received::Message(..) | Received::Garbage => Err(ConnectError::NoDaemon),
        Received::Empty | Received::Closed => Err(ConnectError::NoAnswer),
    }
}

fn map(socket: OwnedFd, welcome: &Welcome, fds: Vec<OwnedFd>) -> io::Result<Link> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidData, text.to_owned());
    let fds: [OwnedFd; WELCOME_FDS] =
        fds.try_into().map_err(|_| invalid("descriptors are missing"))?;
    let [region, slot, doorbell] = fds;
    if welcome.slot_bytes != SLOT_LEN as u64 {
        return Err(invalid("slot memory of another size"));
    }
    let view = View::new(region, welcome.region_bytes)?;
    Mapping::check_sealed(&slot)?;
    let slot = Mapping::map(slot, SLOT_LEN, Rights::ReadWrite)?;
    let slot = Shared::new(Arc::new(slot)).ok_or_else(|| invalid("slot memory is too short"))?;
    Link::new(view, slot, (socket, doorbell), welcome)
}

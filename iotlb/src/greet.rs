//! From a socket file to a connection: listen, accept, HELLO, WELCOME.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use rustix::event::epoll;
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, acceptfrom_with,
};
use viommu_pasid::{EndpointId, Structures};

use crate::abi::{self, State};
use crate::conn::{Connection, SLOT_LEN};
use crate::event::DeviceEvent;
use crate::hub::{Endpoint, Greeting, Hub};
use crate::message::{self, Message, Received, RefusedReason, Welcome};
use crate::token::Token;

/// Processes that one endpoint may have at once: one, and room for a successor and a few helpers.
pub const MAX_CONNECTIONS_PER_ENDPOINT: usize = 8;

/// Clients of one endpoint that have connected and said nothing; one more, and the oldest is
/// dropped.
const MAX_GREETINGS_PER_ENDPOINT: usize = 4;

/// Clients accepted in one dispatch.
const ACCEPTS_PER_VISIT: usize = 8;

/// Clients that wait in the kernel.
const BACKLOG: i32 = 16;

/// A listening socket at `path`, for its owner only.
pub(crate) fn listener(path: &Path) -> io::Result<OwnedFd> {
    remove_old(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // before `bind`: the file never exists with more
    rustix::fs::fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// Removes the socket of an earlier daemon; anything that is no socket is left alone.
fn remove_old(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(meta) if meta.file_type().is_socket() => std::fs::remove_file(path),
        Ok(_) => {
            let text = format!("{} exists and is no socket", path.display());
            Err(io::Error::new(io::ErrorKind::AlreadyExists, text))
        }
    }
}

impl Hub {
    /// Takes new clients of an endpoint.
    pub(crate) fn accept(&mut self, endpoint: EndpointId) {
        for _ in 0..ACCEPTS_PER_VISIT {
            let Some(found) = self.endpoints.get(&endpoint) else { return };
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match acceptfrom_with(&found.listener, flags) {
                Ok((socket, _)) => self.await_hello(endpoint, socket),
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    return self.starve(endpoint);
                }
                // a client that left meanwhile
                Err(_) => {}
            }
        }
    }

    fn await_hello(&mut self, endpoint: EndpointId, socket: OwnedFd) {
        let id = self.next_id;
        self.next_id += 1;
        if let Err(error) =
            epoll::add(&self.epoll, &socket, Token::Greeting(id).data(), epoll::EventFlags::IN)
        {
            return log::warn!("client of {endpoint}: {error}");
        }
        let is_same = |greeting: &Greeting| greeting.endpoint == endpoint;
        if self.greetings.iter().filter(|g| is_same(g)).count() == MAX_GREETINGS_PER_ENDPOINT
            && let Some(oldest) = self.greetings.iter().position(is_same)
        {
            // closing a socket that nobody else has unwatches it
            self.greetings.remove(oldest);
        }
        self.greetings.push_back(Greeting { id, socket, endpoint });
    }

    /// Stops listening for `endpoint` until a connection ends: there are no descriptors.
    fn starve(&mut self, endpoint: EndpointId) {
        let Some(found) = self.endpoints.get(&endpoint) else { return };
        log::warn!("no descriptor for a client of {endpoint}: it waits");
        if epoll::delete(&self.epoll, &found.listener).is_ok() {
            self.starved.push(endpoint);
        }
    }

    /// Listens again where descriptors had run out.
    pub(crate) fn feed_starved(&mut self) {
        for endpoint in std::mem::take(&mut self.starved) {
            let Some(found) = self.endpoints.get(&endpoint) else { continue };
            let data = Token::Listener(endpoint).data();
            if epoll::add(&self.epoll, &found.listener, data, epoll::EventFlags::IN).is_err() {
                self.starved.push(endpoint);
            }
        }
    }

    /// Hears a client's HELLO and answers it.
    pub(crate) fn greet(&mut self, id: u64, on: &mut dyn FnMut(DeviceEvent)) {
        let Some(at) = self.greetings.iter().position(|greeting| greeting.id == id) else { return };
        let Some(greeting) = self.greetings.get(at) else { return };
        let heard = message::receive(&greeting.socket, RecvFlags::DONTWAIT);
        if matches!(heard, Received::Empty) {
            return;
        }
        let Some(Greeting { socket, endpoint, .. }) = self.greetings.remove(at) else { return };
        let Received::Message(Message::Hello { version }, _) = heard else {
            return log::debug!("client of {endpoint} is no device");
        };
        let refused = match self.endpoints.get(&endpoint) {
            _ if version != abi::VERSION => Some(RefusedReason::Version),
            None => Some(RefusedReason::CutOff),
            Some(found) if found.state == State::CutOff => Some(RefusedReason::CutOff),
            Some(found) if found.connections.len() >= MAX_CONNECTIONS_PER_ENDPOINT => {
                Some(RefusedReason::Full)
            }
            Some(_) => None,
        };
        if let Some(reason) = refused {
            return self.refuse(&socket, endpoint, reason);
        }
        match self.welcome(id, socket, endpoint) {
            Ok(()) => {
                self.counters.connects += 1;
                on(DeviceEvent::Connected { endpoint });
            }
            Err(error) => log::warn!("device of {endpoint}: {error}"),
        }
    }

    fn refuse(&mut self, socket: &OwnedFd, endpoint: EndpointId, reason: RefusedReason) {
        let level =
            self.endpoints.get_mut(&endpoint).map_or(log::Level::Debug, Endpoint::complaint);
        log::log!(level, "device of {endpoint} refused: {reason:?}");
        self.counters.refused += 1;
        // a client that does not hear it sees the end of the connection
        let _unheard = Message::Refused { version: abi::VERSION, reason }.send(socket, &[]);
    }

    /// Makes a connection of a client. Until this returns `Ok` nothing of it is counted.
    fn welcome(&mut self, id: u64, socket: OwnedFd, endpoint: EndpointId) -> io::Result<()> {
        let found = self.endpoints.get_mut(&endpoint).ok_or(io::ErrorKind::NotFound)?;
        let (connection, slot_fd) = Connection::new(socket, endpoint, found.state)?;
        let (root, root_config) = match &found.structures {
            Structures::Vtd { root } => (root.raw(), 0),
            Structures::SmmuV3(root) => (root.base().raw(), root.base_config()),
        };
        let message = Message::Welcome(Welcome {
            endpoint: endpoint.raw(),
            pasid_bits: u32::from(found.pasid_bits),
            root,
            root_config,
            region_bytes: self.region.bytes(),
            slot_bytes: SLOT_LEN as u64,
        });
        let (data, flags) = (Token::Connection(id).data(), epoll::EventFlags::IN);
        epoll::modify(&self.epoll, &connection.socket, data, flags | epoll::EventFlags::RDHUP)?;
        let data = Token::Doorbell(id).data();
        epoll::add(&self.epoll, &connection.doorbell, data, flags | epoll::EventFlags::ET)?;
        let fds = [self.region.as_fd(), slot_fd.as_fd(), connection.doorbell.as_fd()];
        if let Err(error) = message.send(&connection.socket, &fds) {
            // the descriptor may have been sent: its file would stay watched
            epoll::delete(&self.epoll, &connection.doorbell)?;
            return Err(error);
        }
        found.connections.push(id);
        self.connections.insert(id, connection);
        Ok(())
    }
}

//! The daemon's side: listeners, connections, what devices say.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, Timespec, epoll};
use rustix::net::RecvFlags;
use viommu_pasid::{EndpointId, Structures};

use crate::abi::{Arch, State};
use crate::config::{HubConfig, StuckPolicy};
use crate::conn::{Connection, ReaderCounters};
use crate::event::{Counters, DeviceEvent};
use crate::message::{self, Message, Received};
use crate::region::Region;
use crate::token::Token;
use crate::withdrawn::{Withdrawn, WithdrawnSet};

/// Readiness events taken in one dispatch; the rest waits in the kernel for the next.
const EVENTS_PER_DISPATCH: usize = 64;

/// Messages of one device taken in one dispatch.
const MESSAGES_PER_VISIT: usize = 8;

/// One endpoint with a socket.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) structures: Structures,
    pub(crate) pasid_bits: u8,
    /// What its readers are told, those of future connections included.
    pub(crate) state: State,
    pub(crate) listener: OwnedFd,
    pub(crate) connections: Vec<u64>,
    /// A process was refused and a line of the log says so: others could make the log grow.
    complained: bool,
    path: PathBuf,
}

impl Endpoint {
    /// How loud to say that a process of this endpoint was refused: the first time only.
    pub(crate) const fn complaint(&mut self) -> log::Level {
        let again = std::mem::replace(&mut self.complained, true);
        if again { log::Level::Debug } else { log::Level::Warn }
    }
}

/// A client that has not said HELLO.
#[derive(Debug)]
pub(crate) struct Greeting {
    pub(crate) id: u64,
    pub(crate) socket: OwnedFd,
    pub(crate) endpoint: EndpointId,
}

/// The device processes of a daemon, and the tables that they walk.
///
/// One thread. Nothing here blocks but [`drain`](Self::drain), which waits for device processes up
/// to [`HubConfig::stuck`].
#[derive(Debug)]
pub struct Hub {
    pub(crate) region: Region,
    pub(crate) stuck: Duration,
    pub(crate) policy: StuckPolicy,
    pub(crate) endpoints: BTreeMap<EndpointId, Endpoint>,
    pub(crate) connections: BTreeMap<u64, Connection>,
    pub(crate) greetings: VecDeque<Greeting>,
    pub(crate) next_id: u64,
    pub(crate) withdrawn: WithdrawnSet,
    /// A state word changed since the last drain.
    pub(crate) states_changed: bool,
    pub(crate) counters: Counters,
    /// Listeners that are not watched because descriptors ran out.
    pub(crate) starved: Vec<EndpointId>,
    /// The last words and the ends of devices that are gone; the next dispatch tells.
    farewells: Vec<DeviceEvent>,
    pub(crate) epoll: OwnedFd,
    wake: OwnedFd,
}

impl Hub {
    /// A hub without endpoints.
    ///
    /// # Errors
    /// `InvalidInput` for a region that cannot be; otherwise what the kernel says.
    pub fn new(config: HubConfig) -> io::Result<Self> {
        let region = Region::new(config.arch, config.table_base, config.table_bytes)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        epoll::add(&epoll, &wake, Token::Wake.data(), epoll::EventFlags::IN)?;
        Ok(Self {
            region,
            stuck: config.stuck,
            policy: config.policy,
            endpoints: BTreeMap::new(),
            connections: BTreeMap::new(),
            greetings: VecDeque::new(),
            next_id: 0,
            withdrawn: WithdrawnSet::default(),
            states_changed: false,
            counters: Counters::default(),
            starved: Vec::new(),
            farewells: Vec::new(),
            epoll,
            wake,
        })
    }

    /// The tables.
    #[must_use]
    pub const fn region(&self) -> &Region {
        &self.region
    }

    /// The tables, to be written. What is taken out of them is said with
    /// [`withdraw`](Self::withdraw).
    pub const fn region_mut(&mut self) -> &mut Region {
        &mut self.region
    }

    /// What happened so far.
    #[must_use]
    pub const fn counters(&self) -> Counters {
        self.counters
    }

    /// What the readers connected now say they did.
    #[must_use]
    pub fn reader_counters(&self) -> ReaderCounters {
        let counters = self.connections.values().map(Connection::counters);
        counters.fold(ReaderCounters::default(), ReaderCounters::plus)
    }

    /// Listens at `path` for processes that do the DMA of `endpoint`. Its way through the tables
    /// begins at `structures`, which lie in the region. A socket left over at `path` is replaced;
    /// anything else is not.
    ///
    /// The socket's file can be opened by its owner only: who may be the device is decided by its
    /// permissions and its folder's.
    ///
    /// # Errors
    /// `AlreadyExists` if the endpoint has a socket, or `path` is something else; `InvalidInput` if
    /// `structures` are another architecture's than the region's; what the kernel says.
    pub fn listen(
        &mut self,
        endpoint: EndpointId,
        structures: Structures,
        pasid_bits: u8,
        path: &Path,
    ) -> io::Result<()> {
        if self.endpoints.contains_key(&endpoint) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if self.region.arch() != arch_of(&structures) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let listener = crate::greet::listener(path)?;
        let data = Token::Listener(endpoint).data();
        epoll::add(&self.epoll, &listener, data, epoll::EventFlags::IN)?;
        let path = path.to_owned();
        let (state, connections) = (State::Running, Vec::new());
        let complained = false;
        let new =
            Endpoint { structures, pasid_bits, state, listener, connections, complained, path };
        self.endpoints.insert(endpoint, new);
        Ok(())
    }

    /// Notes what was taken out of the tables; the next [`drain`](Self::drain) waits for pins of
    /// it.
    pub fn withdraw(&mut self, what: Withdrawn) {
        self.withdrawn.add(what);
    }

    /// Tells the readers of `endpoint`, present and future, whether accesses run, wait or are
    /// refused.
    ///
    /// [`State::Running`] lets waiting readers go at once; the others are in force after the next
    /// [`drain`](Self::drain). An endpoint that is cut off stays so until
    /// [`readmit_all`](Self::readmit_all).
    pub fn set_state(&mut self, endpoint: EndpointId, state: State) {
        let Some(found) = self.endpoints.get_mut(&endpoint) else { return };
        if found.state == state || found.state == State::CutOff {
            return;
        }
        found.state = state;
        for id in &found.connections {
            let connection = self.connections.get_mut(id);
            if let Some(connection) = connection.filter(|c| c.state() != State::CutOff) {
                connection.set_state(state);
            }
        }
        self.states_changed = true;
    }

    /// Admits endpoints again that were cut off: their next connections are served.
    pub fn readmit_all(&mut self) {
        for endpoint in self.endpoints.values_mut().filter(|e| e.state == State::CutOff) {
            endpoint.state = State::Running;
            endpoint.complained = false;
        }
    }

    /// True while processes of `endpoint` are refused.
    #[must_use]
    pub fn is_cut_off(&self, endpoint: EndpointId) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|e| e.state == State::CutOff)
    }

    /// Connected device processes.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.connections.len()
    }

    /// Does what is to do at the devices' ends, without waiting, a bounded amount of it. Call it
    /// when [`as_fd`](AsFd::as_fd) is readable, and [`drain`](Self::drain) after having acted on
    /// the events.
    pub fn dispatch(&mut self, on: &mut dyn FnMut(DeviceEvent)) {
        self.answer_all();
        self.tell_gone(on);
        let mut events: Vec<epoll::Event> = Vec::with_capacity(EVENTS_PER_DISPATCH);
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if let Err(error) = epoll::wait(&self.epoll, spare_capacity(&mut events), Some(&now))
            && error != rustix::io::Errno::INTR
        {
            log::error!("epoll_wait: {error}");
        }
        for event in events {
            match Token::from_data(event.data) {
                Token::Wake => self.unwake(),
                Token::Listener(endpoint) => self.accept(endpoint),
                Token::Greeting(id) => self.greet(id, on),
                Token::Connection(id) => self.hear(id, on),
                Token::Doorbell(id) => self.take_faults(id, on),
            }
        }
    }

    fn tell_gone(&mut self, on: &mut dyn FnMut(DeviceEvent)) {
        self.farewells.drain(..).for_each(on);
    }

    fn unwake(&self) {
        let mut count = [0; 8];
        // nothing to read means that it is not ringing, which is what we want
        let _nothing = rustix::io::read(&self.wake, &mut count);
    }

    /// Sends the answers that devices wait for.
    pub(crate) fn answer_all(&mut self) {
        let deaf: Vec<u64> = self
            .connections
            .iter_mut()
            .filter_map(|(id, c)| (!c.answer()).then_some(*id))
            .collect();
        for id in deaf {
            self.expel(id, "does not read its answers");
        }
    }

    /// Takes the messages of a device.
    fn hear(&mut self, id: u64, on: &mut dyn FnMut(DeviceEvent)) {
        for _ in 0..MESSAGES_PER_VISIT {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            let endpoint = connection.endpoint();
            if connection.is_expelled {
                // only its end wakes us
                self.remove(id);
                return self.tell_gone(on);
            }
            let (event, sequence) = match message::receive(&connection.socket, RecvFlags::DONTWAIT)
            {
                Received::Message(Message::FunctionReset { sequence }, _) => {
                    (DeviceEvent::FunctionReset { endpoint }, sequence)
                }
                Received::Message(Message::FunctionStarted { sequence }, _) => {
                    (DeviceEvent::FunctionStarted { endpoint }, sequence)
                }
                Received::Empty => return,
                Received::Closed => {
                    self.remove(id);
                    return self.tell_gone(on);
                }
                Received::Message(..) | Received::Garbage => {
                    return self.expel(id, "sent what is no message of a device");
                }
            };
            if !connection.owe(sequence) {
                return self.expel(id, "asks without waiting for answers");
            }
            on(event);
        }
    }

    /// Takes the fault records of a device.
    fn take_faults(&mut self, id: u64, on: &mut dyn FnMut(DeviceEvent)) {
        if let Some(connection) = self.connections.get_mut(&id) {
            Self::take_faults_of(connection, &mut self.counters, on);
        }
    }

    fn take_faults_of(
        connection: &mut Connection,
        counters: &mut Counters,
        on: &mut dyn FnMut(DeviceEvent),
    ) {
        let endpoint = connection.endpoint();
        let mut on = |record| on(DeviceEvent::Fault { endpoint, record });
        let taken = connection.take_faults(&mut on);
        counters.faults += taken.good;
        counters.bad_faults += taken.bad;
    }

    /// Refuses a device that breaks the protocol. An honest reader of it may still be inside a
    /// section or hold a pin, so drains count it until the next one has passed and no pin is left.
    fn expel(&mut self, id: u64, why: &str) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        let endpoint = connection.endpoint();
        let level =
            self.endpoints.get_mut(&endpoint).map_or(log::Level::Debug, Endpoint::complaint);
        log::log!(level, "device of {endpoint}: {why}, refused");
        connection.set_state(State::CutOff);
        connection.is_expelled = true;
        self.states_changed = true;
        // what it says keeps nobody awake, only that it is gone
        let (data, flags) = (Token::Connection(id).data(), epoll::EventFlags::RDHUP);
        let watched = epoll::modify(&self.epoll, &connection.socket, data, flags);
        debug_assert!(watched.is_ok(), "epoll: {watched:?}");
        self.ring();
    }

    /// Forgets a device that is gone, or that no longer counts.
    pub(crate) fn remove(&mut self, id: u64) {
        let Some(mut connection) = self.connections.remove(&id) else { return };
        let endpoint = connection.endpoint();
        // one that has hung up and lives on learns from the next epoch that nobody waits for it
        connection.set_state(State::CutOff);
        let farewells = &mut self.farewells;
        let mut last_words = |event| farewells.push(event);
        Self::take_faults_of(&mut connection, &mut self.counters, &mut last_words);
        // The doorbell's file lives on in the device: closing our descriptor would not unwatch it.
        // Both may be unwatched already.
        let _gone = epoll::delete(&self.epoll, &connection.doorbell);
        let _gone = epoll::delete(&self.epoll, &connection.socket);
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.connections.retain(|other| *other != id);
        }
        self.farewells.push(DeviceEvent::Disconnected { endpoint });
        self.ring();
        self.feed_starved();
    }

    /// Makes `as_fd` readable.
    fn ring(&self) {
        // full means that it rings
        let _ringing = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }
}

const fn arch_of(structures: &Structures) -> Arch {
    match structures {
        Structures::Vtd { .. } => Arch::Vtd,
        Structures::SmmuV3(_) => Arch::SmmuV3,
    }
}

impl AsFd for Hub {
    /// Readable when [`dispatch`](Hub::dispatch) has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

impl Drop for Hub {
    /// From here on nobody waits for readers, so none begins a section: they find that they are to
    /// wait, and then that we are gone.
    fn drop(&mut self) {
        for connection in self.connections.values_mut().filter(|c| c.state() == State::Running) {
            connection.set_state(State::Parked);
        }
        self.region.next_epoch();
        for endpoint in self.endpoints.values() {
            // whoever removed it before us did what we want
            let _gone = std::fs::remove_file(&endpoint.path);
        }
    }
}

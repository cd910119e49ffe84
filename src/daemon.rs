//! The process around the device: one thread, one epoll, one front-end at a time.
//!
//! What it watches: the door for the next front-end, the front-end's messages, the kicks of its two
//! queues, the device processes, and the wish to end. Nothing is waited for but readiness, with one
//! exception: [`Device::sync`], which is bounded.
//!
//! A second front-end waits at the socket until the first has left; then it finds a new device.

mod control;
mod device_events;
mod door;
pub(crate) mod signal;
mod sys;

use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use viommu_backend::vfio::{Counters, Vfio};
use viommu_iotlb::DeviceEvent;

use crate::device::{
    Connection, Device, KickTokens, Poll, Polling, Progress, Queue, Serving, Token, Trigger, Turn,
    Watched,
};
use crate::host::Host;
use crate::iommu::{Iommu, StartError};
use control::Control;
use door::Door;
use signal::Signals;

/// How long the door stays shut when a front-end cannot be let in, for want of descriptors for one.
const DOOR_SHUT: Duration = Duration::from_millis(500);

/// What the epoll reports.
mod token {
    use super::Token;

    pub(super) const DOOR: Token = Token(0);
    pub(super) const FRONT_END: Token = Token(1);
    pub(super) const REQUEST_KICK: Token = Token(2);
    pub(super) const EVENT_KICK: Token = Token(3);
    pub(super) const DEVICES: Token = Token(4);
    pub(super) const STOP: Token = Token(5);
    pub(super) const REPORT: Token = Token(6);
    pub(super) const CONTROL: Token = Token(7);
    pub(super) const LEAVING: Token = Token(8);
}

/// Why the daemon cannot start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The socket for front-ends could not be made.
    #[error("cannot listen at {}: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A descriptor that was handed over is not what it should be.
    #[error("descriptor {raw}, which was handed over: {source}")]
    Handed {
        /// Its number.
        raw: RawFd,
        /// Why not: nothing is open there, or no socket, or none that is connected.
        source: io::Error,
    },
    /// A host that cannot serve this IOMMU.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The kernel refused something that the loop cannot do without.
    #[error("event loop: {0}")]
    Loop(#[from] io::Error),
}

/// Where front-ends come from, ready to be served.
#[derive(Debug)]
pub struct FrontEnds(Door);

impl FrontEnds {
    /// A socket at `path`. An old socket there is replaced.
    ///
    /// # Errors
    /// [`DaemonError::Listen`].
    pub fn at_path(path: &Path) -> Result<Self, DaemonError> {
        Door::at_path(path).map(Self)
    }

    /// A socket that was left open as descriptor `raw`: a listening one serves for ever, a connected one
    /// once. To be called before the process opens anything of its own.
    ///
    /// # Errors
    /// [`DaemonError::Handed`].
    pub fn from_fd(raw: RawFd) -> Result<Self, DaemonError> {
        take_over(raw).and_then(Door::from_fd).map(Self)
    }
}

/// Takes over descriptor `raw`, which whoever started us left open. To be called before the process
/// opens anything of its own.
///
/// # Errors
/// [`DaemonError::Handed`]: nothing is open there, or it is a standard stream.
pub fn take_over(raw: RawFd) -> Result<OwnedFd, DaemonError> {
    sys::take_over(raw).map_err(|source| DaemonError::Handed { raw, source })
}

/// The daemon.
#[derive(Debug)]
pub struct Daemon {
    poll: Arc<Poll>,
    door: Door,
    device: Arc<Mutex<Device<Host>>>,
    connection: Option<Connection<Host>>,
    heard: Vec<DeviceEvent>,
    turn: Turn,
    messages_left: bool,
    /// When the front-end's half message is overdue, or the door opens again.
    deadline: Option<Instant>,
    _devices: Watched<OwnedFd>,
    _stop: Watched<Signals>,
    report: Watched<Signals>,
    control: Option<Watched<Control>>,
    _leaving: Option<Watched<OwnedFd>>,
}

/// What one wait reported.
#[derive(Debug, Clone, Copy, Default)]
struct Ready {
    front_end: bool,
    request_kick: bool,
    event_kick: bool,
    devices: bool,
    stop: bool,
    report: bool,
    control: bool,
    leaving: bool,
}

impl Ready {
    fn note(&mut self, token: Token) {
        match token {
            token::FRONT_END => self.front_end = true,
            token::REQUEST_KICK => self.request_kick = true,
            token::EVENT_KICK => self.event_kick = true,
            token::DEVICES => self.devices = true,
            token::STOP => self.stop = true,
            token::REPORT => self.report = true,
            token::CONTROL => self.control = true,
            token::LEAVING => self.leaving = true,
            // The door is looked at in each turn without a front-end.
            _ => {}
        }
    }
}

impl Daemon {
    /// A daemon that serves `iommu`, with `host` to make it take effect. `polling` says
    /// when it looks at the request queue without having been woken.
    ///
    /// # Errors
    /// [`DaemonError::Start`], or what the kernel says.
    pub fn new(
        front_ends: FrontEnds,
        iommu: Iommu,
        host: Host,
        polling: Polling,
    ) -> Result<Self, DaemonError> {
        let poll = Poll::new()?;
        let stop = Watched::new(&poll, Signals::stop()?, token::STOP, Trigger::Level)?;
        let report = Watched::new(&poll, Signals::report()?, token::REPORT, Trigger::Level)?;
        let devices = host.first().as_fd().try_clone_to_owned()?;
        let devices = Watched::new(&poll, devices, token::DEVICES, Trigger::Level)?;
        let leaving = host.second().and_then(Vfio::leaving);
        let leaving = leaving.map(|fd| fd.try_clone_to_owned()).transpose()?;
        let leaving = leaving
            .map(|fd| Watched::new(&poll, fd, token::LEAVING, Trigger::Level))
            .transpose()?;
        let kicks = KickTokens { request: token::REQUEST_KICK, event: token::EVENT_KICK };
        let serving = Serving { kicks, polling };
        let device = Device::new(iommu, host, &poll, serving)?;
        Ok(Self {
            poll,
            door: front_ends.0,
            device: Arc::new(Mutex::new(device)),
            connection: None,
            heard: Vec::new(),
            turn: Turn::Done,
            messages_left: false,
            deadline: None,
            _devices: devices,
            _stop: stop,
            report,
            control: None,
            _leaving: leaving,
        })
    }

    /// Listens, at a connected socket, to who starts the VMM: once that has bound the VFIO devices they
    /// are taken over.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn listen_to_launcher(&mut self, socket: OwnedFd) -> Result<(), DaemonError> {
        let control = Control::new(socket)?;
        self.control = Some(Watched::new(&self.poll, control, token::CONTROL, Trigger::Level)?);
        Ok(())
    }

    /// Serves until SIGTERM or SIGINT, or until a connection that was handed over has ended. SIGUSR1
    /// writes the counters to the log.
    ///
    /// # Errors
    /// [`DaemonError::Loop`].
    pub fn run(&mut self) -> Result<(), DaemonError> {
        // A connection that was handed over is there already, and nothing reports it.
        self.serve_front_end(Ready::default())?;
        while !(self.connection.is_none() && self.door.is_used_up()) {
            let ready = self.wait()?;
            if ready.stop {
                log::info!("asked to end");
                break;
            }
            if ready.report {
                self.report.get().forget();
                self.log_counters();
            }
            if ready.control {
                self.hear_launcher();
            }
            if ready.leaving
                && let Some(vfio) = self.device().host().second_mut()
            {
                vfio.dispatch();
            }
            if ready.devices {
                self.hear_devices();
            }
            self.take_kicks(ready);
            self.serve_front_end(ready)?;
            let turn = self.device().serve();
            self.turn = self.turn.and(turn);
        }
        self.log_counters();
        Ok(())
    }

    /// Waits until something is to do.
    fn wait(&mut self) -> Result<Ready, DaemonError> {
        if self.connection.is_none() && self.deadline.is_none() {
            self.door.open(&self.poll, token::DOOR)?;
        }
        let timeout = match (std::mem::replace(&mut self.turn, Turn::Done), self.deadline) {
            (Turn::Again, _) => Some(Duration::ZERO),
            (Turn::Done, at) => at.map(|at| at.saturating_duration_since(Instant::now())),
        };
        let mut ready = Ready::default();
        self.poll.wait(timeout, |token| ready.note(token))?;
        Ok(ready)
    }

    fn take_kicks(&self, ready: Ready) {
        if ready.request_kick {
            self.device().kicked(Queue::Request);
        }
        if ready.event_kick {
            self.device().kicked(Queue::Event);
        }
    }

    /// Lets a front-end in, or serves the one that is there.
    fn serve_front_end(&mut self, ready: Ready) -> Result<(), DaemonError> {
        if self.connection.is_none() {
            if self.deadline.is_some() && !self.is_late() {
                return Ok(());
            }
            self.deadline = None;
            if let Err(error) = self.let_in() {
                log::warn!("a front-end cannot be let in now: {error}");
                self.door.shut();
                self.deadline = Instant::now().checked_add(DOOR_SHUT);
            }
        } else if !(ready.front_end || self.messages_left || self.is_late()) {
            return Ok(());
        }
        self.serve_messages();
        Ok(())
    }

    /// Lets the next front-end in, if one is there.
    fn let_in(&mut self) -> io::Result<()> {
        let Some(stream) = self.door.enter()? else { return Ok(()) };
        let connection = Connection::new(stream, &self.device, &self.poll, token::FRONT_END)?;
        self.connection = Some(connection);
        log::info!("a front-end has connected");
        Ok(())
    }

    /// The front-end's messages, as far as they have come.
    fn serve_messages(&mut self) {
        let Some(connection) = &mut self.connection else { return };
        self.deadline = None;
        self.messages_left = false;
        match connection.serve() {
            Progress::Idle => {}
            Progress::More => {
                self.messages_left = true;
                self.turn = Turn::Again;
            }
            Progress::Until(deadline) => self.deadline = Some(deadline),
            Progress::Gone(why) => self.part(why),
        }
    }

    /// The front-end has left, or is dropped for a reason.
    fn part(&mut self, why: Option<String>) {
        self.connection = None;
        self.device().front_end_gone();
        match why {
            None => log::info!("the front-end has left"),
            Some(why) => log::warn!("the front-end is dropped: {why}"),
        }
        self.log_counters();
    }

    /// What the deadline was set for is due.
    fn is_late(&self) -> bool {
        self.deadline.is_some_and(|at| at <= Instant::now())
    }

    /// What the device processes say. Those that wait for an answer get it from the wait for all of them,
    /// after what they said has taken effect.
    fn hear_devices(&mut self) {
        let mut heard = std::mem::take(&mut self.heard);
        let mut device = self.device();
        device.host().first_mut().dispatch(&mut |event| heard.push(event));
        for event in heard.drain(..) {
            device_events::react(&mut device, event);
        }
        device.sync();
        drop(device);
        self.heard = heard;
    }

    /// What the launcher says; one that is gone says nothing more.
    fn hear_launcher(&mut self) {
        let Some(control) = &self.control else { return };
        let heard = control.get().hear(&mut || {
            let mut device = self.device();
            let vfio = device.host().second_mut().ok_or("there are no VFIO devices")?;
            vfio.adopt().map_err(|error| error.to_string())?;
            device.narrow().map_err(|error| error.to_string())
        });
        if heard.is_break() {
            self.control = None;
        }
    }

    fn log_counters(&self) {
        let mut device = self.device();
        let hub = device.host().first().hub().counters();
        let table_pages = device.host().first().hub().region().pages_used();
        let (domains, mappings) = (device.iommu().domain_count(), device.iommu().mapping_count());
        log::info!(
            "{} domains={domains} mappings={mappings} table_pages={table_pages} drains={} waits={} \
             longest_drain_us={} devices={} killed={} cut_off={}",
            device.counters(),
            hub.drains,
            hub.waits,
            hub.longest_drain.as_micros(),
            hub.connects,
            hub.killed,
            hub.cut_off,
        );
        if let Some(vfio) = device.host().second() {
            let Counters { copies, pins, registers } = vfio.counters();
            log::info!("vfio: vfio_copies={copies} vfio_pins={pins} vfio_registers={registers}");
        }
    }

    /// The device. Only this thread uses it, and none of its calls is left half-way.
    fn device(&self) -> MutexGuard<'_, Device<Host>> {
        self.device.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

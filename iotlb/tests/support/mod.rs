//! A daemon small enough to read: a hub on a thread of its own, and VT-d tables in it.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd};
use viommu_iotlb::{Device, DeviceEvent, DrainReport, Hub, HubConfig, Withdrawn};
use viommu_pasid::vtd::{AddressWidth, PasidEntry, PasidTable, RootTable, Translation};
use viommu_pasid::{EndpointId, Pasid, Requester, Structures};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr, Table, VtdSecond};

/// The endpoint that most tests use.
pub(crate) const ENDPOINT: EndpointId = EndpointId::new(0x18);

/// No test waits longer for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The untagged traffic of [`ENDPOINT`].
pub(crate) const RID: Requester = Requester::rid(ENDPOINT);

/// A hub and one domain, with [`ENDPOINT`] attached to it.
pub(crate) struct World {
    pub(crate) hub: Hub,
    pub(crate) table: Table<VtdSecond>,
    pub(crate) pasids: PasidTable,
}

impl World {
    pub(crate) fn new(config: HubConfig, socket: &std::path::Path) -> Self {
        let mut hub = Hub::new(config).unwrap();
        let store = hub.region_mut();
        let format = VtdSecond::new(48, 1 << 12 | 1 << 21 | 1 << 30).unwrap();
        let table = Table::new(format, store).unwrap();
        let root = RootTable::new(store).unwrap();
        let pasids = PasidTable::new(store, 20).unwrap();
        root.set_context(store, ENDPOINT.bdf(), &pasids.context()).unwrap();
        hub.listen(ENDPOINT, Structures::Vtd { root: root.root() }, 20, socket).unwrap();
        let mut world = Self { hub, table, pasids };
        world.attach(None);
        world
    }

    /// Sends the accesses of `pasid` somewhere, or nowhere.
    pub(crate) fn set(&mut self, pasid: Option<Pasid>, translation: Option<Translation>) {
        let (store, index) = (self.hub.region_mut(), pasid.map_or(0, Pasid::raw));
        match translation {
            None => self.pasids.clear(store, index),
            Some(translation) => {
                let entry = PasidEntry { domain_tag: 1, translation };
                self.pasids.set(store, index, &entry).unwrap();
            }
        }
        self.hub.withdraw(Withdrawn::Requester(Requester { endpoint: ENDPOINT, pasid }));
    }

    /// Sends the accesses of `pasid` through the domain.
    pub(crate) fn attach(&mut self, pasid: Option<Pasid>) {
        let root = self.table.root();
        self.set(pasid, Some(Translation::SecondLevel { root, width: AddressWidth::Bits48 }));
    }

    pub(crate) fn map(&mut self, iova: u64, bytes: u64, oa: u64, access: Access) {
        let iova = IovaRange::with_len(Iova::new(iova), bytes).unwrap();
        let mapping = Mapping::new(iova, PhysAddr::new(oa), access).unwrap();
        self.table.map(self.hub.region_mut(), &mapping).unwrap();
    }

    pub(crate) fn unmap(&mut self, iova: u64, bytes: u64) {
        let range = IovaRange::with_len(Iova::new(iova), bytes).unwrap();
        self.table.unmap(self.hub.region_mut(), range).unwrap();
        self.hub.withdraw(Withdrawn::Range { requester: RID, range });
    }
}

type Job = Box<dyn FnOnce(&mut World) + Send>;

/// A [`World`] on its own thread, serving its devices.
pub(crate) struct Daemon {
    jobs: Option<Sender<Job>>,
    wake: Arc<rustix::fd::OwnedFd>,
    thread: Option<JoinHandle<()>>,
    heard: Arc<Heard>,
    pub(crate) socket: PathBuf,
    _folder: tempfile::TempDir,
}

/// The events so far.
#[derive(Default)]
struct Heard {
    events: Mutex<Vec<DeviceEvent>>,
    more: Condvar,
}

impl Daemon {
    pub(crate) fn start(config: HubConfig) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("endpoint");
        let mut world = World::new(config, &socket);
        world.hub.drain();
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).unwrap());
        let (jobs, todo) = channel();
        let heard = Arc::new(Heard::default());
        let theirs = (Arc::clone(&wake), Arc::clone(&heard));
        let thread = std::thread::spawn(move || serve(world, &todo, &theirs.0, &theirs.1));
        Self { jobs: Some(jobs), wake, thread: Some(thread), heard, socket, _folder: folder }
    }

    /// Runs `job` on the daemon's thread and waits for it.
    pub(crate) fn run<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut World) -> R + Send + 'static,
    ) -> R {
        self.begin(job).recv_timeout(PATIENCE).unwrap()
    }

    /// Starts `job` on the daemon's thread.
    pub(crate) fn begin<R: Send + 'static>(
        &self,
        job: impl FnOnce(&mut World) -> R + Send + 'static,
    ) -> Receiver<R> {
        let (done, result) = channel();
        let job: Job = Box::new(move |world| _ = done.send(job(world)));
        self.jobs.as_ref().unwrap().send(job).unwrap();
        rustix::io::write(&*self.wake, &1u64.to_ne_bytes()).unwrap();
        result
    }

    pub(crate) fn drain(&self) -> DrainReport {
        self.run(|world| world.hub.drain())
    }

    pub(crate) fn connect(&self) -> Device {
        Device::connect(&self.socket).unwrap()
    }

    /// Waits until the events satisfy `enough`, and returns them.
    pub(crate) fn events(&self, enough: impl Fn(&[DeviceEvent]) -> bool) -> Vec<DeviceEvent> {
        let until = Instant::now() + PATIENCE;
        let mut events = self.heard.events.lock().unwrap();
        while !enough(&events) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited in vain, heard {events:?}");
            events = self.heard.more.wait_timeout(events, left).unwrap().0;
        }
        events.clone()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        drop(self.jobs.take());
        let _ringing = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || std::thread::panicking(), "the daemon's thread panicked");
    }
}

fn serve(mut world: World, todo: &Receiver<Job>, wake: &impl AsFd, heard: &Heard) {
    loop {
        let mut fds = [PollFd::new(wake, PollFlags::IN), PollFd::new(&world.hub, PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        let mut count = [0; 8];
        let _quiet = rustix::io::read(wake, &mut count);
        world.hub.dispatch(&mut |event| {
            heard.events.lock().unwrap().push(event);
            heard.more.notify_all();
        });
        world.hub.drain();
        loop {
            match todo.try_recv() {
                Ok(job) => job(&mut world),
                Err(std::sync::mpsc::TryRecvError::Empty) => break,
                Err(std::sync::mpsc::TryRecvError::Disconnected) => return,
            }
        }
    }
}

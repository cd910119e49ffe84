//! The real software IOMMU for one endpoint, in a thread of the test instead of a daemon's process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use viommu_backend::{DevicePlace, DomainId, HostIommu, SoftwareConfig, SoftwareIommu, Target};
use viommu_iotlb::{DeviceEvent, HubConfig, StuckPolicy};
use viommu_pasid::{EndpointId, Pasid, Requester};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

const ENDPOINT: EndpointId = EndpointId::new(0x20);
const DOMAIN: DomainId = DomainId::new(1);

/// How long a fault may take before a test has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon with one domain, which the endpoint is attached to.
#[derive(Debug)]
pub(crate) struct Daemon {
    inner: Arc<Inner>,
    wake: OwnedFd,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Inner {
    software: Mutex<SoftwareIommu>,
    events: Mutex<Vec<DeviceEvent>>,
    arrived: Condvar,
}

impl Daemon {
    /// Width of the endpoint's PASIDs, bits.
    pub(crate) const PASID_BITS: u8 = 8;

    /// Listens on `socket`.
    pub(crate) fn new(socket: &Path) -> Self {
        // the device's threads are ours: to kill a stuck process would end the tests
        let hub = HubConfig { policy: StuckPolicy::Disconnect, ..HubConfig::default() };
        let config = SoftwareConfig { input_bits: 48, page_size_mask: 0x4020_1000, hub };
        let mut software = SoftwareIommu::new(config).unwrap();
        let socket = Some(PathBuf::from(socket));
        software
            .add_endpoint(&DevicePlace { endpoint: ENDPOINT, pasid_bits: Self::PASID_BITS, socket })
            .unwrap();
        software.create_domain(DOMAIN).unwrap();
        software.attach(Requester::rid(ENDPOINT), Target::Domain(DOMAIN)).unwrap();
        software.sync();

        let inner = Arc::new(Inner {
            software: Mutex::new(software),
            events: Mutex::default(),
            arrived: Condvar::new(),
        });
        let wake = eventfd(0, EventfdFlags::empty()).unwrap();
        let (served, end) = (Arc::clone(&inner), wake.try_clone().unwrap());
        let thread = thread::spawn(move || served.serve(&end));
        Self { inner, wake, thread: Some(thread) }
    }

    /// Attaches the domain to a PASID too.
    pub(crate) fn attach(&self, pasid: Pasid) {
        let requester = Requester { endpoint: ENDPOINT, pasid: Some(pasid) };
        self.inner.software().attach(requester, Target::Domain(DOMAIN)).unwrap();
    }

    /// Maps pages for reading and writing.
    pub(crate) fn map(&self, iova: u64, gpa: u64, bytes: u64) {
        self.map_for(iova, gpa, bytes, Access::RW);
    }

    /// Maps pages for `access`.
    pub(crate) fn map_for(&self, iova: u64, gpa: u64, bytes: u64, access: Access) {
        self.inner.software().map(DOMAIN, &mapping(iova, gpa, bytes, access)).unwrap();
    }

    /// Takes one mapping away; returns when no device uses it.
    pub(crate) fn unmap(&self, iova: u64, gpa: u64, bytes: u64) {
        let mut software = self.inner.software();
        software.unmap(DOMAIN, &mapping(iova, gpa, bytes, Access::RW));
        software.sync();
    }

    /// Lets accesses wait.
    pub(crate) fn park(&self) {
        let mut software = self.inner.software();
        software.park(Requester::rid(ENDPOINT));
        software.sync();
    }

    /// Lets accesses go on.
    pub(crate) fn resume(&self) {
        self.inner.software().resume(Requester::rid(ENDPOINT));
    }

    /// The resets and starts that the device told of, `true` for a start.
    pub(crate) fn functions(&self) -> Vec<bool> {
        let told = |event: &DeviceEvent| match event {
            DeviceEvent::FunctionReset { .. } => Some(false),
            DeviceEvent::FunctionStarted { .. } => Some(true),
            _ => None,
        };
        self.inner.events.lock().unwrap().iter().filter_map(told).collect()
    }

    /// Waits for the next fault and takes it: address and kind of the access.
    pub(crate) fn fault(&self) -> (u64, Access) {
        let is_fault = |event: &DeviceEvent| matches!(event, DeviceEvent::Fault { .. });
        let events = self.inner.events.lock().unwrap();
        let none = |events: &mut Vec<DeviceEvent>| !events.iter().any(is_fault);
        let (mut events, _) =
            self.inner.arrived.wait_timeout_while(events, PATIENCE, none).unwrap();
        let at = events.iter().position(is_fault).expect("no fault");
        match events.remove(at) {
            DeviceEvent::Fault { record, .. } => (record.iova.raw(), record.access),
            other => unreachable!("{other:?} is a fault"),
        }
    }
}

impl Drop for Daemon {
    /// The daemon ends, in the middle of whatever the device does.
    fn drop(&mut self) {
        rustix::io::write(&self.wake, &1u64.to_ne_bytes()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

impl Inner {
    fn software(&self) -> MutexGuard<'_, SoftwareIommu> {
        self.software.lock().unwrap()
    }

    fn serve(&self, end: &OwnedFd) {
        let ready = self.software().as_fd().try_clone_to_owned().unwrap();
        loop {
            let mut fds = [PollFd::new(&ready, PollFlags::IN), PollFd::new(end, PollFlags::IN)];
            poll(&mut fds, None).unwrap();
            if !fds[1].revents().is_empty() {
                return;
            }
            let mut software = self.software();
            let mut heard = Vec::new();
            software.dispatch(&mut |event| heard.push(event));
            self.events.lock().unwrap().extend(heard);
            self.arrived.notify_all();
            software.sync();
        }
    }
}

fn mapping(iova: u64, gpa: u64, bytes: u64, access: Access) -> Mapping {
    let range = IovaRange::with_len(Iova::new(iova), bytes).unwrap();
    Mapping::new(range, PhysAddr::new(gpa), access).unwrap()
}

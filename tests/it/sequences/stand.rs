//! A daemon, two DMA engines behind it, and a played VMM with a driver.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use vfio_user::Server;
use viommu_client::engine::Engine;
use viommu_client::vmm::{FrontEnd, Memfd, VfioUserFunction};
use viommu_client::{Iommu, features};
use viommu_guest::sequences::{Bench, Device};

use super::device;
use super::support::DmaPort;
use crate::support::daemon::Daemon;

/// Bytes of the guest's memory: no sequence gives a page back.
const RAM_BYTES: u64 = 64 << 20;

/// The endpoints: 0000:00:02.0 and 0000:00:03.0.
const ENDPOINTS: [(u32, &str); 2] = [(0x10, "00:02.0"), (0x18, "00:03.0")];

/// Everything; dropped in this order, so that nobody waits for one who is gone.
pub(super) struct Stand {
    pub(super) bench: Bench<FrontEnd, VfioUserFunction>,
    _engines: Vec<Served>,
    pub(super) daemon: Daemon,
}

/// An engine's thread; it ends with its VMM.
struct Served(Option<JoinHandle<()>>);

impl Drop for Served {
    fn drop(&mut self) {
        let ended = self.0.take().map(JoinHandle::join);
        assert!(matches!(ended, Some(Ok(()))) || std::thread::panicking(), "an engine panicked");
    }
}

impl Stand {
    /// Starts all of it, with these structures.
    pub(super) fn start(arch: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("viommu-it-").tempdir().unwrap();
        let iotlb = |at: &str| folder.path().join(format!("{at}.iotlb"));
        let spec = |at: &str| format!("{at},socket={},pasid-bits=20", iotlb(at).display());
        let [(_, first), (_, second)] = ENDPOINTS;
        let (one, other) = (spec(first), spec(second));
        let daemon = Daemon::in_folder(
            folder,
            &["--arch", arch, "--endpoint", one.as_str(), "--endpoint", other.as_str()],
        );

        let memory = Memfd::new(RAM_BYTES).unwrap();
        let (mut devices, mut engines) = (Vec::new(), Vec::new());
        for (endpoint, at) in ENDPOINTS {
            let (iotlb, socket) =
                (daemon.folder().join(format!("{at}.iotlb")), engine(&daemon, at));
            engines.push(Served::new(&iotlb, &socket));
            let function = VfioUserFunction::connect(&socket, memory.clone()).unwrap();
            devices.push(Device { endpoint, engine: Engine::new(function).unwrap() });
        }
        let front_end = FrontEnd::connect(&daemon.socket(), memory).unwrap();
        let wanted = features::STANDARD | features::AUX | features::BIND_TABLE;
        let iommu = Iommu::start(front_end, wanted).unwrap();
        Self { bench: Bench::new(iommu, devices).unwrap(), _engines: engines, daemon }
    }
}

fn engine(daemon: &Daemon, at: &str) -> PathBuf {
    daemon.folder().join(format!("{at}.engine"))
}

impl Served {
    /// An engine behind the IOMMU at `iotlb`, for one VMM at `socket`.
    fn new(iotlb: &Path, socket: &Path) -> Self {
        let dma = Arc::new(DmaPort::connect(Some(iotlb)).unwrap());
        let mut function = device::function(dma).unwrap();
        let server = Server::new(socket, true, function.irqs(), function.regions()).unwrap();
        Self(Some(std::thread::spawn(move || {
            // a VMM that is gone without a word is as good as one that says so
            let _ = server.run(&mut function);
            function.disconnect();
        })))
    }
}

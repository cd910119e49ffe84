//! Ours: the daemon's side here or in a process of its own, the device's side here.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use tempfile::TempDir;
use viommu_iotlb::{Device, Hub, HubConfig, Withdrawn};
use viommu_pasid::vtd::{AddressWidth, PasidEntry, PasidTable, RootTable, Translation};
use viommu_pasid::{EndpointId, Requester, Structures};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr, Table, VtdSecond};

use super::{BASE, ELSEWHERE, PAGE, Reader, Subject, output};

/// In the environment of a process that plays the daemon: how many pages it maps.
pub(super) const PAGES: &str = "TRANSLATE_BENCH_PAGES";
/// And where it listens.
const SOCKET: &str = "TRANSLATE_BENCH_SOCKET";

/// How often who waits for another process or thread looks.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// What the daemon is told on its standard input.
const BUSY: u8 = b'b';
const QUIET: u8 = b'q';

const ENDPOINT: EndpointId = EndpointId::new(8);

/// The daemon's side: tables and the hub.
pub(super) struct World {
    hub: Hub,
    table: Table<VtdSecond>,
}

impl World {
    /// A daemon without mappings.
    pub(super) fn new() -> Self {
        let mut hub = Hub::new(HubConfig::default()).unwrap();
        let format = VtdSecond::new(48, 1 << 12 | 1 << 21 | 1 << 30).unwrap();
        let table = Table::new(format, hub.region_mut()).unwrap();
        Self { hub, table }
    }

    /// A daemon with `pages` pages mapped.
    pub(super) fn with_pages(pages: u64) -> Self {
        let mut world = Self::new();
        (0..pages).for_each(|n| world.map(BASE + n * PAGE, output(n, pages)));
        world
    }

    pub(super) fn map(&mut self, iova: u64, oa: u64) {
        let range = IovaRange::with_len(Iova::new(iova), PAGE).unwrap();
        let mapping = Mapping::new(range, PhysAddr::new(oa), Access::RW).unwrap();
        self.table.map(self.hub.region_mut(), &mapping).unwrap();
    }

    /// Takes translations out of use, and waits until they are.
    pub(super) fn withdraw(&mut self, what: Withdrawn) {
        self.hub.withdraw(what);
        self.hub.drain();
    }

    /// Maps a page elsewhere and unmaps it again.
    pub(super) fn change(&mut self) {
        self.map(ELSEWHERE, PAGE);
        let range = IovaRange::with_len(Iova::new(ELSEWHERE), PAGE).unwrap();
        self.table.unmap(self.hub.region_mut(), range).unwrap();
        self.withdraw(Withdrawn::Range { requester: Requester::rid(ENDPOINT), range });
    }

    /// Attaches the endpoint and listens for its device.
    fn listen(&mut self, socket: &Path) {
        let (store, root) = (self.hub.region_mut(), self.table.root());
        let translation = Translation::SecondLevel { root, width: AddressWidth::Bits48 };
        let pasids = PasidTable::new(store, 0).unwrap();
        pasids.set(store, 0, &PasidEntry { domain_tag: 1, translation }).unwrap();
        let root = RootTable::new(store).unwrap();
        root.set_context(store, ENDPOINT.bdf(), &pasids.context()).unwrap();
        self.hub.listen(ENDPOINT, Structures::Vtd { root: root.root() }, 0, socket).unwrap();
    }

    /// Attaches the endpoint and connects to it.
    pub(super) fn device(&mut self) -> Device {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        self.listen(&socket);
        let (done, device) = channel();
        std::thread::spawn(move || done.send(Device::connect(socket).unwrap()).unwrap());
        loop {
            self.hub.dispatch(&mut |_| {});
            if let Ok(device) = device.recv_timeout(Duration::from_millis(1)) {
                return device;
            }
        }
    }
}

/// A batch of accesses under one guard.
pub(super) fn translate(reader: &viommu_iotlb::Reader, batch: &[u64], len: u64) -> u64 {
    let guard = reader.enter().unwrap();
    let mut sum = 0;
    for iova in batch {
        for piece in guard.translate(None, Iova::new(*iova), len, Access::READ) {
            sum ^= piece.map_or(0, |piece| piece.gpa.raw());
        }
    }
    sum
}

/// Plays the daemon until its standard input ends.
pub(super) fn daemon(pages: u64) {
    let mut world = World::with_pages(pages);
    world.listen(Path::new(&std::env::var_os(SOCKET).unwrap()));
    std::io::stdout().write_all(b"\n").unwrap();
    std::io::stdout().flush().unwrap();
    // Relaxed: a word from one thread to the other, with nothing behind it
    static CHANGES: AtomicBool = AtomicBool::new(false);
    let told = std::thread::spawn(|| {
        for byte in std::io::stdin().lock().bytes() {
            CHANGES.store(byte.unwrap() == BUSY, Ordering::Relaxed);
        }
    });
    while !told.is_finished() {
        world.hub.dispatch(&mut |_| {});
        world.hub.drain();
        if CHANGES.load(Ordering::Relaxed) {
            (0..1000).for_each(|_| world.change());
        } else {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

/// A device whose daemon is another process.
pub(super) struct Apart {
    device: Device,
    daemon: Mutex<Child>,
    _folder: TempDir,
}

impl Apart {
    /// Starts a daemon with `pages` pages mapped, and connects to it.
    pub(super) fn new(pages: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .env(PAGES, pages.to_string())
            .env(SOCKET, &socket)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // it says so when it listens
        daemon.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        let device = Device::connect(socket).unwrap();
        Self { device, daemon: Mutex::new(daemon), _folder: folder }
    }

    fn tell(&self, word: u8) {
        let mut daemon = self.daemon.lock().unwrap();
        daemon.stdin.as_mut().unwrap().write_all(&[word]).unwrap();
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let daemon = self.daemon.get_mut().unwrap();
        drop(daemon.stdin.take());
        daemon.wait().unwrap();
    }
}

impl Subject for Apart {
    fn reader(&self) -> Reader<'_> {
        let reader = self.device.reader().unwrap();
        Box::new(move |batch, len| translate(&reader, batch, len))
    }

    fn change_until(&self, stop: &AtomicBool) {
        self.tell(BUSY);
        while !stop.load(Ordering::Relaxed) {
            std::thread::sleep(LOOK_AGAIN);
        }
        self.tell(QUIET);
    }
}

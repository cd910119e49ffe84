//! What tests of a device stand on: the device behind its real socket, a VMM that talks to it, and the
//! real software IOMMU with its daemon's loop.

mod daemon;
mod vmm;

use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use vfio_user::Server;

use super::{Device, Function};

pub(crate) use daemon::Daemon;
pub(crate) use vmm::{RAM, RAM_BYTES, Vmm};

/// The device's side: serves as many VMMs as it is told, one after the other.
#[derive(Debug)]
pub(crate) struct Served {
    folder: tempfile::TempDir,
    thread: JoinHandle<()>,
}

impl Served {
    /// Serves `function` to `clients` VMMs.
    pub(crate) fn new<D: Device + Send + 'static>(
        mut function: Function<D>,
        clients: usize,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = socket(folder.path());
        let server = Server::new(&path, true, function.irqs(), function.regions()).unwrap();
        let thread = thread::spawn(move || {
            for _ in 0..clients {
                server.run(&mut function).unwrap();
                function.disconnect();
            }
        });
        Self { folder, thread }
    }

    /// Where a VMM connects.
    pub(crate) fn socket(&self) -> PathBuf {
        socket(self.folder.path())
    }

    /// Returns when all VMMs were served; panics if the device did.
    pub(crate) fn join(self) {
        self.thread.join().unwrap();
    }
}

fn socket(folder: &Path) -> PathBuf {
    folder.join("socket")
}

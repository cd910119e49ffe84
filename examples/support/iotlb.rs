//! The connection to the IOMMU's daemon, kept over resets of the function and deaths of the daemon.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use log::{debug, info, warn};
use rustix::event::{PollFd, PollFlags, poll};
use viommu_iotlb::{ConnectError, Device, Reader};

/// The daemon, as one function sees it.
#[derive(Debug)]
pub(crate) struct Iotlb {
    path: PathBuf,
    connection: Mutex<Connection>,
}

#[derive(Debug)]
struct Connection {
    device: Arc<Device>,
    /// The daemon was told that the function was reset, and not yet that it started again.
    quiet: bool,
}

impl Iotlb {
    /// Connects to the daemon's socket for this endpoint.
    ///
    /// # Errors
    /// See [`ConnectError`].
    pub(crate) fn connect(path: &Path) -> Result<Self, ConnectError> {
        let connection = Mutex::new(Connection { device: open(path)?, quiet: false });
        Ok(Self { path: path.to_owned(), connection })
    }

    /// Width of the PASIDs that the daemon tells apart for this endpoint, bits.
    pub(crate) fn pasid_bits(&self) -> u8 {
        self.lock().device.pasid_bits()
    }

    /// A reader for one thread. It is dropped before [`function_reset`](Self::function_reset).
    ///
    /// # Errors
    /// If all are in use.
    pub(crate) fn reader(&self) -> io::Result<Reader> {
        self.lock().device.reader().map_err(io::Error::other)
    }

    /// Says that the function was reset and does no DMA; returns when the daemon has acted on it. From
    /// then on the IOMMU may treat the endpoint as after power-on: firmware reads the disk before any
    /// driver sets up a translation.
    ///
    /// A daemon that can't be told is only logged: the VMM's reset has to succeed all the same.
    pub(crate) fn function_reset(&self) {
        let mut connection = self.lock();
        connection.quiet = true;
        let device = connection.live(&self.path);
        if let Err(error) = device.and_then(|device| device.function_reset()) {
            warn!("the IOMMU does not know of the reset: {error}");
        }
    }

    /// Says that the function begins to do DMA; needed only after a reset.
    ///
    /// # Errors
    /// If the daemon is gone: there is nobody to translate.
    pub(crate) fn function_started(&self) -> io::Result<()> {
        let mut connection = self.lock();
        let device = connection.live(&self.path)?;
        if connection.quiet {
            device.function_started()?;
            connection.quiet = false;
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// The connection, made anew if the daemon was restarted or had cut us off.
    fn live(&mut self, path: &Path) -> io::Result<Arc<Device>> {
        if !self.device.dispatch().connected {
            self.device = open(path).map_err(io::Error::other)?;
        }
        Ok(Arc::clone(&self.device))
    }
}

fn open(path: &Path) -> Result<Arc<Device>, ConnectError> {
    let device = Arc::new(Device::connect(path)?);
    info!("behind the IOMMU at {} as endpoint {}", path.display(), device.endpoint());
    let watched = Arc::clone(&device);
    thread::Builder::new()
        .name("iommu".into())
        .spawn(move || watch(&watched))
        .map_err(|source| ConnectError::Io { call: "spawn", source })?;
    Ok(device)
}

/// Takes what the daemon sends, so that its end is seen at once: readers refuse from then on.
fn watch(device: &Device) {
    loop {
        let mut ready = [PollFd::from_borrowed_fd(device.as_fd(), PollFlags::IN)];
        // an interrupted wait is as good as one that ended
        poll(&mut ready, None).unwrap_or_default();
        let notice = device.dispatch();
        if !notice.connected {
            warn!("the IOMMU's daemon has gone");
            return;
        }
        if notice.revoked {
            // nothing to give back: this process only ever copies inside a guard
            debug!("the IOMMU waits for this process");
        }
    }
}

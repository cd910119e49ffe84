//! The way of each DMA: straight into guest memory, or translated by the IOMMU's daemon.
//!
//! Without the daemon's socket an address is guest-physical: the device runs without an IOMMU, or
//! behind one that the VMM itself emulates. With it an address is an IOVA, and each access happens
//! inside a guard of the shared translation tables.
//!
//! The rule for a device: copy under [`Channel::access`], and do everything of unbounded length (a
//! disk's I/O, waiting for the guest) outside. What is under way inside is what an unmap waits for.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions};

use super::ram::{GuestRam, Ram};

/// Where the function's DMA goes; shared by its threads.
#[derive(Debug)]
pub(crate) struct DmaPort {
    ram: Arc<GuestRam>,
}

/// Why an access did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAccess {
    /// The device was told to stop.
    #[error("stopped")]
    Stopped,
}

/// Tells a device's thread to end.
#[derive(Debug, Default)]
pub(crate) struct StopFlag(AtomicBool);

impl StopFlag {
    /// Asks for the end. Relaxed: the flag carries no data, and whoever raises it joins the thread.
    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True if the end was asked for; partner of [`raise`](Self::raise).
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl DmaPort {
    /// Untranslated DMA into `ram`.
    pub(crate) fn direct(ram: Arc<GuestRam>) -> Self {
        Self { ram }
    }

    /// Guest memory, as the VMM describes it.
    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// With the IOMMU's socket: DMA translated by its daemon. Without: untranslated.
    ///
    /// # Errors
    /// If the daemon can't be reached.
    pub(crate) fn connect(_iotlb: Option<&Path>) -> io::Result<Self> {
        Ok(Self::direct(Arc::new(GuestRam::default())))
    }

    /// A way for one thread.
    ///
    /// # Errors
    /// If the daemon has no room for another thread, or is gone.
    pub(crate) fn channel(&self) -> io::Result<Channel> {
        Ok(Channel { ram: Arc::clone(&self.ram) })
    }

    /// The function is about to do its first DMA since its reset.
    ///
    /// # Errors
    /// If the daemon is gone.
    pub(crate) fn function_started(&self) -> io::Result<()> {
        Ok(())
    }

    /// The function was reset and does no DMA.
    pub(crate) fn function_reset(&self) {}
}

/// One thread's way to memory.
#[derive(Debug)]
pub(crate) struct Channel {
    ram: Arc<GuestRam>,
}

impl Channel {
    /// Lets `work` access memory, for a bounded time; what it was given goes with it.
    ///
    /// # Errors
    /// [`NoAccess`]; `work` did not run.
    pub(crate) fn access<R>(
        &self,
        stop: &StopFlag,
        work: impl FnOnce(&View<'_>) -> R,
    ) -> Result<R, NoAccess> {
        if stop.is_raised() {
            return Err(NoAccess::Stopped);
        }
        Ok(work(&View::Direct(&self.ram.read())))
    }

    /// Guest memory, as the VMM describes it.
    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

/// Memory as the device addresses it.
#[derive(Debug)]
pub(crate) enum View<'a> {
    /// By guest-physical address.
    Direct(&'a Ram),
}

impl View<'_> {
    /// Changes with each change of guest memory.
    pub(crate) fn generation(&self) -> u64 {
        match self {
            Self::Direct(ram) => ram.generation(),
        }
    }
}

impl GuestMemory for View<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        match self {
            Self::Direct(ram) => ram.check_range(address, count, access),
        }
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        match self {
            Self::Direct(ram) => ram.get_slices(address, count, access),
        }
    }
}

//! The way of each DMA: straight into guest memory, or translated by the IOMMU's daemon.
//!
//! Without the daemon's socket an address is guest-physical: the device runs without an IOMMU, or
//! behind one that the VMM itself emulates. With it an address is an IOVA, and each access happens
//! inside a guard of the shared translation tables.
//!
//! The rule for a device: copy under [`Channel::access`], and do everything of unbounded length (a
//! disk's I/O, waiting for the guest) outside. What is under way inside is what an unmap waits for.

use std::io;
use std::iter::FusedIterator;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use viommu_iotlb::{ConnectError, IovaMemory, Reader, Refused};
use viommu_pasid::Pasid;
use vm_memory::guest_memory::GuestMemorySliceIterator;
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryError, GuestMemoryMmap, Permissions};

use super::iotlb::Iotlb;
use super::ram::{GuestRam, Ram};

/// How often a thread that waits for the IOMMU looks whether it was told to stop.
const LOOK_UP: Duration = Duration::from_millis(10);

/// Where the function's DMA goes; shared by its threads.
#[derive(Debug)]
pub(crate) struct DmaPort {
    ram: Arc<GuestRam>,
    iotlb: Option<Iotlb>,
}

/// Why an access did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoAccess {
    /// The device was told to stop.
    #[error("stopped")]
    Stopped,
    /// The IOMMU lets this process access nothing any more, or is gone.
    #[error("{0}")]
    Refused(Refused),
}

/// Tells a device's thread to end.
#[derive(Debug, Default)]
pub(crate) struct StopFlag(AtomicBool);

impl StopFlag {
    /// Asks for the end. Relaxed: the flag carries no data, and whoever raises it joins the thread.
    pub(crate) fn raise(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// True if the end was asked for. Relaxed: partner of [`raise`](Self::raise).
    pub(crate) fn is_raised(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl DmaPort {
    /// With the IOMMU's socket: DMA translated by its daemon. Without: untranslated.
    ///
    /// # Errors
    /// If the daemon can't be reached or refuses.
    pub(crate) fn connect(iotlb: Option<&Path>) -> Result<Self, ConnectError> {
        let iotlb = iotlb.map(Iotlb::connect).transpose()?;
        Ok(Self { ram: Arc::default(), iotlb })
    }

    /// Guest memory, as the VMM describes it.
    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }

    /// Width of the PASIDs that the IOMMU tells apart, bits; 0 if there are none.
    pub(crate) fn pasid_bits(&self) -> u8 {
        self.iotlb.as_ref().map_or(0, Iotlb::pasid_bits)
    }

    /// A way for one thread, untagged. It is dropped before [`function_reset`](Self::function_reset).
    ///
    /// # Errors
    /// If the IOMMU has no room for another thread.
    pub(crate) fn channel(&self) -> io::Result<Channel> {
        let reader = self.iotlb.as_ref().map(Iotlb::reader).transpose()?;
        Ok(Channel { ram: Arc::clone(&self.ram), reader, pasid: None })
    }

    /// The function was reset and does no DMA until [`function_started`](Self::function_started).
    /// Returns when the IOMMU has acted on it.
    pub(crate) fn function_reset(&self) {
        if let Some(iotlb) = &self.iotlb {
            iotlb.function_reset();
        }
    }

    /// The function is about to do DMA.
    ///
    /// # Errors
    /// If the IOMMU is gone.
    pub(crate) fn function_started(&self) -> io::Result<()> {
        self.iotlb.as_ref().map_or(Ok(()), Iotlb::function_started)
    }
}

/// One thread's way to memory.
#[derive(Debug)]
pub(crate) struct Channel {
    ram: Arc<GuestRam>,
    reader: Option<Reader>,
    /// What its accesses are tagged with.
    pasid: Option<Pasid>,
}

impl Channel {
    /// The same way with another tag, or none. Without an IOMMU a tag changes nothing.
    pub(crate) fn tagged(self, pasid: Option<Pasid>) -> Self {
        Self { pasid, ..self }
    }

    /// Lets `work` access memory, for a bounded time; what it was given goes with it. Waits while the
    /// IOMMU lets accesses wait, unless `stop` is raised.
    ///
    /// # Errors
    /// [`NoAccess`]; `work` did not run.
    pub(crate) fn access<R>(
        &self,
        stop: &StopFlag,
        work: impl FnOnce(&View<'_>) -> R,
    ) -> Result<R, NoAccess> {
        while !stop.is_raised() {
            // memory first: a guard is held while nothing else is waited for
            let ram = self.ram.read();
            let generation = ram.generation();
            let Some(reader) = &self.reader else {
                return Ok(work(&View { way: Way::Direct(&ram), generation }));
            };
            match reader.try_enter() {
                Ok(guard) => {
                    let way = Way::Translated(IovaMemory::new(&guard, self.pasid, &*ram));
                    return Ok(work(&View { way, generation }));
                }
                Err(Refused::Parked) => {
                    drop(ram);
                    // in vain as often as not: the loop looks again
                    let _running = reader.wait_running(LOOK_UP);
                }
                Err(refused) => return Err(NoAccess::Refused(refused)),
            }
        }
        Err(NoAccess::Stopped)
    }

    /// Guest memory, as the VMM describes it.
    pub(crate) fn ram(&self) -> &GuestRam {
        &self.ram
    }
}

/// Memory as the device addresses it, as long as it may look.
#[derive(Debug)]
pub(crate) struct View<'a> {
    way: Way<'a>,
    generation: u64,
}

#[derive(Debug)]
enum Way<'a> {
    /// By guest-physical address.
    Direct(&'a Ram),
    /// By IOVA. What is refused is reported to the IOMMU, and by it to the guest.
    Translated(IovaMemory<'a, Ram>),
}

impl View<'_> {
    /// Changes with each change of guest memory.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// True if the IOMMU has refused an access.
    pub(crate) fn refused(&self) -> bool {
        match &self.way {
            Way::Direct(_) => false,
            Way::Translated(memory) => memory.fault().is_some(),
        }
    }
}

impl GuestMemory for View<'_> {
    type PhysicalMemory = GuestMemoryMmap;
    type Bitmap = ();

    fn check_range(&self, address: GuestAddress, count: usize, access: Permissions) -> bool {
        match &self.way {
            Way::Direct(ram) => ram.check_range(address, count, access),
            Way::Translated(memory) => memory.check_range(address, count, access),
        }
    }

    fn get_slices<'a>(
        &'a self,
        address: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, ()>, GuestMemoryError> {
        Ok(match &self.way {
            Way::Direct(ram) => ViewSlices::Direct(ram.get_slices(address, count, access)?),
            Way::Translated(memory) => {
                ViewSlices::Translated(memory.get_slices(address, count, access)?)
            }
        })
    }
}

/// The slices of either kind of view.
#[derive(Debug)]
enum ViewSlices<D, T> {
    Direct(D),
    Translated(T),
}

impl<I, D: Iterator<Item = I>, T: Iterator<Item = I>> Iterator for ViewSlices<D, T> {
    type Item = I;

    fn next(&mut self) -> Option<I> {
        match self {
            Self::Direct(slices) => slices.next(),
            Self::Translated(slices) => slices.next(),
        }
    }
}

impl<I, D, T> FusedIterator for ViewSlices<D, T>
where
    D: FusedIterator<Item = I>,
    T: FusedIterator<Item = I>,
{
}

impl<'a, D, T> GuestMemorySliceIterator<'a, ()> for ViewSlices<D, T>
where
    D: GuestMemorySliceIterator<'a, ()>,
    T: GuestMemorySliceIterator<'a, ()>,
{
}

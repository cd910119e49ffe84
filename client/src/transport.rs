//! How a driver reaches its device.

use std::io;

use crate::memory::Memory;
use crate::ring::QueuePlaces;

/// Bytes of the configuration space (virtio 1.4, 5.13.4).
pub const CONFIG_BYTES: usize = 40;

/// The queues of a virtio-iommu (virtio 1.4, 5.13.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// Requests.
    Request,
    /// Events.
    Event,
}

impl Queue {
    /// Its number.
    #[must_use]
    pub const fn index(self) -> u16 {
        match self {
            Self::Request => 0,
            Self::Event => 1,
        }
    }
}

/// A virtio-iommu that can be driven: reset, and not yet started.
pub trait Transport {
    /// Memory that it reaches.
    type Memory: Memory;

    /// Memory that the device reaches; each call gives the same.
    fn memory(&self) -> Self::Memory;

    /// The features that the device offers.
    ///
    /// # Errors
    /// The device cannot be reached.
    fn offered(&mut self) -> io::Result<u64>;

    /// Accepts features that were offered, and starts the device with these queues: of requests, of
    /// events. Called once.
    ///
    /// # Errors
    /// The device refuses, or cannot be reached.
    fn start(&mut self, features: u64, queues: &[QueuePlaces; 2]) -> io::Result<()>;

    /// Tells the device that the queue holds something new.
    ///
    /// # Errors
    /// The device cannot be reached.
    fn kick(&mut self, queue: Queue) -> io::Result<()>;

    /// The configuration space as it is now.
    ///
    /// # Errors
    /// The device cannot be reached.
    fn config(&mut self) -> io::Result<[u8; CONFIG_BYTES]>;
}

//! A virtio-iommu on PCI (virtio 1.4, 4.1), driven through its BARs.

use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

use super::capability::{Part, Place, find};
use super::function::{open_bar, open_config};
use super::pinned::Pinned;
use super::sys::Mapping;
use crate::driver::PATIENCE;
use crate::ring::{QUEUE_SIZE, QueuePlaces};
use crate::transport::{CONFIG_BYTES, Queue, Transport};

/// Fields of the common configuration (virtio 1.4, 4.1.4.3).
const DEVICE_FEATURE_SELECT: usize = 0;
const DEVICE_FEATURE: usize = 4;
const DRIVER_FEATURE_SELECT: usize = 8;
const DRIVER_FEATURE: usize = 12;
const DEVICE_STATUS: usize = 20;
const QUEUE_SELECT: usize = 22;
const QUEUE_SIZE_FIELD: usize = 24;
const QUEUE_ENABLE: usize = 28;
const QUEUE_NOTIFY_OFF: usize = 30;
const QUEUE_DESC: usize = 32;
const QUEUE_DRIVER: usize = 40;
const QUEUE_DEVICE: usize = 48;

/// Device status (virtio 1.4, 2.1).
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Bytes of the conventional configuration space, where the capabilities are.
const CONVENTIONAL_BYTES: usize = 256;

/// A part of the function's registers.
#[derive(Debug)]
struct Area {
    bar: Mapping,
    offset: usize,
    argument: u32,
}

impl Area {
    fn open(address: &str, config: &[u8], part: Part) -> io::Result<Self> {
        let missing = || io::Error::other("this function is no virtio device");
        let Place { bar, offset, argument } = find(config, part).ok_or_else(missing)?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        Ok(Self { bar: open_bar(address, bar)?, offset, argument })
    }
}

/// A virtio-iommu function.
#[derive(Debug)]
pub struct VirtioPci {
    common: Area,
    notify: Area,
    device: Area,
    memory: Pinned,
    /// Where the queues are notified, once they are started.
    doorbells: Vec<usize>,
}

impl VirtioPci {
    /// Opens the function of this address, as in `0000:00:01.0`, and resets the device.
    ///
    /// # Errors
    /// There is none, it has a driver, or it is no virtio device.
    pub fn open(address: &str, memory: Pinned) -> io::Result<Self> {
        let file = open_config(address)?;
        let mut config = [0; CONVENTIONAL_BYTES];
        file.read_exact_at(&mut config, 0)?;
        let area = |part| Area::open(address, &config, part);
        let (common, notify) = (area(Part::Common)?, area(Part::Notify)?);
        let device = area(Part::Device)?;
        let mut function = Self { common, notify, device, memory, doorbells: Vec::new() };
        function.reset()?;
        function.add_status(ACKNOWLEDGE)?;
        function.add_status(DRIVER)?;
        Ok(function)
    }

    fn reset(&mut self) -> io::Result<()> {
        self.set_status(0)?;
        let begin = Instant::now();
        while self.status()? != 0 {
            if begin.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::yield_now();
        }
        Ok(())
    }

    fn status(&self) -> io::Result<u8> {
        self.common.bar.read(self.common.offset + DEVICE_STATUS)
    }

    fn set_status(&mut self, status: u8) -> io::Result<()> {
        self.common.bar.write(self.common.offset + DEVICE_STATUS, status)
    }

    fn add_status(&mut self, bit: u8) -> io::Result<()> {
        let status = self.status()? | bit;
        self.set_status(status)?;
        if self.status()? & bit == 0 {
            return Err(io::Error::other("the device refuses"));
        }
        Ok(())
    }

    fn set16(&mut self, field: usize, value: u16) -> io::Result<()> {
        self.common.bar.write(self.common.offset + field, value.to_le())
    }

    fn set32(&mut self, field: usize, value: u32) -> io::Result<()> {
        self.common.bar.write(self.common.offset + field, value.to_le())
    }

    /// A 64-bit field is written as two halves (virtio 1.4, 4.1.3.1).
    fn set64(&mut self, field: usize, value: u64) -> io::Result<()> {
        let [a, b, c, d, e, f, g, h] = value.to_le_bytes();
        self.set32(field, u32::from_le_bytes([a, b, c, d]))?;
        self.set32(field + 4, u32::from_le_bytes([e, f, g, h]))
    }

    fn start_queue(&mut self, index: u16, places: &QueuePlaces) -> io::Result<()> {
        self.set16(QUEUE_SELECT, index)?;
        let most: u16 = self.common.bar.read(self.common.offset + QUEUE_SIZE_FIELD)?;
        if u16::from_le(most) < QUEUE_SIZE {
            return Err(io::Error::other("the device's queues are too small"));
        }
        self.set16(QUEUE_SIZE_FIELD, QUEUE_SIZE)?;
        self.set64(QUEUE_DESC, places.descriptors)?;
        self.set64(QUEUE_DRIVER, places.available)?;
        self.set64(QUEUE_DEVICE, places.used)?;
        let place: u16 = self.common.bar.read(self.common.offset + QUEUE_NOTIFY_OFF)?;
        self.set16(QUEUE_ENABLE, 1)?;
        let multiplier = usize::try_from(self.notify.argument).map_err(io::Error::other)?;
        self.doorbells.push(self.notify.offset + usize::from(u16::from_le(place)) * multiplier);
        Ok(())
    }
}

impl Transport for VirtioPci {
    type Memory = Pinned;

    fn memory(&self) -> Pinned {
        self.memory.clone()
    }

    fn offered(&mut self) -> io::Result<u64> {
        let mut half = |select| {
            self.set32(DEVICE_FEATURE_SELECT, select)?;
            self.common.bar.read(self.common.offset + DEVICE_FEATURE).map(u32::from_le)
        };
        Ok(u64::from(half(0)?) | u64::from(half(1)?) << 32)
    }

    fn start(&mut self, features: u64, queues: &[QueuePlaces; 2]) -> io::Result<()> {
        let [a, b, c, d, e, f, g, h] = features.to_le_bytes();
        for (select, half) in [(0, [a, b, c, d]), (1, [e, f, g, h])] {
            self.set32(DRIVER_FEATURE_SELECT, select)?;
            self.set32(DRIVER_FEATURE, u32::from_le_bytes(half))?;
        }
        self.add_status(FEATURES_OK)?;
        (0..).zip(queues).try_for_each(|(index, places)| self.start_queue(index, places))?;
        self.add_status(DRIVER_OK)
    }

    fn kick(&mut self, queue: Queue) -> io::Result<()> {
        let doorbell = self.doorbells.get(usize::from(queue.index()));
        let doorbell = doorbell.ok_or(io::ErrorKind::NotConnected)?;
        self.notify.bar.write(*doorbell, queue.index().to_le())
    }

    fn config(&mut self) -> io::Result<[u8; CONFIG_BYTES]> {
        let mut config = [0; CONFIG_BYTES];
        for (offset, byte) in (self.device.offset..).zip(&mut config) {
            *byte = self.device.bar.read(offset)?;
        }
        Ok(config)
    }
}

impl Drop for VirtioPci {
    /// Lets the device forget the queues before their memory is gone.
    fn drop(&mut self) {
        // one that does not answer can be told nothing more
        let _ = self.reset();
    }
}

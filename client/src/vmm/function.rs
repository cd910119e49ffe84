//! A PCI function over vfio-user.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use vfio_user::Client;

use super::memory::Memfd;
use crate::function::Function;

/// vfio's numbers of regions: BAR 0, configuration space.
const BAR0: u32 = 0;
const CONFIG: u32 = 7;

/// A function that a device process serves; it reaches all of the guest's memory.
pub struct VfioUserFunction {
    client: Client,
    /// Kept: the device process has its mapping, we the descriptor that it came from.
    _memory: Memfd,
}

impl fmt::Debug for VfioUserFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioUserFunction").finish_non_exhaustive()
    }
}

impl VfioUserFunction {
    /// Connects to the device's socket at `path` and gives it `memory`.
    ///
    /// # Errors
    /// There is no device, or it refuses.
    pub fn connect(path: &Path, memory: Memfd) -> io::Result<Self> {
        let mut client = Client::new(path).map_err(io::Error::other)?;
        let descriptor = memory.file().as_raw_fd();
        client.dma_map(0, 0, memory.bytes(), descriptor).map_err(io::Error::other)?;
        Ok(Self { client, _memory: memory })
    }

    /// Ends the connection, so that the device process is done with this guest.
    ///
    /// # Errors
    /// It has ended already.
    pub fn leave(self) -> io::Result<()> {
        self.client.shutdown().map_err(io::Error::other)
    }

    fn read_region(&mut self, region: u32, offset: u64) -> io::Result<u32> {
        let mut bytes = [0; 4];
        self.client.region_read(region, offset, &mut bytes).map_err(io::Error::other)?;
        Ok(u32::from_le_bytes(bytes))
    }
}

impl Function for VfioUserFunction {
    fn read(&mut self, offset: u64) -> io::Result<u32> {
        self.read_region(BAR0, offset)
    }

    fn write(&mut self, offset: u64, value: u32) -> io::Result<()> {
        self.client.region_write(BAR0, offset, &value.to_le_bytes()).map_err(io::Error::other)
    }

    fn read_config(&mut self, offset: u16) -> io::Result<u32> {
        self.read_region(CONFIG, offset.into())
    }

    fn write_config(&mut self, offset: u16, value: u16) -> io::Result<()> {
        let bytes = value.to_le_bytes();
        self.client.region_write(CONFIG, offset.into(), &bytes).map_err(io::Error::other)
    }
}

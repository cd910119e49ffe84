//! A virtio-iommu over vhost-user, in the order in which QEMU does things.

use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;

use super::memory::Memfd;
use crate::ring::{QUEUE_SIZE, QueuePlaces};
use crate::transport::{CONFIG_BYTES, Queue, Transport};

/// vhost-user's own feature bit: there are protocol features.
const PROTOCOL_FEATURES: u64 = 1 << 30;

/// Where the configuration space has `bypass` (virtio 1.4, 5.13.4).
const BYPASS_AT: u32 = 36;

/// The front-end's address of guest-physical address 0. It is a name only: nothing has to be there.
const USER_BASE: u64 = 0x7fff_0000_0000;

/// A connection to the daemon.
pub struct FrontEnd {
    front_end: Frontend,
    memory: Memfd,
    kicks: Vec<EventFd>,
    /// Nobody waits for them; the device wants something to signal.
    calls: Vec<EventFd>,
}

impl fmt::Debug for FrontEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FrontEnd").field("memory", &self.memory).finish_non_exhaustive()
    }
}

impl FrontEnd {
    /// Connects to the daemon's socket at `path`, for a guest with `memory`.
    ///
    /// # Errors
    /// There is no daemon, or it speaks otherwise.
    pub fn connect(path: &Path, memory: Memfd) -> io::Result<Self> {
        let mut front_end = Frontend::from_stream(UnixStream::connect(path)?, 2);
        let greet = |front_end: &mut Frontend| -> vhost::Result<()> {
            let features = front_end.get_features()?;
            front_end.set_features(features & PROTOCOL_FEATURES)?;
            let offered = front_end.get_protocol_features()?;
            front_end.set_protocol_features(offered)?;
            front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            front_end.set_owner()
        };
        greet(&mut front_end).map_err(io::Error::other)?;
        Ok(Self { front_end, memory, kicks: Vec::new(), calls: Vec::new() })
    }

    /// Tells the daemon that the guest's memory is now `parts` of the file: where each starts, which is where
    /// the guest has it too, and its length, bytes.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn set_memory(&mut self, parts: &[(u64, u64)]) -> io::Result<()> {
        let region = |&(start, bytes): &(u64, u64)| VhostUserMemoryRegionInfo {
            guest_phys_addr: start,
            memory_size: bytes,
            userspace_addr: USER_BASE + start,
            mmap_offset: start,
            mmap_handle: self.memory.file().as_raw_fd(),
        };
        let regions: Vec<_> = parts.iter().map(region).collect();
        self.front_end.set_mem_table(&regions).map(drop).map_err(io::Error::other)
    }

    /// Writes `bypass`: whether endpoints that are attached to nothing reach memory as it is.
    ///
    /// # Errors
    /// The daemon refuses.
    pub fn set_bypass(&mut self, on: bool) -> io::Result<()> {
        let written =
            self.front_end.set_config(BYPASS_AT, VhostUserConfigFlags::WRITABLE, &[on.into()]);
        written.map_err(io::Error::other)
    }

    fn start_queue(&mut self, index: usize, places: &QueuePlaces) -> io::Result<()> {
        let (kick, call) = (EventFd::new(0)?, EventFd::new(0)?);
        let addresses = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: USER_BASE + places.descriptors,
            used_ring_addr: USER_BASE + places.used,
            avail_ring_addr: USER_BASE + places.available,
            log_addr: None,
        };
        let start = |front_end: &mut Frontend| -> vhost::Result<()> {
            front_end.set_vring_num(index, QUEUE_SIZE)?;
            front_end.set_vring_base(index, 0)?;
            front_end.set_vring_addr(index, &addresses)?;
            front_end.set_vring_kick(index, &kick)?;
            front_end.set_vring_call(index, &call)?;
            front_end.set_vring_enable(index, true)
        };
        start(&mut self.front_end).map_err(io::Error::other)?;
        self.kicks.push(kick);
        self.calls.push(call);
        Ok(())
    }
}

impl Transport for FrontEnd {
    type Memory = Memfd;

    fn memory(&self) -> Memfd {
        self.memory.clone()
    }

    fn offered(&mut self) -> io::Result<u64> {
        self.front_end.get_features().map_err(io::Error::other)
    }

    fn start(&mut self, features: u64, queues: &[QueuePlaces; 2]) -> io::Result<()> {
        self.front_end.set_features(features | PROTOCOL_FEATURES).map_err(io::Error::other)?;
        self.set_memory(&[(0, self.memory.bytes())])?;
        (0..).zip(queues).try_for_each(|(index, places)| self.start_queue(index, places))
    }

    fn kick(&mut self, queue: Queue) -> io::Result<()> {
        let kick = self.kicks.get(usize::from(queue.index()));
        kick.ok_or(io::ErrorKind::NotConnected)?.write(1)
    }

    fn config(&mut self) -> io::Result<[u8; CONFIG_BYTES]> {
        let flags = VhostUserConfigFlags::WRITABLE;
        let bytes = u32::try_from(CONFIG_BYTES).map_err(io::Error::other)?;
        let room = [0; CONFIG_BYTES];
        let read = self.front_end.get_config(0, bytes, flags, &room).map_err(io::Error::other)?;
        read.1.try_into().map_err(|_| io::Error::other("a configuration space of another length"))
    }
}

//! A VMM: guest memory in a memfd, and the front-end's half of vhost-user in QEMU's order.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{Result, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use super::daemon::Daemon;
use super::queue::Queue;
use super::wire::Config;

/// Bytes of guest memory, at guest-physical address 0.
pub(crate) const RAM_BYTES: u64 = 64 << 20;

/// The front-end's address of guest-physical address 0. It is a name only: nothing has to be there.
pub(crate) const USER_BASE: u64 = 0x7fff_0000_0000;

/// What Linux 7.3 accepts, and bit 30.
pub(crate) const LINUX_FEATURES: u64 = 0x1_7000_0057;

/// Queue numbers.
pub(crate) const REQUEST: usize = 0;
pub(crate) const EVENT: usize = 1;

/// Guest memory, and a file that others can map.
pub(crate) struct Memory {
    pub(crate) file: File,
    pub(crate) ram: GuestMemoryMmap,
}

impl Memory {
    /// [`RAM_BYTES`] of zeros.
    pub(crate) fn new() -> Self {
        let fd = memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, RAM_BYTES).unwrap();
        let file = File::from(fd);
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), RAM_BYTES as usize, Some(offset));
        Self { file, ram: GuestMemoryMmap::from_ranges_with_files([range]).unwrap() }
    }

    /// All of it as one region of a memory table.
    pub(crate) fn region(&self) -> VhostUserMemoryRegionInfo {
        self.piece(0, RAM_BYTES)
    }

    /// A piece as a region.
    pub(crate) fn piece(&self, gpa: u64, bytes: u64) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: gpa,
            memory_size: bytes,
            userspace_addr: USER_BASE + gpa,
            mmap_offset: gpa,
            mmap_handle: self.file.as_raw_fd(),
        }
    }
}

/// The front-end of one connection.
pub(crate) struct Vmm {
    pub(crate) front_end: Frontend,
    pub(crate) memory: Memory,
}

impl Vmm {
    /// Connects and agrees on protocol features, each later message to be acknowledged.
    pub(crate) fn connect(daemon: &Daemon) -> Self {
        Self::over(daemon.connect())
    }

    /// The same over a connection that is there.
    pub(crate) fn over(stream: UnixStream) -> Self {
        let mut front_end = Frontend::from_stream(stream, 2);
        let features = front_end.get_features().unwrap();
        assert_ne!(features & 1 << 30, 0, "protocol features have to be there");
        front_end.set_features(features & (1 << 30)).unwrap();
        let offered = front_end.get_protocol_features().unwrap();
        front_end.set_protocol_features(offered).unwrap();
        front_end.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        assert_eq!(front_end.get_queue_num().unwrap(), 2);
        front_end.set_owner().unwrap();
        Self { front_end, memory: Memory::new() }
    }

    /// The protocol features that the daemon offers.
    pub(crate) fn protocol_features(&mut self) -> VhostUserProtocolFeatures {
        self.front_end.get_protocol_features().unwrap()
    }

    /// SET_FEATURES and SET_MEM_TABLE, as at the start of a device.
    pub(crate) fn begin(&self, features: u64) {
        self.front_end.set_features(features).unwrap();
        self.front_end.set_mem_table(&[self.memory.region()]).unwrap();
    }

    /// Everything for a queue, its enabling last.
    pub(crate) fn start(&mut self, index: usize, queue: &Queue, base: u16) -> Result<()> {
        self.set_up(index, queue, base)?;
        self.front_end.set_vring_enable(index, true)
    }

    /// Everything for a queue but its enabling, in QEMU's order.
    pub(crate) fn set_up(&mut self, index: usize, queue: &Queue, base: u16) -> Result<()> {
        self.front_end.set_vring_num(index, queue.size)?;
        self.front_end.set_vring_base(index, base)?;
        self.front_end.set_vring_addr(index, &addresses(queue))?;
        self.front_end.set_vring_kick(index, &queue.kick)?;
        self.front_end.set_vring_call(index, &queue.call)
    }

    /// Stops both queues as QEMU does; where the request queue stopped.
    pub(crate) fn stop(&mut self) -> u16 {
        self.front_end.set_vring_enable(REQUEST, false).unwrap();
        self.front_end.set_vring_enable(EVENT, false).unwrap();
        let base = self.front_end.get_vring_base(REQUEST).unwrap();
        self.front_end.get_vring_base(EVENT).unwrap();
        base as u16
    }

    /// Reads the whole configuration space.
    pub(crate) fn config(&mut self) -> Config {
        Config::decode(&self.read_config(0, Config::BYTES as u32).unwrap())
    }

    /// Reads a part of it.
    pub(crate) fn read_config(&mut self, offset: u32, bytes: u32) -> Result<Vec<u8>> {
        let room = vec![0; bytes as usize];
        let flags = VhostUserConfigFlags::WRITABLE;
        self.front_end.get_config(offset, bytes, flags, &room).map(|(_, read)| read)
    }

    /// Writes a part of it.
    pub(crate) fn write_config(&mut self, offset: u32, bytes: &[u8]) -> Result<()> {
        self.front_end.set_config(offset, VhostUserConfigFlags::WRITABLE, bytes)
    }

    /// Writes `bypass` as QEMU does: the whole space.
    pub(crate) fn write_bypass(&mut self, value: u8) -> Result<()> {
        let mut whole = self.read_config(0, Config::BYTES as u32)?;
        whole[Config::BYPASS_AT] = value;
        self.write_config(0, &whole)
    }
}

/// A queue's place in the front-end's addresses.
pub(crate) fn addresses(queue: &Queue) -> VringConfigData {
    VringConfigData {
        queue_max_size: queue.size,
        queue_size: queue.size,
        flags: 0,
        desc_table_addr: USER_BASE + queue.table,
        used_ring_addr: USER_BASE + queue.used,
        avail_ring_addr: USER_BASE + queue.available,
        log_addr: None,
    }
}

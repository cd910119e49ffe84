//! Front-end messages (vhost-user protocol, "Front-end message types").
//!
//! Each takes effect at once. A message that is refused changes nothing. Refusing one that only wants an
//! acknowledgement leaves the connection as it is: the front-end reads the refusal if it asked for it.

use std::error::Error as StdError;
use std::fs::File;
use std::io;

use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use viommu_backend::HostIommu;

use super::memory::{GuestRam, MAX_REGIONS};
use super::ring::RingAddresses;
use super::{Device, Life, Queue, features};
use crate::protocol::Features;

/// What a memory table's change returns when no page is fetched later: no addresses of ours.
type NoBases = Option<Vec<u64>>;

impl<H: HostIommu> Device<H> {
    /// Whether the message that failed last was one whose failure the connection survives.
    pub(super) fn take_tolerable(&mut self) -> bool {
        std::mem::take(&mut self.tolerable)
    }

    /// Refuses a message that wants at most an acknowledgement.
    fn refuse<T>(&mut self, why: impl Into<Box<dyn StdError + Send + Sync>>) -> Result<T> {
        self.tolerable = true;
        Err(Error::ReqHandlerError(io::Error::other(why)))
    }

    /// [`Self::refuse`] for what went wrong in `done`.
    fn tolerate<T, E>(&mut self, done: std::result::Result<T, E>) -> Result<T>
    where
        E: Into<Box<dyn StdError + Send + Sync>>,
    {
        done.or_else(|why| self.refuse(why))
    }

    /// The queue that a message names.
    fn queue(&mut self, index: u32) -> Result<Queue> {
        match Queue::new(index) {
            Some(queue) => Ok(queue),
            None => self.refuse(format!("there is no queue {index}")),
        }
    }

    /// A bit that says whether a write to the configuration space may count. Features reach us only when
    /// a driver starts; until then what was offered has to do.
    fn may_write_bypass(&self) -> bool {
        self.life != Life::Running || self.negotiated.driver.contains(Features::BYPASS_CONFIG)
    }
}

impl<H: HostIommu> VhostUserBackendReqHandlerMut for Device<H> {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_device(&mut self) -> Result<()> {
        self.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(features::offered(self.iommu.features()))
    }

    fn set_features(&mut self, bits: u64) -> Result<()> {
        let Some(negotiated) = self.negotiated.with_features(bits, self.iommu.features()) else {
            return self.refuse(format!("features {bits:#x} were not all offered"));
        };
        let in_use = self.request_ring.is_started() || self.event_ring.is_started();
        if in_use && negotiated != self.negotiated {
            return self.refuse("features cannot change while a queue is in use");
        }
        self.negotiated = negotiated;
        if !negotiated.enable_first {
            self.request_ring.set_enabled(true);
            self.event_ring.set_enabled(true);
            self.start_ready();
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy: Option<bool>,
    ) -> Result<NoBases> {
        let ram = self.tolerate(GuestRam::new(regions, files))?;
        let done = self.replace_ram(ram);
        self.tolerate(done)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        let queue = self.queue(index)?;
        let done = self.ring(queue).set_size(size);
        self.tolerate(done)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        let queue = self.queue(index)?;
        self.set_addresses(queue, RingAddresses { descriptors, used, available });
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        let queue = self.queue(index)?;
        let done = self.ring(queue).set_base(base);
        self.tolerate(done)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        // Somebody waits for an answer that only a queue has: without one the connection ends.
        let queue = Queue::new(index).ok_or(Error::InvalidParam)?;
        Ok(VhostUserVringState::new(index, u32::from(self.stop(queue))))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(u32::from(index))?;
        let Some(kick) = fd else {
            return self.refuse("a queue without a kick descriptor is not polled");
        };
        let done = self.watch_kick(queue, kick);
        self.tolerate(done)?;
        self.start_ready();
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(u32::from(index))?;
        let done = self.ring(queue).set_call(fd);
        self.tolerate(done)
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let queue = self.queue(u32::from(index))?;
        let done = self.ring(queue).set_error(fd);
        self.tolerate(done)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(features::PROTOCOL)
    }

    fn set_protocol_features(&mut self, bits: u64) -> Result<()> {
        if bits & !features::PROTOCOL.bits() != 0 {
            return self.refuse(format!("protocol features {bits:#x} were not all offered"));
        }
        self.negotiated.protocol = bits;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(Queue::COUNT)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        let queue = self.queue(index)?;
        self.ring(queue).set_enabled(enable);
        self.start_ready();
        Ok(())
    }

    fn get_config(
        &mut self,
        offset: u32,
        size: u32,
        _flags: VhostUserConfigFlags,
    ) -> Result<Vec<u8>> {
        // The crate has checked that offset and size lie within its largest space, 4 KiB.
        let size = usize::try_from(size).map_err(|_| Error::InvalidParam)?;
        let mut bytes = vec![0; size];
        self.iommu.config().read(offset, &mut bytes);
        Ok(bytes)
    }

    fn set_config(
        &mut self,
        offset: u32,
        bytes: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> Result<()> {
        let written = self.iommu.config().write(offset, bytes, self.may_write_bypass());
        let Some(bypass) = self.tolerate(written)? else { return Ok(()) };
        let done = self.iommu.set_bypass(&mut self.host, bypass);
        self.sync();
        self.tolerate(done)?;
        log::debug!("bypass is {} now", if bypass { "on" } else { "off" });
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu_backend: GpuBackend) -> Result<()> {
        Err(Error::InvalidOperation("no GPU"))
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Err(Error::InvalidOperation("no shared objects"))
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> Result<(VhostUserInflight, File)> {
        Err(Error::InvalidOperation("nothing is ever in flight at a stop"))
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("nothing is ever in flight at a stop"))
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(u64::try_from(MAX_REGIONS).unwrap_or(u64::MAX))
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy: Option<bool>,
    ) -> Result<Option<u64>> {
        let ram = self.tolerate(self.ram.with(region, file))?;
        let done = self.replace_ram(ram);
        self.tolerate(done)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let ram = self.tolerate(self.ram.without(region))?;
        let done = self.replace_ram(ram);
        self.tolerate(done)?;
        Ok(())
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _fd: File,
    ) -> Result<Option<File>> {
        Err(Error::InvalidOperation("no migration"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(Error::InvalidOperation("no migration"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(Error::InvalidOperation("no shared memory regions"))
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Err(Error::InvalidOperation("no dirty log"))
    }
}

//! Devices that the kernel wants back.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use viommu_pasid::EndpointId;

/// Wishes looked at in one go; the others are there at the next.
const AT_ONCE: usize = 8;

/// What tells of them: an epoll over one eventfd for each device.
#[derive(Debug)]
pub(crate) struct Leaving {
    epoll: OwnedFd,
    wishes: Vec<OwnedFd>,
}

impl Leaving {
    /// Nothing is watched yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(CreateFlags::CLOEXEC)?, wishes: Vec::new() })
    }

    /// An eventfd for the device of `endpoint`.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn watch(&mut self, endpoint: EndpointId) -> io::Result<BorrowedFd<'_>> {
        let wish = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Edge: one that is not taken is told of once, and the kernel repeats its wish.
        let flags = EventFlags::IN | EventFlags::ET;
        epoll::add(&self.epoll, &wish, EventData::new_u64(endpoint.raw().into()), flags)?;
        self.wishes.push(wish);
        self.wishes.last().map(AsFd::as_fd).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// The endpoints whose devices are wanted back now.
    pub(crate) fn wanted(&self) -> Vec<EndpointId> {
        let mut events =
            [epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; AT_ONCE];
        let now = Timespec::default();
        let ready = epoll::wait(&self.epoll, &mut events, Some(&now)).unwrap_or(0);
        let raw = events.iter().take(ready).map(|event| event.data.u64());
        raw.filter_map(|raw| u32::try_from(raw).ok()).map(EndpointId::new).collect()
    }
}

impl AsFd for Leaving {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_names_its_endpoint_and_is_told_once() {
        let mut leaving = Leaving::new().unwrap();
        let first = leaving.watch(EndpointId::new(0x20)).unwrap().try_clone_to_owned().unwrap();
        let _second = leaving.watch(EndpointId::new(0x28)).unwrap();
        assert_eq!(leaving.wanted(), []);
        rustix::io::write(&first, &1_u64.to_ne_bytes()).unwrap();
        assert_eq!(leaving.wanted(), [EndpointId::new(0x20)]);
        assert_eq!(leaving.wanted(), []);
        rustix::io::write(&first, &1_u64.to_ne_bytes()).unwrap();
        assert_eq!(leaving.wanted(), [EndpointId::new(0x20)]);
    }
}

//! What the kernel hands back with a ready descriptor.

use rustix::event::epoll;
use viommu_pasid::EndpointId;

/// What an epoll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Wake,
    Listener(EndpointId),
    Greeting(u64),
    Connection(u64),
    Doorbell(u64),
}

impl Token {
    const KIND_SHIFT: u32 = 56;

    pub(crate) const fn data(self) -> epoll::EventData {
        let (kind, id) = match self {
            Self::Wake => (0, 0),
            Self::Listener(endpoint) => (1, endpoint.raw() as u64),
            Self::Greeting(id) => (2, id),
            Self::Connection(id) => (3, id),
            Self::Doorbell(id) => (4, id),
        };
        epoll::EventData::new_u64(kind << Self::KIND_SHIFT | id)
    }

    pub(crate) fn from_data(data: epoll::EventData) -> Self {
        let id = data.u64() & ((1 << Self::KIND_SHIFT) - 1);
        match data.u64() >> Self::KIND_SHIFT {
            1 => Self::Listener(EndpointId::new(u32::try_from(id).unwrap_or(u32::MAX))),
            2 => Self::Greeting(id),
            3 => Self::Connection(id),
            4 => Self::Doorbell(id),
            _ => Self::Wake,
        }
    }
}

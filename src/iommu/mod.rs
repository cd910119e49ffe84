//! The state machine: which request is right, what it changes, and how the host follows.
//!
//! What it is: domains, their mappings, the guest's tables that are bound to them, and who is
//! attached to what: endpoints' untagged traffic (virtio 1.4, 5.13.6) and their PASIDs
//! (`docs/aux-domains.md`). It needs no virtqueue, no socket and no clock; a
//! [`HostIommu`](viommu_backend::HostIommu) makes its decisions take effect, and says what they can
//! be for each endpoint.
//!
//! # One request
//!
//! Decide: pure, a plan or a status. Act: the host is told, in an order in which only the last call
//! that can fail needs no undoing. Commit: the state follows. A refused request leaves state and
//! host as they were, whichever call was refused.
//!
//! # What it guarantees
//!
//! - Statuses are those of the conformance rows (A1 to P7, R1) that `docs/spec-coverage.md` lists.
//!   Of several that fit, the first of this order wins:
//!   1. INVAL: what [`decode`](crate::protocol::decode) sees: reserved fields, flags, reversed
//!      ranges;
//!   2. NOENT: endpoint, domain (an unknown domain of a DETACH is INVAL);
//!   3. INVAL: the wrong kind of domain; an endpoint that is not in it;
//!   4. RANGE: a domain number that an ATTACH cannot use; alignment, input and output range of a
//!      MAP; an UNMAP that would split;
//!   5. INVAL: a MAP over reserved memory or over another mapping; UNSUPP: an ATTACH to a domain
//!      whose mappings lie over the endpoint's reserved memory;
//!   6. NOMEM: a limit of [`Settings`];
//!   7. what the host says.
//! - Requests of the extension have its order: INVAL of the bytes, NOENT, UNSUPP, INVAL of the
//!   state, RANGE, NOMEM, and what the host says.
//! - MAP and UNMAP cost O(log n) plus the mappings they touch; a MAP that is refused costs no more.
//! - AUX_ATTACH and AUX_DETACH cost O(log n), and a PASID that is attached takes some 40 bytes.
//! - A domain dies with its last use, its mappings with it (D4): also by an ATTACH elsewhere, for
//!   Linux sends no DETACH. Uses are attachments, a bound table, and tables of other domains that
//!   go through its mappings.
//! - A PASID that was detached is given out again only after the caller's wait for its users.
//! - Everything a guest can make grow has a limit in [`Settings`].
//! - DMA of an endpoint that is attached to nothing goes where `bypass` says, and nowhere if the
//!   host refuses that.
//!
//! # What the caller does
//!
//! [`HostIommu::sync`](viommu_backend::HostIommu::sync) is never called here. The caller calls it
//! once after a batch of requests and before it publishes their replies, and likewise after each
//! other method that is given a host: what they withdrew is out of use only then.
//!
//! # What it leaves out
//!
//! Page requests, and tables of PASIDs that are the guest's. The MMIO flag of a MAP: a hint about what is
//! there, which the host knows. Translation does not depend on it.

mod act;
mod bound;
mod decide;
mod lifecycle;
mod machine;
mod pasids;
mod settings;
mod state;
mod store;

#[cfg(test)]
mod tests;

pub use machine::{Iommu, StartError};
pub use settings::{EndpointSpec, Settings, SettingsError, X86_MSI_WINDOW};

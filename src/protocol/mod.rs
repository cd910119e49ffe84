//! Bytes to types and back: requests, replies, events, features and the configuration space.
//!
//! What it is: the wire format of virtio-iommu (virtio 1.4, 5.13) and of its extension by auxiliary
//! domains (`docs/aux-domains.md`), and nothing else. It keeps no state and never allocates.
//!
//! # What it guarantees
//!
//! - [`decode`] reads each field once. Past it nobody checks a reserved field, an unknown flag or a
//!   reversed range again.
//! - A reply is as long as the request's own writable part, whatever its status: Linux takes a
//!   shorter one for success.
//! - Everything written to the guest is written whole, reserved fields as zero.
//!
//! # Sizes that differ from the request's own
//!
//! Linux sends exact sizes. For other drivers:
//!
//! - readable bytes after the request are ignored, as in any structure that grows at its end;
//! - writable bytes after the reply are left alone, and the used length does not count them. So the
//!   work for a request is bounded, however long a chain the guest builds;
//! - a PROBE whose `properties` is shorter than `probe_size` is answered INVAL in the last four of
//!   its writable bytes; the others become zero;
//! - another request whose writable part is shorter than its reply is unknown.
//!
//! # What it leaves out
//!
//! Domains, endpoints, mappings: whether a request makes sense is [`crate::iommu`]'s to say.

mod config;
mod event;
mod features;
mod property;
mod reply;
mod request;
mod wire;

pub use config::{ConfigSpace, ConfigWriteError};
pub use event::{Event, FaultReason};
pub use features::Features;
pub use property::{AuxFlags, AuxProperty, Properties, RESV_MEM_BYTES, ResvKind, ResvMem};
pub use reply::{Reply, Status};
pub use request::{
    Attach, Attribute, AuxAttach, AuxDetach, BindTable, Decoded, Detach, GuestTable, Invalidate,
    MAX_PLAIN_REPLY_BYTES, MAX_READABLE_BYTES, Map, PasidChoice, Probe, Request, RequestKind,
    Unmap, decode,
};

//! DMA translation out of shared memory: for device processes, and for the daemon that they trust.
//!
//! A device process (vfio-user, vhost-user) connects to its endpoint's socket and gets two pieces
//! of shared memory: the *region*, which holds the IOMMU's tables and is read-only for it, and a
//! *slot* memory of its own, in which it says what it is using. From then on it translates by
//! itself: no message, no system call, no lock on the way of a DMA.
//!
//! # Quick start
//!
//! ```no_run
//! use viommu_iotlb::{Device, IovaMemory};
//! use viommu_pgtable::{Access, Iova};
//! use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let guest_memory = GuestMemoryMmap::<()>::new();
//! let device = Device::connect("/run/viommu/0000:00:03.0")?;
//! let reader = device.reader()?; // one for each thread
//!
//! let guard = reader.enter()?; // once for each batch of accesses
//! for piece in guard.translate(None, Iova::new(0x1000), 8192, Access::WRITE) {
//!     match piece {
//!         Ok(piece) => println!("{} bytes at {}", piece.len, piece.gpa),
//!         Err(fault) => _ = guard.report(&fault),
//!     }
//! }
//! // or by vm-memory, whatever is written for it (feature `vm-memory`)
//! let iovas = IovaMemory::new(&guard, None, &guest_memory);
//! iovas.write_slice(b"done", GuestAddress(0x1000))?;
//! drop(guard); // the daemon may answer withdrawals now
//! # Ok(())
//! # }
//! ```
//!
//! Watch the device's descriptor as well: [`Device::dispatch`] says when a drain waits for this
//! process, and when the daemon is gone.
//!
//! # What it guarantees
//!
//! - **No stale access.** When [`Hub::drain`] returns, no access goes on through a translation that
//!   was withdrawn before it, except by a process that was cut off by [`StuckPolicy::Disconnect`],
//!   or that the kernel does not end: that is counted and logged, and no section of its endpoint
//!   begins from then on. What a translation returns borrows from its [`Guard`]; accesses that
//!   outlive the guard take a [`Pin`].
//! - **Readers never block**, unless their endpoint is parked, and never wait for another reader.
//! - **A drain waits only for whom it must**, and only so long: processes that end are noticed at
//!   once through their socket, stuck ones are told, then ended, at [`HubConfig::stuck`]. Killed
//!   ones are waited for together, a few seconds at most.
//! - **Tables are hardware's.** The region holds VT-d scalable-mode or SMMUv3 structures, byte for
//!   byte. Whatever is in them, a walk is bounded and ends in a piece or an [`AccessFault`].
//! - **A device process can harm itself only.** It cannot write tables, other slots or others'
//!   events, nor block the daemon: at worst it makes one drain wait, up to the bound, and has
//!   others' private TLBs flushed. All that the daemon reads from it is loaded once, checked, and
//!   believed only as far as it makes a drain wait.
//! - **A hub that ends leaves nobody behind**: no section begins after it was dropped, also of a
//!   device that has not looked at its socket. After a crash that takes the device's look.
//!
//! # What it costs
//!
//! - Memory: the region is sparse, a page that was used once stays; a reader's private TLB has 2
//!   MiB of address space, of which touched pages count, and 128 KiB of where walks can begin.
//! - A drain flushes every reader's private TLB: one epoch for all endpoints keeps the hit path
//!   short.
//! - One full fence for each section, on either side. `benches/translate` prints what that is.
//! - A guard that is held delays every withdrawal of the guest, whose CPU spins meanwhile. Hold it
//!   over copies, never over a system call of unbounded length.
//!
//! # Memory ordering
//!
//! `section` has the words, the two sides and the argument. `models` has loom search it: unmap,
//! replacement of a live entry, pins, readers that come and go, parking, shortcuts, attach and
//! detach over real tables, cut-off; each with twins that are broken on purpose and must be caught.
//! Every other atomic names its partner where it is used.
//!
//! | word | written by | read by |
//! | --- | --- | --- |
//! | [`abi::RegionHeader::epoch`] | [`Hub::drain`] | [`Reader::enter`] |
//! | [`abi::ReaderLine::epoch`] | [`Reader::enter`], guard's end | [`Hub::drain`] |
//! | table entries | [`Region`]'s `store` (Release) | translations (load, acquire fence) |
//! | [`abi::Control::state`] | [`Hub::set_state`] | [`Reader::enter`], when the epoch has moved |
//! | [`abi::PinLine`] | [`Guard::pin`] | [`Hub::drain`], after the sections are over |
//! | [`abi::DeviceLine::put`] | [`Guard::report`] | [`Hub::dispatch`] |
//!
//! # What it leaves out
//!
//! Who maps what (the daemon's business), and guest memory itself: the VMM gives it to the device.
//! Tables that a guest has bound lie in it: [`Guard::translate_with`] and `IovaMemory` read them
//! there, [`Guard::translate`] faults. The layout is `docs/iotlb-abi.md`, version
//! [`abi::VERSION`]; a reader or daemon of another version is refused.
//! A connection must not be used in a process that was forked after it was made.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

pub mod abi;
mod cache;
mod config;
mod conn;
mod device;
mod drain;
mod event;
mod fault;
mod greet;
mod guest_tables;
mod hub;
#[cfg(feature = "vm-memory")]
mod iova_memory;
mod link;
mod message;
#[cfg(test)]
mod models;
mod path;
mod pieces;
mod pin;
mod prefetch;
mod reader;
mod region;
mod routes;
mod section;
mod shm;
mod shortcuts;
mod sync;
mod sys;
mod tlb;
mod token;
mod view;
mod withdrawn;

pub use abi::{Arch, State};
pub use config::{HubConfig, StuckPolicy};
pub use conn::ReaderCounters;
pub use device::{ConnectError, Device, NoFreeSlot, Notice};
pub use drain::DrainReport;
pub use event::{Counters, DeviceEvent};
pub use fault::{AccessFault, FaultClass, FaultReason, FaultRecord};
pub use greet::MAX_CONNECTIONS_PER_ENDPOINT;
#[cfg(feature = "vm-memory")]
pub use guest_tables::GuestTables;
pub use hub::Hub;
#[cfg(feature = "vm-memory")]
pub use iova_memory::IovaMemory;
pub use pieces::{Piece, Pieces};
pub use pin::{Pin, PinsFull};
pub use prefetch::prefetch;
pub use reader::{Guard, Reader, Refused};
pub use region::Region;
pub use withdrawn::Withdrawn;

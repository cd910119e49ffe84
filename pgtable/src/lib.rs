//! Page tables of VT-d and Arm: formats, one walker and one mapper over all of them.
//!
//! # Glossary
//!
//! The words of the whole project. Vendor words appear only in format files, mapped once.
//!
//! | word | meaning |
//! | --- | --- |
//! | endpoint | a PCI function that does DMA, named by segment, bus, device, function |
//! | IOVA | the address that an endpoint puts on the bus: input of a translation |
//! | OA, output address | what a translation yields; a GPA, or an address in the table region |
//! | GPA | guest-physical address |
//! | domain | an address space: a set of mappings, or a bound table, that endpoints attach to |
//! | PASID | the number (20 bits) by which one endpoint addresses several domains |
//! | mapping | what one MAP made: an IOVA range, its output address, the access it allows |
//! | level | height of a table: level 0 holds only leaves of one granule; the root is the highest |
//! | granule | the smallest page of a format, bytes |
//! | leaf, table | an entry that ends a walk; an entry that leads one level down |
//! | first level, stage 1 | the table a guest's own driver may own |
//! | second level, stage 2 | the table below it, the hypervisor's |
//! | `last`, `end` | inclusive, exclusive end of a range |
//! | `_lg2` | base-2 logarithm of a size in bytes |
//!
//! # What it guarantees
//!
//! Entries are read once and by value; a walk takes at most as many steps as the format has levels,
//! whatever the bytes say; a mapper writes nothing when it cannot write everything.
//!
//! # What it leaves out
//!
//! PASIDs, virtio, files, locks, the waiting for readers: others decide when a withdrawn table page
//! may be used again.
#![no_std]
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

#[cfg(any(test, feature = "testing"))]
extern crate std;

mod access;
mod addr;
mod fault;
pub mod format;
mod memory;
mod nested;
mod table;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod walk;

pub use access::Access;
pub use addr::{AddrRange, Iova, IovaRange, Mapping, MappingError, PhysAddr};
pub use fault::{Fault, FaultKind, Purpose, Stage};
pub use format::arm::{ArmConfigError, Granule};
pub use format::arm_stage1::ArmStage1;
pub use format::arm_stage2::ArmStage2;
pub use format::vtd_first::VtdFirst;
pub use format::vtd_second::{self, VtdSecond};
pub use format::{Entry, Format, Geometry, Mark};
pub use memory::{OutOfTables, TableMemory, TableStore};
pub use nested::{Behind, walk_nested};
pub use table::{MapError, Table, UnmapError, Unmapped};
pub use walk::{MARK_ATTEMPTS, Translation, walk};

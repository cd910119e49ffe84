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
//! # Parts
//!
//! | part | what it is |
//! | --- | --- |
//! | [`format`] | one file of facts for each format: geometry, entry to [`Entry`] and back, rights, flags |
//! | [`walk`] | the walker: an address to a [`Translation`] or a [`Fault`] |
//! | [`walk_noting`], [`LowTable`] | for who caches: where a walk can begin next time |
//! | [`walk_nested`], [`Behind`] | two stages: memory behind a second level is a memory, too |
//! | [`Table`] | the mapper: maps, unmaps, counts what it needs |
//! | [`TableMemory`], [`TableStore`] | where tables are read from, and written to |
//!
//! | format | levels | leaves | told apart |
//! | --- | --- | --- | --- |
//! | [`VtdSecond`] | 3, 4, 5 | 4 KiB, 2 MiB, 1 GiB | reading, writing |
//! | [`VtdFirst`] | 4, 5 | 4 KiB, 2 MiB, 1 GiB | writing, fetching, privilege; accessed and dirty flags |
//! | [`ArmStage1`] | by TCR | 4 KiB, 2 MiB, 1 GiB; 16 KiB, 32 MiB; 64 KiB, 512 MiB | writing, fetching, privilege |
//! | [`ArmStage2`] | by VTCR | the same | reading, writing, fetching |
//!
//! With the feature `testing`, which brings a store in ordinary memory:
//!
//! ```
//! use viommu_pgtable::testing::HeapStore;
//! use viommu_pgtable::{Access, FaultKind, Iova, IovaRange, Mapping, PhysAddr, Table, VtdSecond, walk};
//!
//! let format = VtdSecond::new(48, 1 << 12 | 1 << 21).ok_or("width or page sizes")?;
//! let mut store = HeapStore::new(PhysAddr::new(1 << 51), 16);
//! let mut table = Table::new(format, &mut store)?;
//!
//! let iova = IovaRange::with_len(Iova::new(0x20_0000), 0x20_1000).ok_or("empty or too long")?;
//! let mapping = Mapping::new(iova, PhysAddr::new(0x4000_0000), Access::READ)?;
//! assert_eq!(table.pages_needed(&store, &mapping), 3);
//! table.map(&mut store, &mapping)?;
//!
//! let found = walk(&format, &store, table.root(), Iova::new(0x20_1234), Access::READ)?;
//! assert_eq!((found.oa, found.size_lg2), (PhysAddr::new(0x4000_1234), 21));
//! let fault = walk(&format, &store, table.root(), Iova::new(0x20_1234), Access::WRITE);
//! assert!(matches!(fault.unwrap_err().kind, FaultKind::Denied { .. }));
//!
//! assert_eq!(table.unmap(&mut store, iova)?.leaves, 2);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # What it guarantees
//!
//! - Entries are read once and by value. A walk takes at most as many steps as the format has levels,
//!   whatever the bytes say; setting a flag is tried [`MARK_ATTEMPTS`] times.
//! - A mapper writes nothing when it cannot write everything (what a table of several contiguous store
//!   pages can meet, it undoes). It knows the pages it needs in O(levels), and touches only the tables that
//!   a range runs through.
//! - Who walks while the mapper writes finds nothing, or whole entries: a new table is filled before a live
//!   one leads to it. A table that is given back is unlinked before.
//! - No address that an entry holds is looked up anywhere but in the memory that the entry was read from,
//!   or, for the first of two stages, behind the second.
//!
//! # What it leaves out
//!
//! PASIDs, virtio, files, locks, the waiting for readers: others decide when a withdrawn table page
//! may be used again. Memory types and cacheability: software walks do not need them. What each format
//! does not offer is in its file.
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
pub use walk::{LowTable, MARK_ATTEMPTS, Translation, walk, walk_noting};

//! VT-d scalable mode: root, context, PASID directory, PASID entry (VT-d 5.0, 3.4.3 and 9.1 to
//! 9.6).
//!
//! ```text
//! root table --bus--> context table --devfn--> PASID directory --PASID[19:6]--> leaf --PASID[5:0]--> PASID entry
//! 256 x 16 B          2 x 128 x 32 B           2^n x 8 B                        64 x 64 B
//! ```
//!
//! Untagged traffic takes the PASID that its context entry names as `RID_PASID`; we write 0 there,
//! and no DMA can be tagged with PASID 0.

mod context;
mod entry;
mod first;
pub mod legacy;
mod lookup;
mod root;
mod table;

#[cfg(test)]
mod tests;

use viommu_pgtable::PhysAddr;

pub use context::{ContextEntry, MAX_PASID_BITS, MIN_DIRECTORY_LG2};
pub use entry::{AddressWidth, PasidEntry, SecondLevel, Translation};
pub use first::{FirstControls, FirstLevel};
pub use lookup::{LookupFault, LookupFaultKind, lookup};
pub use root::RootTable;
pub use table::{LEAF_ENTRIES_LG2, PasidTable};

pub use crate::leaf::SetError;

/// Bytes of every table but the PASID directory.
const TABLE_BYTES: u64 = crate::leaf::LEAF_BYTES;

/// Bits 63:12 of a pointer field: the address of a 4 KiB table.
const POINTER: u64 = !0xfff;

/// The present bit of every entry.
const PRESENT: u64 = 1;

/// The table that a pointer field leads to, if it is present.
fn follow(pointer: u64) -> Option<PhysAddr> {
    (pointer & PRESENT != 0).then(|| PhysAddr::new(pointer & POINTER))
}

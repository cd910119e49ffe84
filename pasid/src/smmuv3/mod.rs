//! SMMUv3: stream table, context descriptors (Arm IHI 0070, chapter 5).
//!
//! ```text
//! L1STD --StreamID[n:6]--> leaf of 64 --StreamID[5:0]--> STE --S1ContextPtr--> table of L1CDs
//! L1CD --SubstreamID[n:6]--> leaf of 64 --SubstreamID[5:0]--> CD
//! 8 bytes                    64 x 64 bytes
//! ```
//!
//! A StreamID is the requester id of a PCI function, a SubstreamID is its PASID. Each PCI segment
//! has a stream table of its own. Untagged traffic takes the context descriptor of SubstreamID 0
//! where the stream table entry says so (`S1DSS`); no DMA can be tagged with PASID 0.
//!
//! Readers understand linear tables, and two levels with each split and leaf size of the manual.
//! Writers make two levels with leaves of 4 KiB, always.
//!
//! # Which SMMU this is
//!
//! What an entry may say depends on the identification registers. Entries are judged, and made, for
//! these:
//!
//! | field | value | therefore |
//! | --- | --- | --- |
//! | `IDR0.S1P`, `S2P` | 1 | both stages |
//! | `IDR0.TTF` | 0b10 | 64-bit formats only |
//! | `IDR0.HTTU` | 0 | no entry asks for hardware updates of flags |
//! | `IDR0.ATS`, `HYP` | 0 | `EATS` and `STRW` are ignored |
//! | `IDR0.ASID16`, `VMID16`, `CD2L`, `ST_LEVEL` | 1 | 16-bit tags, two-level tables |
//! | `IDR0.TTENDIAN` | 0b10 | little-endian tables |
//! | `IDR0.STALL_MODEL`, `TERM_MODEL` | 1, 1 | faults end the transaction with an abort |
//! | `IDR1.SSIDSIZE` | 20 | all PASIDs |
//! | `IDR3` | 0 | no small tables, no hierarchical disable, no permission indirection |
//! | `IDR5.OAS` | 48 bits | addresses of structures and outputs lie below 2^48 |
//! | `IDR5.GRAN4K`, `GRAN16K`, `GRAN64K` | 1 | all granules |
//! | `IDR5.VAX` | 0 | 48-bit inputs |
//!
//! What concerns caches, memory types and event merging has a fixed value in entries made here, and
//! is ignored in entries read.

mod cd;
mod context;
mod fault;
mod geometry;
mod lookup;
mod stage2;
mod ste;
mod stream;

#[cfg(test)]
mod tests;

pub use cd::{ContextControls, ContextDescriptor, Stage1Table, Stage1Tables};
pub use context::ContextTable;
pub use fault::{LookupFault, LookupFaultKind, walk_event};
pub use geometry::AddressSize;
pub use lookup::lookup;
pub use stage2::Stage2;
pub use ste::{ContextLayout, Stage1, StreamConfig, StreamEntry, Untagged};
pub use stream::{StreamLayout, StreamRoot, StreamTable};

/// Widest address of a structure or an output, bits: `IDR5.OAS`.
pub const OUTPUT_BITS: u8 = 48;
/// Widest SubstreamID, bits: `IDR1.SSIDSIZE`.
pub const SUBSTREAM_BITS: u8 = 20;

/// 64-bit words of an STE or CD that say something here. The others belong to the Secure state, to
/// implementations and to features that are not offered.
const USED_WORDS: usize = 4;

/// Bits `first` to `first + bits - 1` of `word`.
const fn field(word: u64, first: u32, bits: u32) -> u64 {
    (word >> first) & ((1 << bits) - 1)
}

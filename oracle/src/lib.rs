//! Somebody else's walker: our tables, walked by QEMU's emulated IOMMUs.
//!
//! What it is: random page tables and the structures that lead to them, made by `viommu-pgtable`
//! and `viommu-pasid` in the memory of a QEMU without a guest. One word at a time is spoiled. A
//! device of that QEMU does one DMA, its IOMMU walks, and the result is compared with what our
//! lookups and walks say of the very same bytes: where they move, or which fault is recorded.
//!
//! One more comparison needs what is cached: a VT-d unit's device goes from one domain to another, and
//! writes at each step ([`vtd::Replacement`]).
//!
//! What it guarantees: a seed names all tables and accesses; a word of the tables is spoiled, used
//! and mended before the next, so no case depends on another; what differs counts as an exception
//! only if the exception's own prediction, made before QEMU is asked, is met to the bit; nothing is
//! left out silently. Each QEMU ends with this process, and after four minutes in any case.
//!
//! What it leaves out: what QEMU's emulation cannot show: VT-d nesting and 57-bit tables, DMA with
//! a PASID, execute permission, dirty tracking. `docs/pgtable-formats.md` has the whole list.
//!
//! | module | what |
//! | --- | --- |
//! | [`emulator`], [`qtest`], [`pci`] | a QEMU, its commands, its devices' addresses |
//! | [`memory`], [`region`], [`overlay`] | its memory, our pages in it, a copy to walk in |
//! | [`dma`] | devices that write and read |
//! | [`tables`], [`random`] | random tables of any format |
//! | [`subject`], [`runner`], [`report`] | what is compared, the comparison, what is printed |
//! | [`vtd`], [`smmu`] | intel-iommu; SMMUv3 |
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests"))]

pub mod dma;
pub mod emulator;
mod error;
pub mod memory;
pub mod overlay;
pub mod pci;
pub mod qtest;
pub mod random;
pub mod region;
pub mod report;
pub mod runner;
pub mod smmu;
pub mod subject;
pub mod tables;
pub mod vtd;

pub use error::{Error, Result};

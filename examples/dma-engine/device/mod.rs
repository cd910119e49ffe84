//! The DMA engine as a PCI function: one untagged copy, and work queues with PASIDs.
//!
//! It is function `1234:11e9`, class `ff0000`. Behind an IOMMU that tells PASIDs apart for it, it has
//! the PASID and ATS capabilities of PCI Express. Each work queue then stands for a part of the device
//! that is given away on its own (scalable I/O virtualisation): it has a PASID, and its DMA reaches the
//! domain that is attached there and nothing else.
//!
//! # Registers
//!
//! BAR 0, 32 KiB, little-endian. A 64-bit register may be accessed whole or as two halves. Offsets not
//! listed read as zero and ignore writes. All addresses are IOVAs (guest-physical without an IOMMU).
//!
//! | offset | bytes | name | access | at reset | meaning |
//! | --- | --- | --- | --- | --- | --- |
//! | 0x00 | 4 | ID | RO | 0x414d4456 | "VDMA" |
//! | 0x04 | 4 | VERSION | RO | 2 | of this table |
//! | 0x08 | 8 | SRC | RW | 0 | first byte to read; fixed while BUSY |
//! | 0x10 | 8 | DST | RW | 0 | first byte to write; fixed while BUSY |
//! | 0x18 | 8 | LEN | RW | 0 | bytes to copy, 1 to LEN_MAX; fixed while BUSY |
//! | 0x20 | 4 | COMMAND | WO | 0 | 1: COPY; other values do nothing |
//! | 0x24 | 4 | STATUS | RW1C | 0 | bit 0 BUSY (RO), bit 1 DONE, bit 2 FAULT, bit 3 REFUSED |
//! | 0x28 | 8 | FAULT_ADDR | RO | 0 | the address that faulted, exact to the byte |
//! | 0x30 | 4 | FAULT_INFO | RO | 0 | bit 0: 1 the write faulted, 0 the read; bit 1: the IOMMU is gone |
//! | 0x38 | 8 | COPIED | RO | 0 | bytes written by the last COPY |
//! | 0x40 | 8 | LEN_MAX | RO | 0x4000000 | the longest copy, and the longest of a descriptor |
//! | 0x48 | 4 | QUEUES | RO | 8 | work queues |
//! | 0x100 + 0x40 n | 0x40 | | | | registers of work queue n |
//! | 0x1000 + 0x800 n | 0x800 | | RW | 0 | ring of work queue n: descriptors of 64 bytes |
//!
//! COPY clears the other bits of STATUS, FAULT_ADDR, FAULT_INFO and COPIED, and sets BUSY. At its end
//! BUSY goes, DONE or FAULT comes, and vector 0 is raised. It is REFUSED, without an interrupt, while
//! BUSY, and if LEN is out of range or SRC or DST plus LEN wraps around. Its DMA is never tagged.
//!
//! # Work queues
//!
//! | offset | bytes | name | access | at reset | meaning |
//! | --- | --- | --- | --- | --- | --- |
//! | 0x00 | 4 | PASID | RW | 0 | bits 19:0 PASID, bit 31 TAGGED; fixed while enabled |
//! | 0x04 | 4 | CONTROL | RW | 0 | bit 0 ENABLE |
//! | 0x08 | 4 | TAIL | RW | 0 | where there is no descriptor yet; a write is the doorbell |
//! | 0x0c | 4 | HEAD | RO | 0 | the descriptor that is done next |
//! | 0x10 | 4 | STATUS | RW1C | 0 | bit 0 REFUSED |
//! | 0x14 | 4 | DEPTH | RO | 32 | descriptors of the ring; HEAD = TAIL means none |
//!
//! ENABLE sets HEAD and TAIL to 0. It is REFUSED for a TAGGED queue while the function's PASID
//! capability is disabled, and with PASID 0, which no DMA can be tagged with. Clearing it returns when
//! the queue does no DMA any more; the descriptor that was under way has no result then. Disabling the
//! capability clears it for each TAGGED queue. A write to TAIL that is no place in the ring, or to a
//! queue that is not enabled, is REFUSED.
//!
//! | offset | bytes | name | written by | meaning |
//! | --- | --- | --- | --- | --- |
//! | 0x00 | 1 | OPERATION | driver | 1 COPY, 2 FILL, 3 COMPARE |
//! | 0x01 | 1 | FLAGS | driver | bit 0 INTERRUPT at its end: vector 1 + n; the others 0 |
//! | 0x04 | 4 | LEN | driver | bytes, 1 to LEN_MAX |
//! | 0x08 | 8 | SRC | driver | first byte to read; not used by FILL |
//! | 0x10 | 8 | DST | driver | first byte to write, by COMPARE to read |
//! | 0x18 | 8 | PATTERN | driver | what FILL repeats |
//! | 0x20 | 4 | RESULT | device | 1 DONE, 2 FAULT, 3 DIFFERENT, 4 INVALID, 5 NO_IOMMU |
//! | 0x24 | 4 | INFO | device | bit 0: with FAULT, 1 the write, 0 a read |
//! | 0x28 | 8 | BYTES | device | bytes written, or found equal |
//! | 0x30 | 8 | FAULT_ADDR | device | with FAULT: the address, exact to the byte |
//!
//! Work proceeds in ascending order, up to 64 KiB at a time; of ranges that overlap, DST has to be the
//! lower one. What lies before a fault is done, what lies behind it is untouched. A fault ends its
//! descriptor, not its queue.

mod descriptor;
mod engine;
mod job;
mod queue;
mod registers;
mod worker;

use std::sync::Arc;

use super::support;
use engine::{Engine, REGISTER_BYTES, VECTORS};
use support::{DmaPort, Function, Identity, LayoutError, Spec};

/// The PCI function: a device of no standard class.
///
/// # Errors
/// [`LayoutError`] if the IOMMU's PASIDs have a width that PCI Express does not know.
pub(crate) fn function(dma: Arc<DmaPort>) -> Result<Function<Engine>, LayoutError> {
    let spec = Spec {
        identity: Identity {
            vendor: 0x1234,
            device: 0x11e9,
            class: 0xff_00_00,
            revision: 2,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
        },
        register_bytes: REGISTER_BYTES,
        vectors: VECTORS,
        intx: false,
    };
    let pasid_bits = dma.pasid_bits();
    let mut function =
        Function::new(&spec, Arc::clone(&dma), |interrupts| Engine::new(dma, &interrupts))?;
    if pasid_bits != 0 {
        function.add_pasids(pasid_bits)?;
    }
    Ok(function)
}

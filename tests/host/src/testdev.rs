//! QEMU's `iommu-testdev`: writes a pattern to an IOVA when told to, and looks for it at a physical
//! address.

use std::io;

use crate::pci::{Bar, Function};

/// Registers in BAR 0. A read of the first one starts the DMA.
const TRIGGER: usize = 0x00;
const IOVA_LOW: usize = 0x04;
const IOVA_HIGH: usize = 0x08;
const LENGTH: usize = 0x0c;
const RESULT: usize = 0x10;
const DOORBELL: usize = 0x14;
const ATTRIBUTES: usize = 0x18;
const PHYSICAL_LOW: usize = 0x1c;
const PHYSICAL_HIGH: usize = 0x20;

/// Ordinary memory: not secure, the address space said.
const ORDINARY: u32 = 0x0a;

/// Results.
const OK: u32 = 0;
const REFUSED: u32 = 0xdead_0002;
const MISMATCH: u32 = 0xdead_0004;

/// Bytes that one DMA writes: one word of the pattern.
pub(crate) const DMA_BYTES: u32 = 4;

/// What it writes.
pub(crate) const PATTERN: [u8; 4] = 0x1234_5678_u32.to_le_bytes();

/// How a DMA ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was done, and the pattern is at the physical address.
    Done,
    /// It was done and went elsewhere.
    Elsewhere,
    /// The IOMMU refused it.
    Refused,
}

/// The device.
#[derive(Debug)]
pub(crate) struct TestDevice {
    registers: Bar,
}

impl TestDevice {
    /// Its driver, for a function that is powered up.
    ///
    /// # Errors
    /// Its registers cannot be mapped.
    pub(crate) fn open(function: &Function) -> io::Result<Self> {
        function.let_dma()?;
        Ok(Self { registers: function.bar(0)? })
    }

    /// Writes [`PATTERN`] to `iova`, and has QEMU look whether it is at `physical`, past the IOMMU.
    ///
    /// # Errors
    /// The device says something else than how the DMA ended.
    pub(crate) fn write(&self, iova: u64, physical: u64) -> io::Result<Ended> {
        let bar = &self.registers;
        let ((iova_low, iova_high), (low, high)) = (halves(iova), halves(physical));
        let settings = [
            (IOVA_LOW, iova_low),
            (IOVA_HIGH, iova_high),
            (PHYSICAL_LOW, low),
            (PHYSICAL_HIGH, high),
            (LENGTH, DMA_BYTES),
            (ATTRIBUTES, ORDINARY),
            (DOORBELL, 1),
        ];
        for (register, value) in settings {
            bar.write(register, value)?;
        }
        bar.read(TRIGGER)?;
        match bar.read(RESULT)? {
            OK => Ok(Ended::Done),
            REFUSED => Ok(Ended::Refused),
            MISMATCH => Ok(Ended::Elsewhere),
            other => Err(io::Error::other(format!("the test device's result is {other:#x}"))),
        }
    }
}

/// The low and the high 32 bits.
const fn halves(address: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = address.to_le_bytes();
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

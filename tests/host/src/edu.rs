//! QEMU's `edu`: copies between memory and a buffer of its own (docs/specs/edu.rst in QEMU).

use std::io;

use crate::pci::{Bar, Function};
use crate::wait_until;

/// Registers in BAR 0; those of addresses have 64 bits and are written at once. What is read of the first is
/// the complement of what was written to it.
const LIVENESS: usize = 0x04;
const SOURCE: usize = 0x80;
const DESTINATION: usize = 0x88;
const COUNT: usize = 0x90;
const COMMAND: usize = 0x98;

/// Where the first one is in the BAR, for the addresses of others.
pub(crate) const LIVENESS_AT: u64 = LIVENESS as u64;

/// Its buffer, as its own addresses have it.
const BUFFER: u64 = 0x4_0000;

/// Commands. The first bit is clear again when a copy is over.
const START: u32 = 1;
const TO_MEMORY: u32 = 2;

/// The most that one copy moves.
pub(crate) const BUFFER_BYTES: u32 = 4096;

/// The device.
#[derive(Debug)]
pub(crate) struct Edu {
    registers: Bar,
}

impl Edu {
    /// Its driver, for a function that is powered up.
    ///
    /// # Errors
    /// Its registers cannot be mapped.
    pub(crate) fn open(function: &Function) -> io::Result<Self> {
        function.let_dma()?;
        Ok(Self { registers: function.bar(0)? })
    }

    /// Copies `bytes` bytes at `iova` into the buffer. A copy that the IOMMU refuses fills it with
    /// something; the device says nothing.
    ///
    /// # Errors
    /// The copy does not end.
    pub(crate) fn load(&self, iova: u64, bytes: u32) -> io::Result<()> {
        self.copy(iova, BUFFER, bytes, START)
    }

    /// Copies `bytes` bytes of the buffer to `iova`.
    ///
    /// # Errors
    /// The copy does not end.
    pub(crate) fn store(&self, iova: u64, bytes: u32) -> io::Result<()> {
        self.copy(BUFFER, iova, bytes, START | TO_MEMORY)
    }

    /// What was last written to the register at [`LIVENESS_AT`], by whomever.
    ///
    /// # Errors
    /// Its registers are not there.
    pub(crate) fn alive(&self) -> io::Result<u32> {
        self.registers.read(LIVENESS).map(|read| !read)
    }

    /// Writes to it.
    ///
    /// # Errors
    /// Its registers are not there.
    pub(crate) fn set_alive(&self, value: u32) -> io::Result<()> {
        self.registers.write(LIVENESS, value)
    }

    fn copy(&self, from: u64, to: u64, bytes: u32, command: u32) -> io::Result<()> {
        for (register, address) in [(SOURCE, from), (DESTINATION, to)] {
            self.registers.write_wide(register, address)?;
        }
        self.registers.write(COUNT, bytes)?;
        self.registers.write(COMMAND, command)?;
        let over = || self.registers.read(COMMAND).is_ok_and(|command| command & START == 0);
        wait_until("the copy is over", over)
    }
}

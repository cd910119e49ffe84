//! A PCI function as a driver reaches it.

use std::io;

/// Registers and configuration space of a PCI function.
pub trait Function {
    /// Reads the 32-bit register at `offset` of BAR 0.
    ///
    /// # Errors
    /// The function cannot be reached, or the BAR ends before.
    fn read(&mut self, offset: u64) -> io::Result<u32>;

    /// Writes the 32-bit register at `offset` of BAR 0.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    fn write(&mut self, offset: u64, value: u32) -> io::Result<()>;

    /// Reads 32 bits of configuration space.
    ///
    /// # Errors
    /// The function cannot be reached.
    fn read_config(&mut self, offset: u16) -> io::Result<u32>;

    /// Writes 16 bits of configuration space.
    ///
    /// # Errors
    /// The function cannot be reached.
    fn write_config(&mut self, offset: u16, value: u16) -> io::Result<()>;
}

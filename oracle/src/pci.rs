//! Just enough of PCI to give a device's registers an address.

use crate::emulator::Emulator;
use crate::error::{Error, Result};
use crate::qtest::Batch;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;
const ENABLE: u32 = 1 << 31;

const ID: u16 = 0x00;
const COMMAND: u16 = 0x04;
const BAR0: u16 = 0x10;
/// Memory space and bus master.
const COMMAND_ON: u32 = 1 << 1 | 1 << 2;

/// How configuration space is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Config {
    /// Through the ports of a PC.
    Ports,
    /// As memory from this address on (PCIe ECAM).
    Memory(u64),
}

/// A function on bus 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Function {
    /// Device number.
    pub device: u8,
    /// What identifies it: device id << 16 | vendor id.
    pub id: u32,
    /// Where to put its first BAR.
    pub bar0: u32,
}

impl Function {
    /// The requester id: function 0 of the device, on bus 0.
    #[must_use]
    pub const fn bdf(&self) -> u16 {
        (self.device as u16) << 3
    }

    /// Makes the function answer at its BAR and lets it do DMA.
    ///
    /// # Errors
    /// If another device, or none, is there.
    pub fn enable(&self, machine: &mut Emulator, config: Config) -> Result<()> {
        let mut batch = Batch::new();
        self.read(&mut batch, config, ID);
        let found = machine.ask(&batch)?;
        if found != u64::from(self.id) {
            return Err(Error::Machine { what: "the id of a PCI function", found });
        }
        let mut batch = Batch::new();
        self.write(&mut batch, config, BAR0, self.bar0);
        self.write(&mut batch, config, COMMAND, COMMAND_ON);
        machine.run(&batch)?;
        Ok(())
    }

    fn read(&self, batch: &mut Batch, config: Config, register: u16) {
        match config {
            Config::Ports => {
                batch.out32(CONFIG_ADDRESS, self.port_address(register)).in32(CONFIG_DATA)
            }
            Config::Memory(start) => batch.read32(self.memory_address(start, register)),
        };
    }

    fn write(&self, batch: &mut Batch, config: Config, register: u16, value: u32) {
        match config {
            Config::Ports => {
                batch.out32(CONFIG_ADDRESS, self.port_address(register)).out32(CONFIG_DATA, value)
            }
            Config::Memory(start) => batch.write32(self.memory_address(start, register), value),
        };
    }

    fn port_address(&self, register: u16) -> u32 {
        ENABLE | u32::from(self.bdf()) << 8 | u32::from(register)
    }

    fn memory_address(&self, start: u64, register: u16) -> u64 {
        start + (u64::from(self.bdf()) << 12) + u64::from(register)
    }
}

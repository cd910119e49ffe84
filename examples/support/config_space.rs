//! PCI configuration space: a type 0 header, memory BARs and a capability list (PCI 3.0, 6.1).

use super::bytes::{read_u16, write_le};

/// Bytes of a configuration space, extended capabilities (PCI Express) included.
pub(crate) const CONFIG_BYTES: u16 = 4096;
/// The capability list lives in the first of these.
const CONVENTIONAL_BYTES: usize = 256;

/// Version of each extended capability that a function here has.
const EXTENDED_VERSION: u16 = 1;

/// BARs of a type 0 header.
const BARS: u8 = 6;
/// The smallest memory BAR (PCI 3.0, 6.2.5.1).
const BAR_MIN_BYTES: u32 = 16;
/// First byte after the header.
const HEADER_BYTES: usize = 0x40;

const VENDOR: usize = 0x00;
const DEVICE: usize = 0x02;
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION_AND_CLASS: usize = 0x08;
const BAR0: usize = 0x10;
const SUBSYSTEM_VENDOR: usize = 0x2c;
const SUBSYSTEM: usize = 0x2e;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
const INTERRUPT_PIN: usize = 0x3d;

/// Memory decode, bus master, parity error response, SERR#, INTx disable.
const COMMAND_WRITABLE: u16 = 0x0546;
const COMMAND_INTX_DISABLE: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// Who the function says it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    /// Vendor id.
    pub(crate) vendor: u16,
    /// Device id.
    pub(crate) device: u16,
    /// Base class, subclass and programming interface, 24 bits.
    pub(crate) class: u32,
    /// Revision id.
    pub(crate) revision: u8,
    /// Subsystem vendor id.
    pub(crate) subsystem_vendor: u16,
    /// Subsystem id.
    pub(crate) subsystem: u16,
}

/// A mistake in how a function was put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LayoutError {
    /// No such BAR, or its size cannot be decoded.
    #[error("BAR {index} of {bytes:#x} bytes: sizes are powers of two from 16, indexes 0 to 5")]
    Bar {
        /// Which BAR.
        index: u8,
        /// The size asked for.
        bytes: u32,
    },
    /// The first 256 bytes have no room for another capability.
    #[error("no room for a capability of {bytes} bytes at {at:#x}")]
    CapabilitiesFull {
        /// Where it would have begun.
        at: usize,
        /// Its size, header included.
        bytes: usize,
    },
    /// The configuration space has no room for another extended capability.
    #[error("no room for an extended capability of {bytes} bytes at {at:#x}")]
    ExtendedCapabilitiesFull {
        /// Where it would have begun.
        at: usize,
        /// Its size, header included.
        bytes: usize,
    },
    /// PCI Express has no PASIDs of that width.
    #[error("PASIDs of {bits} bits: 1 to 20 are possible")]
    PasidBits {
        /// The width asked for.
        bits: u8,
    },
    /// No vectors, or more than the pending bits show.
    #[error("{vectors} MSI-X vectors: 1 to {most} are possible")]
    Vectors {
        /// How many were asked for.
        vectors: u16,
        /// How many are possible.
        most: u16,
    },
}

/// The configuration space of one function.
///
/// Each byte has a mask of the bits that software may write; all else is read-only. BAR sizing
/// needs nothing more: the address bits below a BAR's size are not writable.
#[derive(Debug)]
pub(crate) struct ConfigSpace {
    now: Vec<u8>,
    writable: Vec<u8>,
    power_on: Vec<u8>,
    next_capability: usize,
    /// The byte that points to the next capability to be added.
    link: usize,
    next_extended: usize,
    /// The header of the last extended capability, which leads to the next one.
    last_extended: Option<usize>,
}

impl ConfigSpace {
    /// A space with a header and nothing else.
    pub(crate) fn new(identity: &Identity) -> Self {
        let bytes = usize::from(CONFIG_BYTES);
        let mut space = Self {
            now: vec![0; bytes],
            writable: vec![0; bytes],
            power_on: vec![0; bytes],
            next_capability: HEADER_BYTES,
            link: CAPABILITIES,
            next_extended: CONVENTIONAL_BYTES,
            last_extended: None,
        };
        let class = identity.class << 8 | u32::from(identity.revision);
        space.define(VENDOR, &identity.vendor.to_le_bytes(), &[]);
        space.define(DEVICE, &identity.device.to_le_bytes(), &[]);
        space.define(COMMAND, &[0, 0], &COMMAND_WRITABLE.to_le_bytes());
        space.define(REVISION_AND_CLASS, &class.to_le_bytes(), &[]);
        space.define(SUBSYSTEM_VENDOR, &identity.subsystem_vendor.to_le_bytes(), &[]);
        space.define(SUBSYSTEM, &identity.subsystem.to_le_bytes(), &[]);
        space.define(INTERRUPT_LINE, &[0], &[0xff]);
        space
    }

    /// Makes BAR `index` a 32-bit, non-prefetchable memory BAR of `bytes` bytes.
    ///
    /// # Errors
    /// [`LayoutError::Bar`].
    pub(crate) fn add_bar(&mut self, index: u8, bytes: u32) -> Result<(), LayoutError> {
        if index >= BARS || bytes < BAR_MIN_BYTES || !bytes.is_power_of_two() {
            return Err(LayoutError::Bar { index, bytes });
        }
        self.define(BAR0 + 4 * usize::from(index), &[0; 4], &(!(bytes - 1)).to_le_bytes());
        Ok(())
    }

    /// Says that the function raises INTA#.
    pub(crate) fn add_interrupt_pin(&mut self) {
        self.define(INTERRUPT_PIN, &[1], &[]);
    }

    /// Adds a capability at the end of the list: `body` follows its two-byte header, `writable` says
    /// which bits of the body software may write (bytes that it lacks: none). Returns its offset.
    ///
    /// # Errors
    /// [`LayoutError::CapabilitiesFull`].
    pub(crate) fn add_capability(
        &mut self,
        id: u8,
        body: &[u8],
        writable: &[u8],
    ) -> Result<usize, LayoutError> {
        let at = self.next_capability;
        let bytes = body.len() + 2;
        let full = LayoutError::CapabilitiesFull { at, bytes };
        let end = at.checked_add(bytes).filter(|&end| end <= CONVENTIONAL_BYTES).ok_or(full)?;
        let pointer = u8::try_from(at).map_err(|_| full)?;

        let status = read_u16(&self.now, STATUS) | STATUS_CAPABILITIES;
        self.define(STATUS, &status.to_le_bytes(), &[]);
        self.define(self.link, &[pointer], &[]);
        self.define(at, &[id, 0], &[]);
        self.define(at + 2, body, writable);
        self.link = at + 1;
        self.next_capability = end.next_multiple_of(4);
        Ok(at)
    }

    /// Adds an extended capability at the end of their list (PCIe 6.0, 7.6.3): `body` follows its header
    /// of four bytes, `writable` is as in [`add_capability`](Self::add_capability). Returns its offset.
    ///
    /// # Errors
    /// [`LayoutError::ExtendedCapabilitiesFull`].
    pub(crate) fn add_extended_capability(
        &mut self,
        id: u16,
        body: &[u8],
        writable: &[u8],
    ) -> Result<usize, LayoutError> {
        let at = self.next_extended;
        let bytes = body.len() + 4;
        let full = LayoutError::ExtendedCapabilitiesFull { at, bytes };
        let end = at.checked_add(bytes).filter(|&end| end <= self.now.len()).ok_or(full)?;
        let next = u16::try_from(at << 4).map_err(|_| full)?;
        if let Some(last) = self.last_extended {
            let version = read_u16(&self.now, last + 2) & 0xf;
            self.define(last + 2, &(next | version).to_le_bytes(), &[]);
        }
        self.define(at, &id.to_le_bytes(), &[]);
        self.define(at + 2, &EXTENDED_VERSION.to_le_bytes(), &[]);
        self.define(at + 4, body, writable);
        self.last_extended = Some(at);
        self.next_extended = end.next_multiple_of(4);
        Ok(at)
    }

    /// Reads `data.len()` bytes from `offset` on; what lies past the end reads as zero.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(self.now.iter().skip(start)) {
            *byte = *value;
        }
    }

    /// Writes `data` from `offset` on, as far as bits are writable.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        let bytes = self.now.iter_mut().zip(&self.writable).skip(start);
        for ((byte, mask), new) in bytes.zip(data) {
            *byte = *byte & !mask | new & mask;
        }
    }

    /// Back to the values of power-on.
    pub(crate) fn reset(&mut self) {
        self.now.copy_from_slice(&self.power_on);
    }

    /// The 16-bit register at `offset`.
    pub(crate) fn register(&self, offset: usize) -> u16 {
        read_u16(&self.now, offset)
    }

    /// True if software forbids the function to raise INTA#.
    pub(crate) fn intx_disabled(&self) -> bool {
        self.register(COMMAND) & COMMAND_INTX_DISABLE != 0
    }

    /// Sets bytes and which of their bits are writable (bytes that `writable` lacks: none).
    fn define(&mut self, at: usize, value: &[u8], writable: &[u8]) {
        write_le(&mut self.now, at, value);
        write_le(&mut self.power_on, at, value);
        write_le(&mut self.writable, at, writable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        vendor: 0x1af4,
        device: 0x1042,
        class: 0x01_00_00,
        revision: 1,
        subsystem_vendor: 0x1af4,
        subsystem: 0x40,
    };

    fn read(space: &ConfigSpace, offset: u64) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn the_header_says_who_the_function_is() {
        let space = ConfigSpace::new(&IDENTITY);
        assert_eq!(read(&space, 0x00), 0x1042_1af4);
        assert_eq!(read(&space, 0x08), 0x0100_0001);
        assert_eq!(read(&space, 0x2c), 0x0040_1af4);
    }

    #[test]
    fn a_sizing_write_shows_the_size_and_an_unused_bar_stays_zero() {
        let mut space = ConfigSpace::new(&IDENTITY);
        space.add_bar(1, 0x4000).unwrap();
        for bar in 0..2 {
            space.write(0x10 + 4 * bar, &[0xff; 4]);
        }
        assert_eq!((read(&space, 0x10), read(&space, 0x14)), (0, 0xffff_c000));
        space.write(0x14, &0xfebf_1234u32.to_le_bytes());
        assert_eq!(read(&space, 0x14), 0xfebf_0000);
    }

    #[test]
    fn bars_of_impossible_size_or_number_are_refused() {
        let mut space = ConfigSpace::new(&IDENTITY);
        for (index, bytes) in [(0, 8), (0, 0x3000), (6, 0x1000)] {
            assert_eq!(space.add_bar(index, bytes), Err(LayoutError::Bar { index, bytes }));
        }
    }

    #[test]
    fn capabilities_are_linked_in_order_and_bounded_by_the_first_256_bytes() {
        let mut space = ConfigSpace::new(&IDENTITY);
        assert_eq!(read(&space, 0x04) >> 16, 0);
        assert_eq!(space.add_capability(0x11, &[0; 10], &[]), Ok(0x40));
        assert_eq!(space.add_capability(0x09, &[7; 7], &[]), Ok(0x4c));
        assert_eq!(read(&space, 0x04) >> 16, 0x10);
        assert_eq!(read(&space, 0x34), 0x40);
        assert_eq!(read(&space, 0x40), 0x4c11);
        assert_eq!(read(&space, 0x4c), 0x0707_0009);
        let full = LayoutError::CapabilitiesFull { at: 0x58, bytes: 0xa9 };
        assert_eq!(space.add_capability(0x09, &[0; 0xa7], &[]), Err(full));
        assert_eq!(space.add_capability(0x09, &[0; 0xa6], &[]), Ok(0x58));
    }

    #[test]
    fn extended_capabilities_are_linked_from_256_on_and_bounded_by_the_space() {
        let mut space = ConfigSpace::new(&IDENTITY);
        assert_eq!(read(&space, 0x100), 0, "none");
        assert_eq!(space.add_extended_capability(0x1b, &[2, 1, 0, 0], &[0, 0, 7]), Ok(0x100));
        assert_eq!(read(&space, 0x100), 0x0001_001b);
        assert_eq!(space.add_extended_capability(0x0f, &[5; 4], &[]), Ok(0x108));
        assert_eq!(read(&space, 0x100), 0x1081_001b);
        assert_eq!((read(&space, 0x108), read(&space, 0x10c)), (0x0001_000f, 0x0505_0505));
        space.write(0x104, &[0xff; 4]);
        assert_eq!(read(&space, 0x104), 0x0007_0102);
        let full = LayoutError::ExtendedCapabilitiesFull { at: 0x110, bytes: 0xef1 };
        assert_eq!(space.add_extended_capability(0x0b, &[0; 0xeed], &[]), Err(full));
        assert_eq!(space.add_extended_capability(0x0b, &[0; 0xeec], &[]), Ok(0x110));
        assert_eq!(read(&space, 0x108), 0x1101_000f);
    }

    #[test]
    fn only_writable_bits_change_and_reset_brings_them_back() {
        let mut space = ConfigSpace::new(&IDENTITY);
        space.write(0x00, &[0xff; 8]);
        assert_eq!((read(&space, 0x00), read(&space, 0x04)), (0x1042_1af4, 0x0546));
        assert!(space.intx_disabled());
        space.reset();
        assert_eq!(read(&space, 0x04), 0);
        assert!(!space.intx_disabled());
    }

    #[test]
    fn accesses_past_the_end_read_zero_and_write_nothing() {
        let mut space = ConfigSpace::new(&IDENTITY);
        space.write(u64::MAX, &[0xff; 4]);
        space.write(4094, &[0xff; 8]);
        assert_eq!((read(&space, 4094), read(&space, u64::MAX)), (0, 0));
    }
}

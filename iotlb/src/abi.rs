//! The shared layout, version 2: what both processes find at which offset.
//!
//! `docs/iotlb-abi.md` describes it for readers written in other languages. All words are
//! little-endian and naturally aligned; each line that one side writes often is 64 bytes and alone.
//!
//! | memory | who writes | who trusts it |
//! | --- | --- | --- |
//! | region: header, then table pages | the daemon | devices |
//! | [`SlotMemory::control`], [`FaultHead`] | the daemon | the device |
//! | everything else in [`SlotMemory`] | the device | nobody: loaded once, and checked |

use std::mem::{offset_of, size_of};
use std::sync::atomic::{AtomicU32, AtomicU64};

#[cfg(not(target_endian = "little"))]
compile_error!("the shared layout is little-endian");
#[cfg(not(target_pointer_width = "64"))]
compile_error!("the shared layout needs 64-bit words");

/// The layout's and the messages' version. Readers and daemons of different versions refuse each
/// other.
pub const VERSION: u32 = 2;

/// First word of the region: `"viotlb\0\1"`.
pub const MAGIC: u64 = u64::from_le_bytes(*b"viotlb\0\x01");

/// Where VT-d's tables are by default: above what a guest of 2^51 bytes can have, below 52 bits.
pub const DEFAULT_TABLE_BASE: u64 = 1 << 51;

/// Readers of one connection: one for each queue or thread of a device; a slot is one bit of a
/// word.
pub const READER_SLOTS: usize = 64;

/// Pins of one connection; each is an access in flight that outlives its guard.
pub const PIN_SLOTS: usize = 256;

/// Fault records that wait for the daemon; more are counted and dropped.
pub const FAULT_RECORDS: usize = 256;

/// Bytes of a table page, and of the header in front of them.
pub const PAGE_BYTES: u64 = 4096;

/// [`PAGE_BYTES`] as a length in memory.
pub(crate) const PAGE_LEN: usize = 4096;

/// Whose structures the region holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arch {
    /// VT-d, scalable mode.
    Vtd,
    /// SMMUv3.
    SmmuV3,
}

impl Arch {
    /// The number in the header.
    #[must_use]
    pub const fn raw(self) -> u64 {
        match self {
            Self::Vtd => 1,
            Self::SmmuV3 => 2,
        }
    }

    /// Width of the addresses in its structures, bits: the region ends at or below.
    #[must_use]
    pub const fn address_bits(self) -> u8 {
        match self {
            Self::Vtd => 52,
            Self::SmmuV3 => 48,
        }
    }

    /// The architecture with this number, if it is known.
    #[must_use]
    pub const fn from_raw(raw: u64) -> Option<Self> {
        match raw {
            1 => Some(Self::Vtd),
            2 => Some(Self::SmmuV3),
            _ => None,
        }
    }
}

/// The region's first 128 bytes. All but `epoch` is constant from before the first device sees it.
#[derive(Debug)]
#[repr(C)]
pub struct RegionHeader {
    /// [`MAGIC`].
    pub magic: AtomicU64,
    /// [`VERSION`].
    pub version: AtomicU64,
    /// [`Arch::raw`].
    pub arch: AtomicU64,
    /// Physical address of the region's first byte: offset X has address `table_base + X`.
    pub table_base: AtomicU64,
    /// Bytes of the region.
    pub size: AtomicU64,
    reserved: [AtomicU64; 3],
    /// Grows by one at each drain; never 0 or 1.
    pub epoch: AtomicU64,
    epoch_line: [AtomicU64; 7],
}

/// What the daemon tells the readers of one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Accesses are translated.
    Running,
    /// Accesses wait.
    Parked,
    /// Accesses are refused, for good.
    CutOff,
}

impl State {
    /// The number in [`Control::state`].
    #[must_use]
    pub const fn raw(self) -> u32 {
        match self {
            Self::Running => 0,
            Self::Parked => 1,
            Self::CutOff => 2,
        }
    }

    /// The state with this number; an unknown one refuses, as [`State::CutOff`] does.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw {
            0 => Self::Running,
            1 => Self::Parked,
            _ => Self::CutOff,
        }
    }
}

/// The daemon's line.
#[derive(Debug)]
#[repr(C)]
pub struct Control {
    /// [`State::raw`]; also a futex (shared, not private) that is woken when it changes.
    pub state: AtomicU32,
    reserved: [AtomicU32; 15],
}

/// The consumer's end of the fault ring; written by the daemon.
#[derive(Debug)]
#[repr(C)]
pub struct FaultHead {
    /// Records taken so far.
    pub taken: AtomicU64,
    reserved: [AtomicU64; 7],
}

/// The producer's end of the fault ring, and the slots in use; written by the device.
#[derive(Debug)]
#[repr(C)]
pub struct DeviceLine {
    /// Records put so far; record n is at index n modulo [`FAULT_RECORDS`].
    pub put: AtomicU64,
    /// Records that found no room.
    pub dropped: AtomicU64,
    /// One bit for each reader slot in use.
    pub slots_used: AtomicU64,
    /// One bit for each pin in use.
    pub pins_used: [AtomicU64; PIN_SLOTS / 64],
    reserved: [AtomicU64; 1],
}

/// One reader's line; written by that reader.
#[derive(Debug)]
#[repr(C)]
pub struct ReaderLine {
    /// 0 outside a section, else an epoch not later than the tables in use.
    pub epoch: AtomicU64,
    /// Translations that the private TLB answered.
    pub hits: AtomicU64,
    /// Translations that walked.
    pub misses: AtomicU64,
    /// Times that the private TLB was flushed.
    pub flushes: AtomicU64,
    reserved: [AtomicU64; 4],
}

/// One access in flight that outlives its guard; written by the device.
#[derive(Debug)]
#[repr(C)]
pub struct PinLine {
    /// The PASID; 0 for untagged accesses.
    pub pasid: AtomicU64,
    /// First IOVA.
    pub first: AtomicU64,
    /// Last IOVA, inclusive.
    pub last: AtomicU64,
    /// The epoch of the section in which it was translated: a drain waits for older ones only.
    pub epoch: AtomicU64,
}

/// One fault record: four words, see [`crate::FaultRecord`].
pub type FaultWords = [AtomicU64; 4];

/// A connection's own memory, shared by the daemon and one device process.
#[derive(Debug)]
#[repr(C)]
pub struct SlotMemory {
    /// The daemon's line.
    pub control: Control,
    /// The fault ring's consumer.
    pub fault_head: FaultHead,
    /// The fault ring's producer, and what is in use.
    pub device: DeviceLine,
    first_page: [AtomicU64; 488],
    /// One line a reader.
    pub readers: [ReaderLine; READER_SLOTS],
    /// The pins.
    pub pins: [PinLine; PIN_SLOTS],
    /// The fault ring.
    pub faults: [FaultWords; FAULT_RECORDS],
}

const _: () = {
    assert!(size_of::<RegionHeader>() == 128);
    assert!(offset_of!(RegionHeader, table_base) == 0x18);
    assert!(offset_of!(RegionHeader, size) == 0x20);
    assert!(offset_of!(RegionHeader, epoch) == 0x40);
    assert!(size_of::<ReaderLine>() == 64);
    assert!(size_of::<PinLine>() == 32);
    assert!(offset_of!(SlotMemory, fault_head) == 0x40);
    assert!(offset_of!(SlotMemory, device) == 0x80);
    assert!(offset_of!(DeviceLine, slots_used) == 0x10);
    assert!(offset_of!(DeviceLine, pins_used) == 0x18);
    assert!(offset_of!(SlotMemory, readers) == 0x1000);
    assert!(offset_of!(SlotMemory, pins) == 0x2000);
    assert!(offset_of!(SlotMemory, faults) == 0x4000);
    assert!(size_of::<SlotMemory>() == 0x6000);
};

//! The stream table entry: what is done with the requests of one function (IHI 0070, 5.2).

use viommu_pgtable::PhysAddr;

use super::geometry::{AddressSize, align_down};
use super::stage2::Stage2;
use super::{OUTPUT_BITS, SUBSTREAM_BITS, USED_WORDS, field};
use crate::leaf::{ENTRY_LG2, LEAF_ENTRIES_LG2, WORDS};

/// Word 0, bit 0: V.
pub(super) const VALID: u64 = 1;
const CONFIG: (u32, u32) = (1, 3);
const CONFIG_BYPASS: u64 = 0b100;
const CONFIG_STAGE1: u64 = 0b101;
const CONFIG_STAGE2: u64 = 0b110;
const CONFIG_NESTED: u64 = 0b111;
const S1FMT: (u32, u32) = (4, 2);
/// Bits 51:6; those above `IDR5.OAS` make the entry illegal.
const S1_CONTEXT_PTR: u64 = ((1 << 52) - 1) & !0x3f;
const S1CDMAX: (u32, u32) = (59, 5);
/// Word 1.
const S1DSS: (u32, u32) = (0, 2);
/// `S1CIR`, `S1COR`: write-back, read-allocate; `S1CSH`: inner shareable.
const CONTEXT_ATTRIBUTES: u64 = 0b01 << 2 | 0b01 << 4 | 0b11 << 6;
/// `S1STALLD`: illegal, as there are no stalls to disable.
const STALL_DISABLE: u64 = 1 << 27;
/// `SHCFG`: use the shareability that the request came with.
const SHARE_INCOMING: u64 = 0b01 << 44;
/// Word 2, bits 15:0: S2VMID.
const VMID: u64 = 0xffff;

/// Context descriptors of a 64 KiB leaf, log2.
const LEAF_64K_ENTRIES_LG2: u8 = 10;

/// How context descriptors lie in memory: S1Fmt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ContextLayout {
    /// One after the other.
    Linear,
    /// Pointers to leaves of 4 KiB: 64 descriptors each.
    Leaves4K,
    /// Pointers to leaves of 64 KiB: 1024 descriptors each.
    Leaves64K,
}

impl ContextLayout {
    /// Descriptors of a leaf, log2; `None` without leaves.
    pub(super) const fn leaf_lg2(self) -> Option<u8> {
        match self {
            Self::Linear => None,
            Self::Leaves4K => Some(LEAF_ENTRIES_LG2),
            Self::Leaves64K => Some(LEAF_64K_ENTRIES_LG2),
        }
    }

    const fn encode(self) -> u64 {
        match self {
            Self::Linear => 0b00,
            Self::Leaves4K => 0b01,
            Self::Leaves64K => 0b10,
        }
    }

    /// 0b11 behaves as 0b00.
    const fn decode(field: u64) -> Self {
        match field {
            0b01 => Self::Leaves4K,
            0b10 => Self::Leaves64K,
            _ => Self::Linear,
        }
    }
}

/// What untagged requests of a function with PASIDs do: S1DSS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Untagged {
    /// They are aborted.
    Terminate,
    /// They skip stage 1.
    Bypass,
    /// They take the context descriptor of SubstreamID 0.
    Context0,
}

impl Untagged {
    const fn encode(self) -> u64 {
        match self {
            Self::Terminate => 0b00,
            Self::Bypass => 0b01,
            Self::Context0 => 0b10,
        }
    }

    /// 0b11 behaves as 0b00.
    const fn decode(field: u64) -> Self {
        match field {
            0b01 => Self::Bypass,
            0b10 => Self::Context0,
            _ => Self::Terminate,
        }
    }
}

/// The stage 1 fields: where the context descriptors are.
///
/// Holding one proves that the pointer is aligned to what it points to and within 48 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stage1 {
    contexts: PhysAddr,
    layout: ContextLayout,
    pasid_bits: u8,
    untagged: Untagged,
}

impl Stage1 {
    /// Descriptors of the PASIDs of `pasid_bits` bits, at `contexts`. 0 bits: one descriptor, for
    /// untagged requests; layout and `untagged` do not matter then, and are `Linear` and
    /// `Context0`.
    ///
    /// `None` for more than 20 bits, or if `contexts` is not a multiple of the size of what it
    /// points to (at least 64 bytes), or wider than 48 bits.
    #[must_use]
    pub const fn new(
        contexts: PhysAddr,
        layout: ContextLayout,
        pasid_bits: u8,
        untagged: Untagged,
    ) -> Option<Self> {
        if pasid_bits > SUBSTREAM_BITS {
            return None;
        }
        let aligned = contexts.is_aligned(table_lg2(layout, pasid_bits));
        if !aligned || !AddressSize::Bits48.holds(contexts) {
            return None;
        }
        let (layout, untagged) = match pasid_bits {
            0 => (ContextLayout::Linear, Untagged::Context0),
            _ => (layout, untagged),
        };
        Some(Self { contexts, layout, pasid_bits, untagged })
    }

    /// The descriptor, the table of descriptors, or the table of pointers to leaves.
    #[must_use]
    pub const fn contexts(&self) -> PhysAddr {
        self.contexts
    }

    /// How they lie in memory.
    #[must_use]
    pub const fn layout(&self) -> ContextLayout {
        self.layout
    }

    /// There are `1 << pasid_bits` of them: S1CDMax.
    #[must_use]
    pub const fn pasid_bits(&self) -> u8 {
        self.pasid_bits
    }

    /// What untagged requests do.
    #[must_use]
    pub const fn untagged(&self) -> Untagged {
        self.untagged
    }

    const fn pack(&self) -> [u64; 2] {
        let word0 = self.contexts.raw()
            | self.layout.encode() << S1FMT.0
            | (self.pasid_bits as u64) << S1CDMAX.0;
        [word0, self.untagged.encode() << S1DSS.0 | CONTEXT_ATTRIBUTES]
    }

    fn unpack(word0: u64, word1: u64) -> Option<Self> {
        if word1 & STALL_DISABLE != 0 {
            return None;
        }
        let layout = ContextLayout::decode(field(word0, S1FMT.0, S1FMT.1));
        let pasid_bits = u8::try_from(field(word0, S1CDMAX.0, S1CDMAX.1)).ok()?;
        if pasid_bits > SUBSTREAM_BITS {
            return None;
        }
        // bits below the alignment are reserved, and read as zero
        let contexts = align_down(word0 & S1_CONTEXT_PTR, table_lg2(layout, pasid_bits));
        Self::new(contexts, layout, pasid_bits, Untagged::decode(field(word1, S1DSS.0, S1DSS.1)))
    }
}

/// Bytes of what `S1ContextPtr` points to, log2 (IHI 0070, 5.2 `S1Fmt`).
const fn table_lg2(layout: ContextLayout, pasid_bits: u8) -> u8 {
    let lg2 = match layout.leaf_lg2() {
        Some(leaf_lg2) if pasid_bits > 0 => pasid_bits.saturating_sub(leaf_lg2) + 3,
        _ => pasid_bits + ENTRY_LG2,
    };
    if lg2 < ENTRY_LG2 { ENTRY_LG2 } else { lg2 }
}

/// What happens to the requests of a function: Config, with what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamConfig {
    /// They are aborted, and no event is recorded (0b0xx).
    Abort,
    /// Their address is the output (0b100).
    Bypass,
    /// Stage 1 only (0b101).
    Stage1(Stage1),
    /// Stage 2 only (0b110).
    Stage2(Stage2),
    /// Both (0b111): addresses in stage 1's structures and tables are translated by stage 2.
    Nested {
        /// Stage 1.
        first: Stage1,
        /// Stage 2.
        second: Stage2,
    },
}

/// A valid stream table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StreamEntry {
    /// The virtual machine's number, with which hardware tags its caches. No walker here keeps such
    /// a cache.
    pub vmid: u16,
    /// What happens to requests.
    pub config: StreamConfig,
}

impl StreamEntry {
    /// The eight words of the entry, word 0 first.
    #[must_use]
    pub fn pack(&self) -> [u64; WORDS] {
        let (config, [s1_word0, s1_word1], [s2_word2, s2_word3]) = match self.config {
            StreamConfig::Abort => (0, [0; 2], [0; 2]),
            StreamConfig::Bypass => (CONFIG_BYPASS, [0; 2], [0; 2]),
            StreamConfig::Stage1(first) => (CONFIG_STAGE1, first.pack(), [0; 2]),
            StreamConfig::Stage2(second) => (CONFIG_STAGE2, [0; 2], second.pack()),
            StreamConfig::Nested { first, second } => (CONFIG_NESTED, first.pack(), second.pack()),
        };
        let word0 = VALID | config << CONFIG.0 | s1_word0;
        let word2 = u64::from(self.vmid) | s2_word2;
        [word0, s1_word1 | SHARE_INCOMING, word2, s2_word3, 0, 0, 0, 0]
    }

    /// The entry whose first four words these are; `None` if it is not valid, or illegal (5.2.2).
    #[must_use]
    pub fn unpack(words: &[u64; USED_WORDS]) -> Option<Self> {
        let [word0, word1, word2, word3] = *words;
        if word0 & VALID == 0 {
            return None;
        }
        let first = || Stage1::unpack(word0, word1);
        let second = || Stage2::unpack(word2, word3);
        let config = match field(word0, CONFIG.0, CONFIG.1) {
            CONFIG_BYPASS => StreamConfig::Bypass,
            CONFIG_STAGE1 => StreamConfig::Stage1(first()?),
            CONFIG_STAGE2 => StreamConfig::Stage2(second()?),
            CONFIG_NESTED => StreamConfig::Nested { first: first()?, second: second()? },
            _ => StreamConfig::Abort,
        };
        Some(Self { vmid: u16::try_from(word2 & VMID).ok()?, config })
    }
}

const _: () = assert!(OUTPUT_BITS == AddressSize::Bits48.bits());

//! Legacy mode: a root and a context entry lead straight to a second-level table (VT-d 5.0, 3.4.2, 9.1
//! and 9.3).
//!
//! The software IOMMU has scalable mode only. This is for those who read or write the older structures:
//! the comparison with other walkers, and drivers of hosts without scalable mode.

use core::fmt;

use viommu_pgtable::{OutOfTables, PhysAddr, TableMemory, TableStore};

use super::{AddressWidth, POINTER, PRESENT};
use crate::leaf::within;

/// Bytes of a root entry, and of a context entry: two words.
const ENTRY_BYTES: u64 = 16;
const _: () = assert!(256 * ENTRY_BYTES == super::TABLE_BYTES);

/// Root entry, word 0, bits 11:1; word 1 is reserved as a whole.
const ROOT_RESERVED: u64 = 0xffe;
/// Context entry, word 0, bits 3:2: TT, the translation type.
const TYPE_SHIFT: u32 = 2;
const TYPE_MASK: u64 = 3;
const TYPE_SECOND: u64 = 0;
const TYPE_PASS_THROUGH: u64 = 2;
/// Context entry, word 0, bits 11:4.
const CONTEXT_RESERVED: u64 = 0xff0;
/// Context entry, word 1, bits 2:0: AW, the width of the table's input.
const WIDTH_MASK: u64 = 7;
/// Context entry, word 1, bits 23:8: DID, what caches are tagged with.
const TAG_SHIFT: u32 = 8;
const TAG_MASK: u64 = 0xffff;
/// Context entry, word 1: bit 7 and bits 63:24; bits 6:3 are ignored.
const CONTEXT_RESERVED_HIGH: u64 = !((1 << 24) - 1) | 1 << 7;

/// What happens to a function's requests: the TT field with what belongs to it. Legacy mode has no first
/// level, so this is no [`Translation`](super::Translation).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyTranslation {
    /// Through a second-level table (TT 00b).
    SecondLevel {
        /// The root table, 4 KiB aligned.
        root: PhysAddr,
    },
    /// The request's address is the output (TT 10b).
    PassThrough,
}

/// A present context entry of legacy mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegacyContext {
    /// The domain id that hardware tags its caches with.
    pub domain_tag: u16,
    /// Width of the input address. For pass-through, the widest that the hardware has.
    pub width: AddressWidth,
    /// How requests are translated.
    pub translation: LegacyTranslation,
}

/// Which structure ended a lookup (VT-d 5.0, 7.1.3: the legacy-mode fault reasons).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LegacyFaultKind {
    /// No memory for the root entry (LRT.1).
    RootNoMemory,
    /// The root entry is not present (LRT.2).
    RootNotPresent,
    /// The root entry is present with reserved bits set (LRT.3).
    RootMalformed,
    /// No memory for the context entry (LCT.1).
    ContextNoMemory,
    /// The context entry is not present (LCT.2).
    ContextNotPresent,
    /// The context entry is present with reserved bits set (LCT.3).
    ContextMalformed,
    /// The context entry has a width or translation type that is not offered (LCT.4).
    ContextInvalid,
}

/// A request that found no way to its page table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LegacyFault {
    /// What was wrong.
    pub kind: LegacyFaultKind,
    /// The address of the entry that was wrong.
    pub entry_at: PhysAddr,
}

impl fmt::Display for LegacyFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            LegacyFaultKind::RootNoMemory => "no memory for the root entry",
            LegacyFaultKind::RootNotPresent => "root entry not present",
            LegacyFaultKind::RootMalformed => "root entry malformed",
            LegacyFaultKind::ContextNoMemory => "no memory for the context entry",
            LegacyFaultKind::ContextNotPresent => "context entry not present",
            LegacyFaultKind::ContextMalformed => "context entry malformed",
            LegacyFaultKind::ContextInvalid => "context entry asks for what is not offered",
        };
        write!(f, "{what} at {}", self.entry_at)
    }
}

impl core::error::Error for LegacyFault {}

impl LegacyContext {
    /// The two words of the entry, all reserved and ignored bits zero.
    #[must_use]
    pub const fn pack(&self) -> [u64; 2] {
        let word0 = match self.translation {
            LegacyTranslation::SecondLevel { root } => {
                (root.raw() & POINTER) | (TYPE_SECOND << TYPE_SHIFT)
            }
            LegacyTranslation::PassThrough => TYPE_PASS_THROUGH << TYPE_SHIFT,
        };
        let tag = (self.domain_tag as u64) << TAG_SHIFT;
        [word0 | PRESENT, tag | encode(self.width)]
    }

    /// The present entry in these words.
    ///
    /// # Errors
    /// [`LegacyFaultKind::ContextMalformed`] for reserved bits, among them address bits from
    /// `output_bits` on; [`LegacyFaultKind::ContextInvalid`] for a type or width that VT-d does not have.
    pub const fn unpack(words: [u64; 2], output_bits: u8) -> Result<Self, LegacyFaultKind> {
        let [word0, word1] = words;
        let reserved = word0 & (CONTEXT_RESERVED | above(output_bits)) != 0;
        if reserved || word1 & CONTEXT_RESERVED_HIGH != 0 {
            return Err(LegacyFaultKind::ContextMalformed);
        }
        let translation = match (word0 >> TYPE_SHIFT) & TYPE_MASK {
            TYPE_SECOND => LegacyTranslation::SecondLevel { root: PhysAddr::new(word0 & POINTER) },
            TYPE_PASS_THROUGH => LegacyTranslation::PassThrough,
            _ => return Err(LegacyFaultKind::ContextInvalid),
        };
        let Some(width) = decode(word1 & WIDTH_MASK) else {
            return Err(LegacyFaultKind::ContextInvalid);
        };
        let [low, high, ..] = ((word1 >> TAG_SHIFT) & TAG_MASK).to_le_bytes();
        Ok(Self { domain_tag: u16::from_le_bytes([low, high]), width, translation })
    }
}

/// The address bits that a host with `output_bits` address bits does not have.
const fn above(output_bits: u8) -> u64 {
    if output_bits >= 64 { 0 } else { !((1 << output_bits) - 1) }
}

const fn encode(width: AddressWidth) -> u64 {
    match width {
        AddressWidth::Bits39 => 1,
        AddressWidth::Bits48 => 2,
        AddressWidth::Bits57 => 3,
    }
}

const fn decode(field: u64) -> Option<AddressWidth> {
    match field {
        1 => Some(AddressWidth::Bits39),
        2 => Some(AddressWidth::Bits48),
        3 => Some(AddressWidth::Bits57),
        _ => None,
    }
}

/// Where the root entry of the bus of `bdf` is.
#[must_use]
pub const fn root_entry_at(root: PhysAddr, bdf: u16) -> PhysAddr {
    let [_, bus] = bdf.to_le_bytes();
    within(root, bus as u64 * ENTRY_BYTES)
}

/// Where the context entry of `bdf` is, in the context table of its bus.
#[must_use]
pub const fn context_entry_at(table: PhysAddr, bdf: u16) -> PhysAddr {
    let [devfn, _] = bdf.to_le_bytes();
    within(table, devfn as u64 * ENTRY_BYTES)
}

/// Finds how the requests of function `bdf` are translated, on a host with `output_bits` address bits.
///
/// Takes at most four loads.
///
/// # Errors
/// The first entry on the way that is missing, not present, malformed or not offered.
pub fn lookup<M: TableMemory + ?Sized>(
    memory: &M,
    root: PhysAddr,
    bdf: u16,
    output_bits: u8,
) -> Result<LegacyContext, LegacyFault> {
    let entry_at = root_entry_at(root, bdf);
    let fault = |kind| LegacyFault { kind, entry_at };
    let words = load(memory, entry_at).ok_or(fault(LegacyFaultKind::RootNoMemory))?;
    let [word0, word1] = words;
    if word0 & PRESENT == 0 {
        return Err(fault(LegacyFaultKind::RootNotPresent));
    }
    if word0 & (ROOT_RESERVED | above(output_bits)) != 0 || word1 != 0 {
        return Err(fault(LegacyFaultKind::RootMalformed));
    }
    let entry_at = context_entry_at(PhysAddr::new(word0 & POINTER), bdf);
    let fault = |kind| LegacyFault { kind, entry_at };
    let words = load(memory, entry_at).ok_or(fault(LegacyFaultKind::ContextNoMemory))?;
    if words[0] & PRESENT == 0 {
        return Err(fault(LegacyFaultKind::ContextNotPresent));
    }
    LegacyContext::unpack(words, output_bits).map_err(fault)
}

fn load<M: TableMemory + ?Sized>(memory: &M, at: PhysAddr) -> Option<[u64; 2]> {
    Some([memory.load(at)?, memory.load(within(at, 8))?])
}

/// Writes the context entry of `bdf` into the tables at `root`, with a context table where its bus has
/// none. The words of an entry are stored one by one: no request of the function may be under way.
///
/// # Errors
/// If no table page is left; nothing changes.
pub fn set_context<S: TableStore>(
    store: &mut S,
    root: PhysAddr,
    bdf: u16,
    context: &LegacyContext,
) -> Result<(), OutOfTables> {
    let root_at = root_entry_at(root, bdf);
    let known = store.load(root_at).and_then(super::follow);
    let table = match known {
        Some(table) => table,
        None => store.alloc_pages(1)?,
    };
    let (at, [word0, word1]) = (context_entry_at(table, bdf), context.pack());
    store.store(within(at, 8), word1);
    store.store(at, word0); // last: it carries the present bit
    if known.is_none() {
        store.store(root_at, table.raw() | PRESENT);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    const BDF: u16 = 0x0120;

    fn second(root: u64, width: AddressWidth) -> LegacyContext {
        let translation = LegacyTranslation::SecondLevel { root: PhysAddr::new(root) };
        LegacyContext { domain_tag: 7, width, translation }
    }

    #[test]
    fn a_context_entry_has_the_manuals_bits() {
        // 9.3: P = bit 0, TT at 3:2, SSPTPTR at 63:12, AW = 010b at 66:64, DID at 87:72
        assert_eq!(second(0x1_2345_6000, AddressWidth::Bits48).pack(), [0x1_2345_6001, 0x702]);
        let through = LegacyContext {
            domain_tag: 0xffff,
            width: AddressWidth::Bits39,
            translation: LegacyTranslation::PassThrough,
        };
        assert_eq!(through.pack(), [0b1001, 0xff_ff01]);
        for entry in [through, second(0xf_ffff_ffff_f000, AddressWidth::Bits57)] {
            assert_eq!(LegacyContext::unpack(entry.pack(), 52), Ok(entry));
        }
    }

    #[test]
    fn reserved_bits_and_unknown_fields_are_told_apart() {
        let good = second(0x1000, AddressWidth::Bits39).pack();
        for (word, bit, kind) in [
            (0, 4, LegacyFaultKind::ContextMalformed),
            (0, 11, LegacyFaultKind::ContextMalformed),
            (0, 39, LegacyFaultKind::ContextMalformed),
            (1, 7, LegacyFaultKind::ContextMalformed),
            (1, 24, LegacyFaultKind::ContextMalformed),
            (0, 2, LegacyFaultKind::ContextInvalid),
            (1, 2, LegacyFaultKind::ContextInvalid),
        ] {
            let mut bad = good;
            bad[word] ^= 1 << bit;
            assert_eq!(LegacyContext::unpack(bad, 39), Err(kind), "word {word} bit {bit}");
        }
        let mut ignored = good;
        ignored[1] |= 0x78;
        assert_eq!(LegacyContext::unpack(ignored, 39), LegacyContext::unpack(good, 39));
    }

    struct Words(BTreeMap<u64, u64>);

    impl TableMemory for Words {
        fn load(&self, at: PhysAddr) -> Option<u64> {
            (at.raw() < 0x10_0000).then(|| self.0.get(&at.raw()).copied().unwrap_or(0))
        }
    }

    #[test]
    fn a_lookup_ends_at_the_first_entry_that_does_not_lead_on() {
        let (root, table) = (PhysAddr::new(0x1000), 0x2000);
        let (root_at, context_at) = (0x1010, 0x2200);
        let entry = second(0x3000, AddressWidth::Bits48);
        let [word0, word1] = entry.pack();
        let good =
            BTreeMap::from([(root_at, table | 1), (context_at, word0), (context_at + 8, word1)]);
        let run = |at, word| {
            let mut words = Words(good.clone());
            words.0.insert(at, word);
            lookup(&words, root, BDF, 48).map_err(|fault| (fault.kind, fault.entry_at.raw()))
        };
        assert_eq!(run(0x1000, 0), Ok(entry));
        for (at, word, kind, entry_at) in [
            (root_at, 0, LegacyFaultKind::RootNotPresent, root_at),
            (root_at, table | 3, LegacyFaultKind::RootMalformed, root_at),
            (root_at + 8, 1, LegacyFaultKind::RootMalformed, root_at),
            (root_at, 1 << 40 | 1, LegacyFaultKind::ContextNoMemory, 1 << 40 | 0x200),
            (context_at, 0, LegacyFaultKind::ContextNotPresent, context_at),
            (context_at, word0 | 0x10, LegacyFaultKind::ContextMalformed, context_at),
            (context_at + 8, 7, LegacyFaultKind::ContextInvalid, context_at),
        ] {
            assert_eq!(run(at, word), Err((kind, entry_at)), "{kind:?}");
        }
        let nowhere = lookup(&Words(good.clone()), PhysAddr::new(1 << 40), BDF, 48);
        assert_eq!(nowhere.map_err(|fault| fault.kind), Err(LegacyFaultKind::RootNoMemory));
    }
}

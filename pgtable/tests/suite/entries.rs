//! The format alone, and the walker over bytes that nobody made.

use std::cell::Cell;

use proptest::prelude::*;
use viommu_pgtable::{Access, Entry, Format, Iova, Mark, PhysAddr, TableMemory, walk};

use crate::model::{accesses, end};

pub(crate) fn decode_inverts_encode<F: Format>(format: F) {
    let geometry = format.geometry();
    for level in 0..geometry.levels {
        assert_eq!(format.decode(level, 0), Entry::Empty, "level {level}");
        let top = (1u64 << geometry.output_bits)
            - (1 << geometry.entry_lg2(level).max(geometry.granule_lg2));
        if geometry.has_leaves(level) {
            for (oa, access) in accesses(&format).into_iter().flat_map(|a| [(0, a), (top, a)]) {
                let oa = PhysAddr::new(oa);
                let Entry::Leaf { oa: decoded, access: rights } =
                    format.decode(level, format.leaf(level, oa, access))
                else {
                    panic!("level {level} {oa} {access:?} is no leaf");
                };
                assert_eq!(decoded, oa);
                assert_eq!(format.granted(rights, access), access, "level {level}");
                let mark = format.mark(format.leaf(level, oa, access), true, access);
                assert_eq!(mark, Mark::Done, "flags are preset");
            }
        }
        if level > 0 {
            let next = PhysAddr::new((1u64 << geometry.output_bits) - (1 << geometry.granule_lg2));
            let Entry::Table { next: decoded, access } = format.decode(level, format.table(next))
            else {
                panic!("level {level} {next} is no table");
            };
            assert_eq!(decoded, next);
            for wanted in accesses(&format) {
                let granted = format.granted(access, wanted);
                assert!(!F::TABLES_DENY || granted.permits(wanted), "{wanted:?} restricted");
                assert_eq!(format.mark(format.table(next), false, wanted), Mark::Done);
            }
        }
    }
}

pub(crate) fn decode_is_total<F: Format>(format: F) {
    let geometry = format.geometry();
    proptest!(|(raw: u64, low in 0u64..8, level in 0..geometry.levels)| {
        // random words are mostly present at random; vary the low bits to see every kind
        let entry = format.decode(level, raw & !7 | low);
        match entry {
            Entry::Empty | Entry::Malformed => {}
            Entry::Table { next, .. } => {
                prop_assert!(level > 0);
                prop_assert!(next.is_aligned(geometry.granule_lg2));
            }
            Entry::Leaf { oa, .. } => {
                prop_assert!(geometry.has_leaves(level));
                prop_assert!(oa.is_aligned(geometry.entry_lg2(level)));
            }
        }
    });
}

/// Some word at every address, the same each time, and how many were read.
pub(crate) struct Noise {
    seed: u64,
    and: u64,
    or: u64,
    pub(crate) loads: Cell<u32>,
}

impl Noise {
    /// Words like random ones, or mostly tables of `format`, or tables that all lead to one place.
    pub(crate) fn like<F: Format>(format: &F) -> impl Strategy<Value = Self> + use<F> {
        let (output_bits, table) = (format.geometry().output_bits, format.table(PhysAddr::new(0)));
        let masks = prop_oneof![
            Just((u64::MAX, 0)),
            Just((((1 << output_bits) - 1) & !0xffff, table)),
            Just((0, table)),
        ];
        (any::<u64>(), masks).prop_map(|(seed, (and, or))| Self {
            seed,
            and,
            or,
            loads: Cell::new(0),
        })
    }
}

impl core::fmt::Debug for Noise {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "Noise({:#x} & {:#x} | {:#x})", self.seed, self.and, self.or)
    }
}

impl TableMemory for Noise {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        assert!(at.is_aligned(3), "misaligned load at {at}");
        self.loads.set(self.loads.get() + 1);
        let mut word = (at.raw() ^ self.seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word ^= word >> 29;
        Some(word.wrapping_mul(0xbf58_476d_1ce4_e5b9) & self.and | self.or)
    }
}

pub(crate) fn walks_are_bounded<F: Format>(format: F) {
    let geometry = format.geometry();
    proptest!(|(memory in Noise::like(&format), root: u64, iova: u64, wanted in 0u8..16)| {
        let iova = Iova::new(iova & (end(&format) - 1));
        let root = PhysAddr::new(root >> geometry.root_bytes_lg2() << geometry.root_bytes_lg2());
        let wanted = Access::from_bits_truncate(wanted);
        let wanted = wanted & (Access::RWX | Access::PRIVILEGED);
        match walk(&format, &memory, root, iova, wanted) {
            Ok(translation) => {
                prop_assert!(translation.access.permits(wanted));
                prop_assert_eq!((translation.oa.raw() ^ iova.raw()) & 0xfff, 0);
            }
            Err(fault) => prop_assert!(fault.level < geometry.levels, "{fault}"),
        }
        prop_assert!(memory.loads.get() <= u32::from(geometry.levels));
    });
}

//! Arm 64-bit stage 2 (Arm ARM DDI 0487, D8.3 descriptors, D8.4.3 permissions, D8.2.2 starting level and
//! concatenated tables, D24.2 VTCR_EL2; SMMUv3 IHI 0070, 5.2 STE.S2*). Levels and sizes are in
//! [`super::arm`].
//!
//! | bits of a leaf | here |
//! | --- | --- |
//! | 5:2, 9:8 | MemAttr, SH: ignored when read; write-back, inner shareable in entries made here |
//! | 6, 7 | S2AP: reading, writing; a leaf may allow neither |
//! | 10 | AF: clear is a fault, software sets it |
//! | 11, 51, 52 | FnXS or NT, DBM, Contiguous: ignored |
//! | 53 | XN\[0\]: ignored (XNX not offered) |
//! | 54 | XN\[1\]: no fetching |
//!
//! Table entries restrict nothing. Stage 2 does not tell privileged software apart.

use super::arm::{self, ACCESS_FLAG, ArmConfigError, Granule, SHAREABLE, Shape, TABLE, VALID};
use super::{Entry, Format, Geometry, Mark};
use crate::{Access, PhysAddr, Stage};

const READ: u64 = 1 << 6;
const WRITE: u64 = 1 << 7;
const NO_EXECUTE: u64 = 1 << 54;
const WRITE_BACK: u64 = 0xf << 2;

/// At most 16 tables are concatenated (D8.2.2): 4 bits more than one table indexes.
const CONCATENATED_LG2: u8 = 4;

/// Fields of VTCR_EL2 that may have any value: cacheability and shareability of walks.
const VTCR_FREE: u64 = 0x3f00;
/// Fields that this module reads: T0SZ, SL0, TG0, PS.
const VTCR_KNOWN: u64 = 0x3f | 3 << 6 | 3 << 14 | 7 << 16;

/// The Arm 64-bit stage-2 format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArmStage2 {
    shape: Shape,
}

impl ArmStage2 {
    /// Tables of `levels` for inputs of `input_bits`, 25 to 48, and outputs of `output_bits`, 32 to 48.
    /// SL0 must be able to say the levels: 2 to 4 with 4 KiB pages, else 1 to 3. The root table indexes
    /// 1 bit at least, and at most 4 more than a table below it: so many tables are concatenated there.
    ///
    /// # Errors
    /// [`ArmConfigError`] for other widths, or if the levels do not suit them.
    pub fn new(
        granule: Granule,
        levels: u8,
        input_bits: u8,
        output_bits: u8,
    ) -> Result<Self, ArmConfigError> {
        arm::check_widths(input_bits, output_bits)?;
        let wrong = ArmConfigError::StartLevel { sl0: sl0(granule, levels), input_bits };
        let fewest = lowest_start(granule);
        if !(fewest..=fewest + MOST_ABOVE_LOWEST).contains(&levels) {
            return Err(wrong);
        }
        let index_bits = granule.lg2() - super::ENTRY_LG2;
        let root_bits = input_bits.saturating_sub(granule.lg2() + (levels - 1) * index_bits);
        if !(1..=index_bits + CONCATENATED_LG2).contains(&root_bits) {
            return Err(wrong);
        }
        Ok(Self { shape: Shape::new(granule, levels, input_bits, output_bits) })
    }

    /// The tables under `vtcr`, in the layout of VTCR_EL2 and of the STE's bits from S2T0SZ on, in a
    /// system with addresses of `system_bits`. T0SZ, SL0, TG0 and PS say which; IRGN0, ORGN0 and SH0
    /// may have any value; everything else is clear.
    ///
    /// # Errors
    /// [`ArmConfigError`] for what is reserved, inconsistent or not offered.
    pub fn from_vtcr(vtcr: u64, system_bits: u8) -> Result<Self, ArmConfigError> {
        let wrong = vtcr & !(VTCR_FREE | VTCR_KNOWN);
        if wrong != 0 {
            return Err(ArmConfigError::Bits { wrong });
        }
        let tg0 = arm::field(vtcr, 14, 2);
        let granule = Granule::from_tg0(tg0).ok_or(ArmConfigError::Granule { tg0 })?;
        let input_bits = 64 - arm::field(vtcr, 0, 6);
        let output_bits = arm::output_bits(arm::field(vtcr, 16, 3), system_bits)?;
        let sl0 = arm::field(vtcr, 6, 2);
        if sl0 > most_sl0(granule, system_bits) {
            return Err(ArmConfigError::StartLevel { sl0, input_bits });
        }
        Self::new(granule, sl0 + lowest_start(granule), input_bits, output_bits)
    }

    /// The VTCR_EL2 of these tables: what [`from_vtcr`](Self::from_vtcr) reads, write-back cacheable and
    /// inner shareable. Where no output size is as wide as the output, the next wider one.
    #[must_use]
    pub fn vtcr(&self) -> u64 {
        let Shape { granule, geometry } = self.shape;
        let Geometry { levels, input_bits, output_bits, .. } = geometry;
        u64::from(64 - input_bits)
            | u64::from(sl0(granule, levels)) << 6
            | 0x3500
            | u64::from(granule.tg0()) << 14
            | arm::output_size(output_bits) << 16
    }
}

/// Levels that a walk may have beyond those with SL0 = 0: SL0 is at most 2.
const MOST_ABOVE_LOWEST: u8 = 2;

/// Levels of a walk with SL0 = 0 (D8.2.2).
const fn lowest_start(granule: Granule) -> u8 {
    match granule {
        Granule::K4 => 2,
        Granule::K16 | Granule::K64 => 1,
    }
}

/// SL0 of a walk of `levels`.
const fn sl0(granule: Granule, levels: u8) -> u8 {
    levels.wrapping_sub(lowest_start(granule)) & 3
}

/// The highest SL0 in a system with addresses of `system_bits` (D8.2.2): 2 needs 44 bits, with 16 KiB
/// pages 42; 3 needs extensions that are not offered.
const fn most_sl0(granule: Granule, system_bits: u8) -> u8 {
    let needed = if matches!(granule, Granule::K16) { 42 } else { 44 };
    if system_bits >= needed { MOST_ABOVE_LOWEST } else { MOST_ABOVE_LOWEST - 1 }
}

#[inline]
fn rights(raw: u64) -> Access {
    let mut rights = Access::empty();
    rights.set(Access::READ, raw & READ != 0);
    rights.set(Access::WRITE, raw & WRITE != 0);
    rights.set(Access::EXEC, raw & NO_EXECUTE == 0);
    rights
}

impl Format for ArmStage2 {
    const STAGE: Stage = Stage::Second;
    const TABLES_DENY: bool = false;

    #[inline]
    fn geometry(&self) -> Geometry {
        self.shape.geometry
    }

    #[inline]
    fn decode(&self, level: u8, raw: u64) -> Entry {
        self.shape.decode(level, raw, |leaf| if leaf { rights(raw) } else { Access::RWX })
    }

    #[inline]
    fn table(&self, next: PhysAddr) -> u64 {
        next.raw() | VALID | TABLE
    }

    #[inline]
    fn leaf(&self, level: u8, oa: PhysAddr, access: Access) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        oa.raw()
            | Shape::leaf_kind(level)
            | (SHAREABLE | ACCESS_FLAG | WRITE_BACK)
            | bit(access.contains(Access::READ), READ)
            | bit(access.contains(Access::WRITE), WRITE)
            | bit(!access.contains(Access::EXEC), NO_EXECUTE)
    }

    fn expresses(&self, access: Access) -> bool {
        !access.is_empty() && Access::RWX.contains(access)
    }

    #[inline]
    fn granted(&self, path: Access, wanted: Access) -> Access {
        path.intersection(Access::RWX).union(wanted.intersection(Access::PRIVILEGED))
    }

    #[inline]
    fn mark(&self, raw: u64, leaf: bool, _: Access) -> Mark {
        if leaf && raw & ACCESS_FLAG == 0 { Mark::Fault } else { Mark::Done }
    }

    #[inline]
    fn output_fits(&self, address: PhysAddr) -> bool {
        self.shape.output_fits(address)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vtcr(tg0: u64, t0sz: u64, sl0: u64, ps: u64) -> u64 {
        t0sz | sl0 << 6 | 0x3500 | tg0 << 14 | ps << 16
    }

    // D8.2.2: input sizes, starting levels and concatenated tables
    #[test]
    fn a_vtcr_says_granule_levels_widths_and_root_tables() {
        for (tg0, t0sz, sl0, ps, levels, root_bytes_lg2) in [
            (0, 16, 2, 5, 4, 12),
            (0, 24, 1, 2, 3, 13), // 40 bits from level 1: 2 tables
            (0, 21, 1, 5, 3, 16), // 43 bits: 16 tables, the most
            (0, 30, 0, 5, 2, 16),
            (2, 24, 1, 2, 2, 18), // 40 bits from level 2: 16 tables of 16 KiB
            (2, 17, 2, 5, 3, 14),
            (2, 35, 0, 0, 1, 18),
            (1, 22, 1, 5, 2, 16),
            (1, 18, 1, 5, 2, 20), // 46 bits: 16 tables of 64 KiB
            (1, 16, 2, 5, 3, 9),
        ] {
            let vtcr = vtcr(tg0, t0sz, sl0, ps);
            let format = ArmStage2::from_vtcr(vtcr, 48).unwrap();
            let g = format.geometry();
            assert_eq!((g.levels, g.root_bytes_lg2()), (levels, root_bytes_lg2), "{vtcr:#x}");
            assert_eq!(u64::from(64 - g.input_bits), t0sz);
            assert_eq!(format.vtcr(), vtcr);
        }
    }

    #[test]
    fn a_start_level_that_does_not_suit_the_input_is_refused() {
        for (tg0, t0sz, sl0, ps) in [
            (0, 20, 1, 5), // 44 bits from level 1: 32 tables
            (0, 25, 2, 5), // 39 bits from level 0: nothing left for the root
            (0, 16, 3, 5),
            (2, 16, 1, 5),
            (1, 16, 0, 5),
        ] {
            let error = ArmStage2::from_vtcr(vtcr(tg0, t0sz, sl0, ps), 48).unwrap_err();
            let sl0 = u8::try_from(sl0).unwrap();
            let input_bits = 64 - u8::try_from(t0sz).unwrap();
            assert_eq!(error, ArmConfigError::StartLevel { sl0, input_bits });
        }
        for (granule, levels, input_bits, sl0) in
            [(Granule::K4, 1, 25, 3), (Granule::K16, 0, 25, 3), (Granule::K64, u8::MAX, 48, 2)]
        {
            let error = ArmStage2::new(granule, levels, input_bits, 48).unwrap_err();
            assert_eq!(error, ArmConfigError::StartLevel { sl0, input_bits });
        }
        let refused = |vtcr| ArmStage2::from_vtcr(vtcr, 48).unwrap_err();
        assert_eq!(refused(vtcr(3, 16, 2, 5)), ArmConfigError::Granule { tg0: 3 });
        assert_eq!(refused(vtcr(0, 15, 2, 5)), ArmConfigError::InputSize { input_bits: 49 });
        assert_eq!(refused(vtcr(0, 16, 2, 6)), ArmConfigError::OutputField { ps: 6 });
        assert_eq!(refused(1 << 19), ArmConfigError::Bits { wrong: 1 << 19 });
    }

    // D8.2.2: the size of the system's addresses decides, not PS
    #[test]
    fn the_highest_start_level_needs_a_wide_system() {
        for (tg0, t0sz, input_bits, needed) in [(0, 16, 48, 44), (2, 17, 47, 42), (1, 16, 48, 44)] {
            let vtcr = vtcr(tg0, t0sz, 2, 2);
            let error = ArmStage2::from_vtcr(vtcr, needed - 1).unwrap_err();
            assert_eq!(error, ArmConfigError::StartLevel { sl0: 2, input_bits });
            let format = ArmStage2::from_vtcr(vtcr, needed).unwrap();
            assert_eq!(format.geometry().output_bits, 40);
        }
    }

    // D8.3.1.1, D8.3.1.2: page, block, table descriptor
    #[test]
    fn entries_are_the_bits_of_the_manual() {
        let format = ArmStage2::from_vtcr(vtcr(0, 24, 1, 2), 48).unwrap();
        let page = PhysAddr::new(0x1234_5000);
        assert_eq!(format.leaf(0, page, Access::RW), 0x0040_0000_1234_57ff);
        assert_eq!(format.leaf(0, page, Access::WRITE), 0x0040_0000_1234_57bf);
        assert_eq!(format.leaf(2, PhysAddr::new(0x4000_0000), Access::RWX), 0x4000_07fd);
        assert_eq!(format.table(page), 0x1234_5003);
    }

    #[test]
    fn a_leaf_without_rights_is_still_a_leaf() {
        let format = ArmStage2::from_vtcr(vtcr(0, 24, 1, 2), 48).unwrap();
        let leaf = Entry::Leaf { oa: PhysAddr::new(0x1000), access: Access::empty() };
        assert_eq!(format.decode(0, NO_EXECUTE | ACCESS_FLAG | 0x1003), leaf);
    }
}

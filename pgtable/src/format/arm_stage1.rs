//! Arm 64-bit stage 1 (Arm ARM DDI 0487, D8.3 descriptors, D8.4 permissions, D24.2 TCR_EL1; SMMUv3
//! IHI 0070, 5.4 context descriptor), the half of TTBR0. Levels and sizes are in [`super::arm`].
//!
//! | bits of a leaf | here |
//! | --- | --- |
//! | 4:2, 9:8 | AttrIndx, SH: ignored when read; index 0, inner shareable in entries made here |
//! | 5 | NS: ignored, there is one physical address space |
//! | 6 | AP\[1\]: others than privileged software may access |
//! | 7 | AP\[2\]: no writing |
//! | 10 | AF: clear is a fault, software sets it |
//! | 11 | nG: ignored when read; set in entries made here |
//! | 51, 52 | DBM, Contiguous: ignored |
//! | 53 | PXN: privileged software may not fetch; nor where others may write (D8.4.5) |
//! | 54 | UXN: others may not fetch |
//!
//! | bits of a table entry | here |
//! | --- | --- |
//! | 59, 60 | PXNTable, UXNTable: no fetching below |
//! | 61, 62 | APTable: nothing for others, no writing below |
//! | 63 | NSTable: ignored |

use super::arm::{self, ACCESS_FLAG, ArmConfigError, Granule, SHAREABLE, Shape, TABLE, VALID};
use super::{Entry, Format, Geometry, Mark};
use crate::{Access, PhysAddr, Stage};

const UNPRIVILEGED: u64 = 1 << 6;
const READ_ONLY: u64 = 1 << 7;
const NOT_GLOBAL: u64 = 1 << 11;
const PRIVILEGED_XN: u64 = 1 << 53;
const UNPRIVILEGED_XN: u64 = 1 << 54;
const TABLE_PRIVILEGED_XN: u64 = 1 << 59;
const TABLE_UNPRIVILEGED_XN: u64 = 1 << 60;
const TABLE_PRIVILEGED_ONLY: u64 = 1 << 61;
const TABLE_READ_ONLY: u64 = 1 << 62;
/// All of them: most tables have none set.
const TABLE_CONTROLS: u64 =
    TABLE_PRIVILEGED_XN | TABLE_UNPRIVILEGED_XN | TABLE_PRIVILEGED_ONLY | TABLE_READ_ONLY;

/// Fields of TCR_EL1 that may have any value: cacheability and shareability of walks.
const TCR_FREE: u64 = 0x3f00;
const TCR_EPD1: u64 = 1 << 23;
/// Fields that this module reads: T0SZ, TG0, EPD1, IPS.
const TCR_KNOWN: u64 = 0x3f | 3 << 14 | TCR_EPD1 | 7 << 32;

/// The Arm 64-bit stage-1 format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ArmStage1 {
    shape: Shape,
}

impl ArmStage1 {
    /// Tables for inputs of `input_bits`, 25 to 48, and outputs of `output_bits`, 32 to 48.
    ///
    /// # Errors
    /// [`ArmConfigError`] for other widths.
    pub fn new(granule: Granule, input_bits: u8, output_bits: u8) -> Result<Self, ArmConfigError> {
        arm::check_widths(input_bits, output_bits)?;
        let index_bits = granule.lg2() - super::ENTRY_LG2;
        let levels = (input_bits - granule.lg2()).div_ceil(index_bits);
        Ok(Self { shape: Shape::new(granule, levels, input_bits, output_bits) })
    }

    /// The tables of TTBR0 under `tcr`, in the layout of TCR_EL1, in a system with addresses of
    /// `system_bits`. T0SZ, TG0 and IPS say which; EPD1 is set; IRGN0, ORGN0 and SH0 may have any
    /// value; everything else is clear.
    ///
    /// # Errors
    /// [`ArmConfigError`] for what is reserved or not offered.
    pub fn from_tcr(tcr: u64, system_bits: u8) -> Result<Self, ArmConfigError> {
        let wrong = (tcr & !(TCR_FREE | TCR_KNOWN)) | (!tcr & TCR_EPD1);
        if wrong != 0 {
            return Err(ArmConfigError::Bits { wrong });
        }
        let tg0 = arm::field(tcr, 14, 2);
        let granule = Granule::from_tg0(tg0).ok_or(ArmConfigError::Granule { tg0 })?;
        let input_bits = 64 - arm::field(tcr, 0, 6);
        Self::new(granule, input_bits, arm::output_bits(arm::field(tcr, 32, 3), system_bits)?)
    }

    /// The TCR_EL1 of these tables: what [`from_tcr`](Self::from_tcr) reads, write-back cacheable and
    /// inner shareable. Where no output size is as wide as the output, the next wider one.
    #[must_use]
    pub fn tcr(&self) -> u64 {
        let Shape { granule, geometry: Geometry { input_bits, output_bits, .. } } = self.shape;
        u64::from(64 - input_bits)
            | 0x3500
            | u64::from(granule.tg0()) << 14
            | TCR_EPD1
            | arm::output_size(output_bits) << 32
    }
}

#[inline]
fn leaf_rights(raw: u64) -> Access {
    let mut data = Access::READ;
    data.set(Access::WRITE, raw & READ_ONLY == 0);
    let mut privileged = data;
    privileged.set(Access::EXEC, raw & PRIVILEGED_XN == 0);
    let mut others = if raw & UNPRIVILEGED != 0 { data } else { Access::empty() };
    others.set(Access::EXEC, raw & UNPRIVILEGED_XN == 0);
    others.union(privileged.to_privileged())
}

#[inline]
fn table_rights(raw: u64) -> Access {
    let mut rights = Access::RWX.union(Access::RWX.to_privileged());
    if raw & TABLE_CONTROLS == 0 {
        return rights;
    }
    if raw & TABLE_PRIVILEGED_ONLY != 0 {
        rights.remove(Access::RW);
    }
    if raw & TABLE_READ_ONLY != 0 {
        rights.remove(Access::WRITE.union(Access::PRIVILEGED_WRITE));
    }
    if raw & TABLE_UNPRIVILEGED_XN != 0 {
        rights.remove(Access::EXEC);
    }
    if raw & TABLE_PRIVILEGED_XN != 0 {
        rights.remove(Access::PRIVILEGED_EXEC);
    }
    rights
}

impl Format for ArmStage1 {
    const STAGE: Stage = Stage::First;
    const TABLES_DENY: bool = false;

    #[inline]
    fn geometry(&self) -> Geometry {
        self.shape.geometry
    }

    #[inline]
    fn decode(&self, level: u8, raw: u64) -> Entry {
        self.shape.decode(
            level,
            raw,
            |leaf| if leaf { leaf_rights(raw) } else { table_rights(raw) },
        )
    }

    #[inline]
    fn table(&self, next: PhysAddr) -> u64 {
        next.raw() | VALID | TABLE
    }

    #[inline]
    fn leaf(&self, level: u8, oa: PhysAddr, access: Access) -> u64 {
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        let privileged = access.contains(Access::PRIVILEGED);
        let exec = access.contains(Access::EXEC);
        oa.raw()
            | Shape::leaf_kind(level)
            | (SHAREABLE | ACCESS_FLAG | NOT_GLOBAL)
            | bit(!privileged, UNPRIVILEGED)
            | bit(!access.contains(Access::WRITE), READ_ONLY)
            | bit(!(privileged && exec), PRIVILEGED_XN)
            | bit(privileged || !exec, UNPRIVILEGED_XN)
    }

    fn expresses(&self, access: Access) -> bool {
        let known = Access::RWX.union(Access::PRIVILEGED).contains(access);
        known && access.contains(Access::READ)
    }

    #[inline]
    fn granted(&self, path: Access, wanted: Access) -> Access {
        if !wanted.contains(Access::PRIVILEGED) {
            return path.intersection(Access::RWX);
        }
        let mut granted = path.from_privileged().union(Access::PRIVILEGED);
        if path.contains(Access::WRITE) {
            granted.remove(Access::EXEC);
        }
        granted
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

    const TCR: u64 = 0x5_0080_3510;

    fn format() -> ArmStage1 {
        ArmStage1::from_tcr(TCR, 48).unwrap()
    }

    #[test]
    fn a_tcr_says_granule_levels_and_widths() {
        for (tg0, t0sz, ips, shape) in [
            (0u64, 16, 5, (12, 4, 48, 48)),
            (0, 25, 2, (12, 3, 39, 40)),
            (0, 39, 0, (12, 2, 25, 32)),
            (2, 16, 4, (14, 4, 48, 44)),
            (2, 17, 4, (14, 3, 47, 44)),
            (1, 16, 3, (16, 3, 48, 42)),
            (1, 22, 1, (16, 2, 42, 36)),
        ] {
            let tcr = t0sz | tg0 << 14 | TCR_EPD1 | ips << 32 | 0x3500;
            let format = ArmStage1::from_tcr(tcr, 48).unwrap();
            let g = format.geometry();
            assert_eq!((g.granule_lg2, g.levels, g.input_bits, g.output_bits), shape);
            assert_eq!(format.tcr(), tcr);
        }
    }

    #[test]
    fn a_tcr_that_is_not_allowed_is_refused_by_name() {
        let refused = |tcr| ArmStage1::from_tcr(tcr, 48).unwrap_err();
        assert_eq!(refused(TCR & !0x3f | 15), ArmConfigError::InputSize { input_bits: 49 });
        assert_eq!(refused(TCR & !0x3f | 40), ArmConfigError::InputSize { input_bits: 24 });
        assert_eq!(refused(TCR | 3 << 14), ArmConfigError::Granule { tg0: 3 });
        assert_eq!(refused(TCR | 6 << 32), ArmConfigError::OutputField { ps: 7 });
        assert_eq!(refused(TCR & !TCR_EPD1), ArmConfigError::Bits { wrong: TCR_EPD1 });
        // EPD0, T1SZ, TBI0, HA, DS
        for bit in [7, 16, 37, 39, 59] {
            assert_eq!(refused(TCR | 1 << bit), ArmConfigError::Bits { wrong: 1 << bit });
        }
    }

    #[test]
    fn the_output_is_never_wider_than_the_system() {
        assert_eq!(ArmStage1::from_tcr(TCR, 40).unwrap().geometry().output_bits, 40);
    }

    // D8.3.1.1, D8.3.1.2: page, block, table descriptor
    #[test]
    fn entries_are_the_bits_of_the_manual() {
        let page = PhysAddr::new(0x1234_5000);
        assert_eq!(format().leaf(0, page, Access::RW), 0x0060_0000_1234_5f43);
        assert_eq!(format().leaf(0, page, Access::READ), 0x0060_0000_1234_5fc3);
        assert_eq!(format().leaf(0, page, Access::RWX), 0x0020_0000_1234_5f43);
        let privileged = Access::RWX | Access::PRIVILEGED;
        assert_eq!(format().leaf(0, page, privileged), 0x0040_0000_1234_5f03);
        let block = PhysAddr::new(0x4020_0000);
        assert_eq!(format().leaf(1, block, Access::RW), 0x0060_0000_4020_0f41);
        assert_eq!(format().table(page), 0x1234_5003);
    }

    #[test]
    fn reserved_descriptors_are_invalid() {
        assert_eq!(format().decode(0, 0x1000 | 1), Entry::Empty, "a block at the last level");
        assert_eq!(format().decode(3, 0x1000 | 1), Entry::Empty, "a block at the first level");
        assert_eq!(format().decode(1, !1), Entry::Empty);
    }

    #[test]
    fn ignored_and_res0_bits_are_ignored() {
        let access = leaf_rights(0);
        let raw = 0xff9f_0000_001f_f03c | 0x4020_0000;
        let leaf = Entry::Leaf { oa: PhysAddr::new(0x4020_0000), access };
        assert_eq!(format().decode(1, raw | VALID), leaf);
    }

    #[test]
    fn a_clear_access_flag_faults_at_leaves_only() {
        assert_eq!(format().mark(3, true, Access::READ), Mark::Fault);
        assert_eq!(format().mark(3, false, Access::READ), Mark::Done);
        assert_eq!(format().mark(3 | ACCESS_FLAG, true, Access::RW), Mark::Done);
    }

    // D8.4.1, D8.4.5
    #[test]
    fn access_permissions_follow_the_manual_for_both_privileges() {
        let granted = |raw, wanted| format().granted(leaf_rights(raw), wanted);
        let user = |raw| granted(raw, Access::empty());
        let privileged = |raw| granted(raw, Access::PRIVILEGED) - Access::PRIVILEGED;
        let xn = PRIVILEGED_XN | UNPRIVILEGED_XN;
        for (ap, for_user, for_privileged) in [
            (0, Access::empty(), Access::RW),
            (UNPRIVILEGED, Access::RW, Access::RW),
            (READ_ONLY, Access::empty(), Access::READ),
            (UNPRIVILEGED | READ_ONLY, Access::READ, Access::READ),
        ] {
            assert_eq!((user(ap | xn), privileged(ap | xn)), (for_user, for_privileged));
            let implied =
                if for_user.contains(Access::WRITE) { Access::empty() } else { Access::EXEC };
            let with_exec = (for_user | Access::EXEC, for_privileged | implied);
            assert_eq!((user(ap), privileged(ap)), with_exec, "{ap:#x}");
        }
    }

    // D8.4.2: hierarchical controls
    #[test]
    fn table_entries_restrict_what_is_below() {
        let through = |table, wanted| {
            let path = table_rights(table) & leaf_rights(UNPRIVILEGED);
            format().granted(path, wanted)
        };
        let (user, privileged) = (Access::empty(), Access::PRIVILEGED);
        assert_eq!(through(TABLE_PRIVILEGED_ONLY, user), Access::EXEC);
        assert_eq!(through(TABLE_PRIVILEGED_ONLY, privileged), Access::RWX | Access::PRIVILEGED);
        assert_eq!(through(TABLE_READ_ONLY, user), Access::READ | Access::EXEC);
        let read_exec = Access::READ | Access::EXEC | Access::PRIVILEGED;
        assert_eq!(through(TABLE_READ_ONLY, privileged), read_exec, "no longer writable by others");
        assert_eq!(through(TABLE_UNPRIVILEGED_XN, user), Access::RW);
        assert_eq!(through(TABLE_PRIVILEGED_XN, user), Access::RWX);
    }
}

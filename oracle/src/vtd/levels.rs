//! A VT-d page table of either level.

use viommu_pgtable::{
    Access, Format, Iova, Mapping, PhysAddr, TableMemory, VtdFirst, VtdSecond, walk,
};

use super::condition::Condition;
use super::mode::Mode;
use crate::error::Result;
use crate::random::Random;
use crate::region::Region;
use crate::subject::Probe;
use crate::tables::{self, Filled, Landing, Step};

/// Page sizes that QEMU's unit offers.
const SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

/// A format.
#[derive(Debug, Clone, Copy)]
pub(super) enum Levels {
    /// First level.
    First(VtdFirst),
    /// Second level.
    Second(VtdSecond),
}

impl Levels {
    /// The format of `mode`.
    pub(super) fn of(mode: Mode) -> Option<Self> {
        match mode {
            Mode::Legacy(bits) | Mode::ScalableSecond(bits) => Self::second(mode, bits),
            Mode::ScalableFirst => Self::first(mode, false),
        }
    }

    /// The second level of `bits`, if a unit in `mode` offers it.
    pub(super) fn second(mode: Mode, bits: u8) -> Option<Self> {
        let offered = bits <= mode.bits() && mode != Mode::ScalableFirst;
        let format = VtdSecond::new(bits, SIZES).filter(|_| offered)?;
        format.with_output_bits(mode.bits()).map(Self::Second)
    }

    /// The first level, if a unit in `mode` offers it.
    pub(super) fn first(mode: Mode, five_levels: bool) -> Option<Self> {
        let offered = mode == Mode::ScalableFirst && !five_levels;
        let format = VtdFirst::new(48, SIZES).filter(|_| offered)?;
        format.with_output_bits(mode.bits()).map(Self::First)
    }

    pub(super) fn fill(
        self,
        region: &mut Region,
        landing: Landing,
        random: &mut Random,
    ) -> Result<Filled> {
        match self {
            Self::First(format) => tables::fill(format, region, landing, random),
            Self::Second(format) => tables::fill(format, region, landing, random),
        }
    }

    /// A table of one mapping; its root.
    pub(super) fn single(self, region: &mut Region, mapping: &Mapping) -> Result<PhysAddr> {
        match self {
            Self::First(format) => tables::single(format, region, mapping),
            Self::Second(format) => tables::single(format, region, mapping),
        }
    }

    pub(super) fn input(self, random: &mut Random) -> u64 {
        match self {
            Self::First(format) => tables::input(&format, random),
            Self::Second(format) => tables::input(&format, random),
        }
    }

    pub(super) fn path<M: TableMemory>(self, memory: &M, root: PhysAddr, iova: Iova) -> Vec<Step> {
        match self {
            Self::First(format) => tables::path(&format, memory, root, iova),
            Self::Second(format) => tables::path(&format, memory, root, iova),
        }
    }

    /// Where our walk ends.
    pub(super) fn walk<M: TableMemory>(
        self,
        memory: &M,
        root: PhysAddr,
        probe: &Probe,
    ) -> std::result::Result<PhysAddr, Condition> {
        let access = if probe.write { Access::WRITE } else { Access::READ };
        let (end, top) = match self {
            Self::First(format) => {
                (walk(&format, memory, root, probe.iova, access), format.geometry().root_level())
            }
            Self::Second(format) => {
                (walk(&format, memory, root, probe.iova, access), format.geometry().root_level())
            }
        };
        end.map(|translation| translation.oa)
            .map_err(|fault| Condition::from_walk(&fault, top, probe.write))
    }
}

//! The modes of an SMMU that are compared.

use std::fmt;

use viommu_pgtable::Granule;

/// Width of the emulated SMMU's output, and of stage 2's input (IDR5.OAS).
pub(super) const SYSTEM_BITS: u8 = 44;

/// Which stages there are, and the granule of the first of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Stage 1.
    Stage1(Granule),
    /// Stage 2.
    Stage2(Granule),
    /// Stage 1 behind a stage 2 of any granule.
    Nested(Granule),
}

impl Mode {
    /// All modes.
    pub const ALL: [Self; 9] = [
        Self::Stage1(Granule::K4),
        Self::Stage1(Granule::K16),
        Self::Stage1(Granule::K64),
        Self::Stage2(Granule::K4),
        Self::Stage2(Granule::K16),
        Self::Stage2(Granule::K64),
        Self::Nested(Granule::K4),
        Self::Nested(Granule::K16),
        Self::Nested(Granule::K64),
    ];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stages, granule) = match self {
            Self::Stage1(granule) => ("stage 1", granule),
            Self::Stage2(granule) => ("stage 2", granule),
            Self::Nested(granule) => ("nested", granule),
        };
        write!(f, "{stages}, {} KiB granule", 1u32 << (granule.lg2() - 10))
    }
}

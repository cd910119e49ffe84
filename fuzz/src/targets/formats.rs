//! All page-table formats, by number.

use viommu_pgtable::{ArmStage1, ArmStage2, Format, Granule, VtdFirst, VtdSecond};

const SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

/// What is to be done with whichever format it is.
pub(crate) trait Visit {
    /// Does it. `number` names the format.
    fn visit<F: Format>(self, number: u8, format: F);
}

/// How many formats [`visit`] tells apart.
pub(crate) const FORMATS: u8 = 14;

/// Visits format `number`, counted around.
pub(crate) fn visit(number: u8, visitor: impl Visit) {
    let number = number % FORMATS;
    let first = |bits| VtdFirst::new(bits, SIZES).unwrap();
    match number {
        0 => visitor.visit(number, VtdSecond::new(39, SIZES).unwrap()),
        1 => visitor.visit(number, VtdSecond::new(48, 1 << 12 | 1 << 21).unwrap()),
        2 => visitor.visit(number, VtdSecond::new(57, SIZES).unwrap()),
        3 => visitor.visit(number, first(48)),
        4 => visitor.visit(number, first(48).with_write_protect(true)),
        5 => visitor.visit(number, first(57).with_output_bits(46).unwrap()),
        6 => visitor.visit(number, ArmStage1::new(Granule::K4, 48, 48).unwrap()),
        7 => visitor.visit(number, ArmStage1::new(Granule::K16, 47, 44).unwrap()),
        8 => visitor.visit(number, ArmStage1::new(Granule::K64, 48, 48).unwrap()),
        9 => visitor.visit(number, ArmStage1::new(Granule::K4, 25, 32).unwrap()),
        10 => visitor.visit(number, ArmStage2::new(Granule::K4, 3, 40, 48).unwrap()),
        11 => visitor.visit(number, ArmStage2::new(Granule::K4, 4, 48, 48).unwrap()),
        12 => visitor.visit(number, ArmStage2::new(Granule::K16, 3, 47, 48).unwrap()),
        _ => visitor.visit(number, ArmStage2::new(Granule::K64, 2, 42, 40).unwrap()),
    }
}

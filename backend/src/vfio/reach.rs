//! How far devices can be addressed.

use viommu_pgtable::{Iova, IovaRange};

/// The highest IOVA that all of some devices can use. A guest is told of a width in bits: what such a
/// width has behind the highest has to be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reach(Iova);

/// No device yet.
impl Default for Reach {
    fn default() -> Self {
        Self(Iova::new(u64::MAX))
    }
}

impl Reach {
    /// One more device, which can use these ranges.
    pub(crate) fn narrow(&mut self, usable: &[IovaRange]) {
        let last = usable.iter().map(IovaRange::last).max();
        self.0 = self.0.min(last.unwrap_or(Iova::new(0)));
    }

    /// Bits that the highest IOVA has.
    pub(crate) fn bits(self) -> u8 {
        u8::try_from(u64::BITS - self.0.raw().leading_zeros()).unwrap_or(u8::MAX)
    }

    /// Bits of which every IOVA is below or at the highest: for those who were told already what is
    /// reserved.
    pub(crate) fn whole_bits(self) -> u8 {
        let is_whole = self.0 == self.last();
        self.bits().saturating_sub(u8::from(!is_whole))
    }

    /// The last IOVA that has [`bits`](Self::bits).
    pub(crate) fn last(self) -> Iova {
        let above = u64::MAX.checked_shl(self.bits().into()).unwrap_or(0);
        Iova::new(!above)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reach(lasts: &[u64]) -> (u8, u8, u64) {
        let mut reach = Reach::default();
        for last in lasts {
            let range = |start, last| IovaRange::new(Iova::new(start), Iova::new(last)).unwrap();
            reach.narrow(&[range(0, 0xfff), range(0x2000, *last)]);
        }
        (reach.bits(), reach.whole_bits(), reach.last().raw())
    }

    #[test]
    fn a_width_covers_the_highest_and_a_whole_one_nothing_above_it() {
        assert_eq!(reach(&[]), (64, 64, u64::MAX));
        assert_eq!(reach(&[(1 << 48) - 1]), (48, 48, (1 << 48) - 1));
        assert_eq!(reach(&[0xfc_ffff_ffff]), (40, 39, (1 << 40) - 1));
        assert_eq!(reach(&[1 << 40]), (41, 40, (1 << 41) - 1));
        assert_eq!(reach(&[u64::MAX - 0x1000]), (64, 63, u64::MAX));
    }

    #[test]
    fn the_lowest_of_the_highest_counts_and_no_range_at_all_is_no_width() {
        assert_eq!(reach(&[(1 << 48) - 1, 0xffff_ffff, 0xff_ffff_efff]), (32, 32, 0xffff_ffff));
        let mut none = Reach::default();
        none.narrow(&[]);
        assert_eq!((none.bits(), none.whole_bits(), none.last()), (0, 0, Iova::new(0)));
    }
}

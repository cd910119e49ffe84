//! Walks over memory in which anything may stand.

use std::mem::discriminant;

use viommu_pgtable::{
    Access, Fault, FaultKind, Format, Iova, MARK_ATTEMPTS, PhysAddr, Translation, walk,
};

use super::formats::{Visit, visit};
use super::memory::{Hostile, SWAPS};
use crate::{Input, Target, Trace};

pub(crate) const TARGET: Target = Target {
    name: "walk",
    claim: "a walk over any memory takes a load for each level at most, and tells of it truly",
    longest: 1 << 12,
    run,
};

fn run(bytes: &[u8], trace: &mut Trace) {
    let mut input = Input::new(bytes);
    let (format, access) = (input.u8(), Access::from_bits_truncate(input.u8() & 15));
    let swaps = input.pick(&SWAPS);
    let end_lg2 = 12 + input.u8() % 52;
    let (root, iova) = (PhysAddr::new(input.u64()), Iova::new(input.u64()));
    let memory = Hostile::new(input.words(), swaps, 1 << end_lg2);
    visit(format, Walk { memory: &memory, root, iova, access, trace });
}

struct Walk<'a> {
    memory: &'a Hostile,
    root: PhysAddr,
    iova: Iova,
    access: Access,
    trace: &'a mut Trace,
}

impl Visit for Walk<'_> {
    fn visit<F: Format>(self, number: u8, format: F) {
        let Self { memory, root, iova, access, trace } = self;
        let found = walk(&format, memory, root, iova, access);
        let levels = usize::from(format.geometry().levels);
        let (loads, swaps) = (memory.loaded().len(), memory.swapped().len());
        assert!(loads <= levels, "{loads} loads");
        assert!(swaps <= levels * MARK_ATTEMPTS as usize, "{swaps} swaps");
        match found {
            Ok(page) => {
                trace.reached((number, page.size_lg2, page.access.bits(), swaps > 0));
                is_right(&format, &page, access);
                reads_alike(&format, memory, (root, iova), access, &page);
            }
            Err(fault) => {
                trace.reached((number, fault.level, discriminant(&fault.kind)));
                is_told_truly(memory, root, &fault);
            }
        }
    }
}

fn is_right<F: Format>(format: &F, page: &Translation, access: Access) {
    assert!(page.access.permits(access), "{page:?} for {access:?}");
    let geometry = format.geometry();
    assert_eq!(page.oa.raw() >> geometry.output_bits, 0, "{page:?}");
    assert_ne!(geometry.page_size_mask() & 1 << page.size_lg2, 0, "{page:?}");
}

/// Who may do more may do less, and gets to the same place.
fn reads_alike<F: Format>(
    format: &F,
    memory: &Hostile,
    (root, iova): (PhysAddr, Iova),
    access: Access,
    page: &Translation,
) {
    for less in [Access::READ, Access::WRITE, Access::EXEC] {
        let less = access.intersection(less.union(Access::PRIVILEGED));
        let again = walk(format, memory, root, iova, less);
        assert_eq!(again.map(|page| (page.oa, page.size_lg2)), Ok((page.oa, page.size_lg2)));
    }
}

/// The entry that a fault names is the one that was read last.
fn is_told_truly(memory: &Hostile, root: PhysAddr, fault: &Fault) {
    let unread = matches!(fault.kind, FaultKind::InputTooWide | FaultKind::RootMisaligned);
    let last = memory.loaded().last().copied();
    assert_eq!(last, (!unread).then_some(fault.entry_at), "{fault}");
    assert!(!unread || fault.entry_at == root, "{fault}");
}

//! From (endpoint, PASID) to a page, where nothing on the way can be relied on.

use std::mem::discriminant;

use viommu_pasid::smmuv3::StreamRoot;
use viommu_pasid::vtd::legacy;
use viommu_pasid::{EndpointId, LookupFault, Memories, Pasid, Route, Space, Structures, lookup};
use viommu_pgtable::{Access, Iova, MARK_ATTEMPTS, PhysAddr};

use super::memory::{Hostile, SWAPS};
use crate::{Input, Target, Trace};

pub(crate) const TARGET: Target = Target {
    name: "lookup",
    claim: "any structures lead to a page below the tables or to a fault, in a bounded number of loads",
    longest: 1 << 12,
    run,
};

/// Where the tables begin.
const BASE: PhysAddr = PhysAddr::new(1 << 46);

/// Loads of a lookup, when each of the five that can go through a second level needs a walk of four.
const LOOKUP_LOADS: usize = 14 + 5 * 4;

/// Loads of two stages of five levels, and of as many again for each flag that must be set.
const WALK_LOADS: usize = 5 * 6 + 5 + 5 * 5 * MARK_ATTEMPTS as usize;

fn run(bytes: &[u8], trace: &mut Trace) {
    let mut input = Input::new(bytes);
    let (vtd, root, config) =
        (input.u8() & 1 == 0, PhysAddr::new(input.u64() & !0xfff), input.u32());
    let endpoint = EndpointId::new(input.u32() & 0xffff);
    let pasid = Pasid::new(u32::from(input.u16()));
    let (iova, access) = (Iova::new(input.u64()), Access::from_bits_truncate(input.u8() & 15));
    let (swap, words) = (input.pick(&SWAPS), usize::from(input.u8()));
    let mut tables = input.words();
    let guest = tables.split_off(words.min(tables.len()));
    let tables = Hostile::new(tables, swap, 1 << 52);
    let guest = Hostile::new(guest, swap, 1 << 45);
    // the third way in is VT-d's legacy mode
    trace.reached(legacy::lookup(&tables, root, endpoint.bdf(), 46).map_err(|f| f.kind).is_ok());

    let before = tables.loaded().len();
    let structures = match StreamRoot::from_registers(root, config) {
        Some(root) if !vtd => Structures::SmmuV3(root),
        _ => Structures::Vtd { root },
    };
    let memories = Memories::new(&tables, &guest, BASE);
    let found = lookup(&memories, &structures, endpoint, pasid);
    let looked = tables.loaded().len() + guest.loaded().len() - before;
    assert!(looked <= LOOKUP_LOADS, "{looked} loads to find {found:?}");
    let route = match found {
        Ok(route) => route,
        Err(LookupFault::Vtd(fault)) => return trace.reached(("VT-d", discriminant(&fault.kind))),
        Err(LookupFault::SmmuV3(fault)) => {
            return trace.reached(("SMMU", discriminant(&fault.kind)));
        }
    };
    let (ours, theirs) = (tables.loaded().len(), guest.loaded().len());
    let page = memories.translate(&route, iova, access);
    let (ours, theirs) = (tables.loaded().len() - ours, guest.loaded().len() - theirs);
    assert!(ours + theirs <= WALK_LOADS, "{} loads along {route:?}", ours + theirs);
    keeps_to_its_side(&route, ours, theirs);
    match page {
        Ok(page) => {
            trace.reached((vtd, discriminant(&route), page.size_lg2));
            let last = page.oa.raw() | ((1 << page.size_lg2) - 1);
            assert!(last < BASE.raw(), "{page:?} reaches into the tables");
            assert!(page.access.permits(access), "{page:?} for {access:?}");
        }
        Err(fault) => {
            let how = (fault.stage, fault.purpose, discriminant(&fault.kind));
            trace.reached((vtd, discriminant(&route), how));
        }
    }
    guest.loaded().iter().for_each(|at| assert!(*at < BASE, "{at} is no address of a guest"));
}

/// What was loaded of each side while a route was followed.
fn keeps_to_its_side(route: &Route, ours: usize, theirs: usize) {
    match route {
        Route::PassThrough => assert_eq!((ours, theirs), (0, 0)),
        Route::Second(_) | Route::First { space: Space::Tables, .. } => assert_eq!(theirs, 0),
        Route::First { .. } => assert_eq!(ours, 0, "a guest's table led into the region"),
        Route::Nested { .. } => {}
    }
}

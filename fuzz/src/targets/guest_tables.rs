//! Tables of a guest, bound to the daemon's structures in every way there is.

use std::hash::Hash;
use std::mem::discriminant;

use viommu_pasid::{EndpointId, LookupFault, Memories, Pasid, Route, lookup};
use viommu_pgtable::{Access, Fault, Iova, Stage, Translation};

use super::memory::{Hostile, SWAPS};
use super::world::{self, BASE, Region, World};
use crate::{Input, Target, Trace};

pub(crate) const TARGET: Target = Target {
    name: "guest_tables",
    claim: "no pointer of a guest's resolves in the region, nor past its second level",
    longest: 1 << 12,
    run,
};

fn run(bytes: &[u8], trace: &mut Trace) {
    let mut input = Input::new(bytes);
    let arch = input.u8() & 1;
    let asked = Asked {
        endpoint: EndpointId::new(u32::from(input.u8() % world::ENDPOINTS)),
        pasid: Pasid::new(u32::from(input.u8() & 15)),
        iova: Iova::new(input.u64()),
        access: Access::from_bits_truncate(input.u8() & 15),
    };
    let swap = input.pick(&SWAPS);
    let guest = Hostile::new(input.words(), swap, 1 << 47);
    world::with(arch, |world| asked.of(world, &guest, trace));
}

/// An access of a device's.
struct Asked {
    endpoint: EndpointId,
    pasid: Option<Pasid>,
    iova: Iova,
    access: Access,
}

impl Asked {
    fn of(&self, world: &World, guest: &Hostile, trace: &mut Trace) {
        let region = Region::new(world, guest);
        let memories = Memories::new(&region, guest, BASE);
        let mut inputs = Vec::new();
        match lookup(&memories, &world.structures, self.endpoint, self.pasid) {
            Ok(route) => {
                let page = memories.translate(&route, self.iova, self.access);
                trace.reached((
                    discriminant(&world.structures),
                    discriminant(&route),
                    outcome(&page),
                ));
                match &page {
                    Ok(page) => inputs.extend(self.leads_out(&route, page)),
                    Err(fault) if fault.stage == Stage::Second => inputs.push(fault.input),
                    Err(_) => {}
                }
            }
            Err(LookupFault::Vtd(fault)) => trace.reached(("VT-d", discriminant(&fault.kind))),
            Err(LookupFault::SmmuV3(fault)) => {
                inputs.extend(world::refused_input(&fault));
                trace.reached(("SMMU", discriminant(&fault.kind)));
            }
        }
        for at in guest.loaded().into_iter().chain(guest.swapped()) {
            assert!(at < BASE, "{at} is no address of a guest");
            inputs.extend(World::input_of(at));
        }
        region.only_on_the_way_of(&inputs);
    }

    /// A page lies below the tables and, behind a second level, in a mapping of it that allows the access.
    /// The second level's input that led there.
    fn leads_out(&self, route: &Route, page: &Translation) -> Option<u64> {
        let first = page.oa.raw() >> page.size_lg2 << page.size_lg2;
        let last = first | ((1 << page.size_lg2) - 1);
        assert!(last < BASE.raw(), "{page:?} reaches into the tables");
        assert!(page.access.permits(self.access), "{page:?} for {:?}", self.access);
        let Route::Nested { .. } = route else { return None };
        let side = World::side_of(page.oa).unwrap();
        assert!(side.output.contains(&first) && side.output.contains(&last), "{page:?} {side:?}");
        assert!(side.access.contains(self.access.intersection(Access::RW)), "{page:?} {side:?}");
        World::input_of(page.oa)
    }
}

fn outcome(page: &Result<Translation, Fault>) -> impl Hash + use<> {
    match page {
        Ok(page) => (page.size_lg2, page.access.bits(), None),
        Err(fault) => {
            (fault.level, 0, Some((fault.stage, fault.purpose, discriminant(&fault.kind))))
        }
    }
}

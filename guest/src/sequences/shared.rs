//! Sequence 5: a process's table, with guest-physical output.

use viommu_client::{Attribute, Function, Output, PasidChoice, Scope, Transport};

use super::bench::{Bench, Flavour, LANDING, PAGE, Refusal, Wrong, same};
use super::table::{X86_ACCESSED, X86_DIRTY};

/// Where the table has pages.
const WORK: u64 = 0x7f00_1000_0000;

const DOMAIN: u32 = 31;
const PASID: u32 = 77;

const OLD: u64 = 0xaaaa_0001;
const NEW: u64 = 0xbbbb_0002;

pub(super) fn a_table_that_changes<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    let endpoint = bench.endpoint(0)?;
    bench.iommu.aux_enable(endpoint)?;
    let (old, new, landing) = (bench.page(OLD)?, bench.page(NEW)?, bench.page(0)?);
    let mut table = bench.table(0)?;
    table.set(LANDING, landing)?;
    let at = table.set(WORK, old)?;
    bench.iommu.bind_table(table.bind(DOMAIN, Output::GuestPhysical))?;
    let nested = bench.iommu.attribute(Attribute::Nested, DOMAIN, endpoint)?;
    same("NESTED", &nested, &3)?;
    bench.iommu.aux_attach(DOMAIN, endpoint, PasidChoice::This(PASID))?;
    let lane = bench.lane(0, Some(PASID), landing)?;

    // each scope of INVALIDATE ends what was known of the page
    let scopes = [Scope::Range(WORK..=WORK + PAGE - 1), Scope::Pasid(PASID), Scope::Domain];
    for scope in scopes {
        table.store(at, table.leaf(old, true))?;
        bench.iommu.invalidate(DOMAIN, Scope::Domain)?;
        bench.sees(lane, WORK, OLD)?;
        table.store(at, table.leaf(new, true))?;
        bench.iommu.invalidate(DOMAIN, scope.clone())?;
        bench.sees(lane, WORK, NEW)?;
        table.store(at, 0)?;
        bench.iommu.invalidate(DOMAIN, scope)?;
        bench.blocked(lane, WORK, Refusal::Mapping)?;
    }
    // what was not there is seen when it is, without a word
    table.set(WORK + PAGE, new)?;
    bench.sees(lane, WORK + PAGE, NEW)?;
    table.store(at, table.leaf(old, true))?;
    bench.sees(lane, WORK, OLD)?;
    let marks = if bench.flavour() == Flavour::Vtd {
        flags_are_set(bench, &mut table, lane)?;
        ", accessed and dirty flags set"
    } else {
        table.store(at, table.leaf(old, true) & !(1 << 10))?;
        bench.iommu.invalidate(DOMAIN, Scope::Domain)?;
        bench.blocked(lane, WORK, Refusal::Mapping)?;
        ", a page that was never accessed (AF = 0) faults"
    };
    bench.close(&[lane])?;
    bench.iommu.aux_detach(DOMAIN, endpoint, PASID)?;
    bench.iommu.unbind_table(DOMAIN)?;
    bench.iommu.aux_disable(endpoint)?;
    Ok(format!("3 scopes of INVALIDATE, no stale access{marks}"))
}

/// Accessed flags come with the first access at every level, dirty ones with the first write only.
fn flags_are_set<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
    table: &mut super::table::GuestTable<T::Memory>,
    lane: super::bench::Lane,
) -> Result<(), Wrong> {
    let page = bench.page(OLD)?;
    // another part of the table, down from the root
    let iova = WORK - (1 << 40);
    let at = table.set(iova, page)?;
    bench.sees(lane, iova, OLD)?;
    let flags = table.load(at)? & (X86_ACCESSED | X86_DIRTY);
    same("the flags after a read", &flags, &X86_ACCESSED)?;
    for level in 1..4 {
        let entry = table.entry_at(iova, level)?;
        let accessed = table.load(entry)? & X86_ACCESSED;
        same("the flag of a table", &accessed, &X86_ACCESSED)?;
    }
    bench.writes(lane, iova, page, NEW)?;
    let flags = table.load(at)? & (X86_ACCESSED | X86_DIRTY);
    same("the flags after a write", &flags, &(X86_ACCESSED | X86_DIRTY))
}

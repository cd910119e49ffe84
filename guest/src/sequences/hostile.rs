//! Tables of the guest's that are none: every access ends in a fault, and in nobody's memory.

use viommu_client::engine::{Outcome, Work};
use viommu_client::{
    BindTable, Function, Memory, Output, PAGE_BYTES, PasidChoice, Rights, Scope, Transport,
};

use super::bench::{Bench, Flavour, LANDING, Lane, Refusal, Wrong, same};
use super::table::GuestTable;

const DOMAIN: u32 = 51;
const NESTED: u32 = 52;
const PASID: u32 = 13;

/// Where the table has its bad entry: indexes 0xfe, 5, 6 and 7, which no other table has.
const WORK: u64 = 0x7f01_40c0_7000;

/// An address with the same index in each table.
const LOOP: u64 = 9 << 39 | 9 << 30 | 9 << 21 | 9 << 12;

/// Guest-physical addresses where no guest has memory: below the IOMMU's own tables, and where these
/// are, as `docs/architecture.md` has them.
const NO_MEMORY: u64 = 0x3fff_ffff_f000;
const VTD_TABLES: u64 = 1 << 51;
const SMMU_TABLES: u64 = 1 << 47;

const SECRET: u64 = 0x5ec2_e700;

pub(super) fn tables_that_are_none<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    let endpoint = bench.endpoint(0)?;
    bench.iommu.aux_enable(endpoint)?;
    let entries = bad_entries(bench)?;
    let roots = bad_roots(bench)?;
    let changes = changing_entry(bench)?;
    let below = refused_below(bench)?;
    bench.iommu.aux_disable(endpoint)?;
    Ok(format!(
        "{entries} bad entries, {roots} bad roots, {changes} changes under the walk, {below} refusals \
         by the second level: each its own fault"
    ))
}

/// A table with a landing page, bound to [`DOMAIN`] and attached.
fn bound<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<(GuestTable<T::Memory>, Lane), Wrong> {
    let landing = bench.page(0)?;
    let mut table = bench.table(0)?;
    table.set(LANDING, landing)?;
    bench.iommu.bind_table(table.bind(DOMAIN, Output::GuestPhysical))?;
    let endpoint = bench.endpoint(0)?;
    bench.iommu.aux_attach(DOMAIN, endpoint, PasidChoice::This(PASID))?;
    let lane = bench.lane(0, Some(PASID), landing)?;
    Ok((table, lane))
}

fn unbind<T: Transport, F: Function>(bench: &mut Bench<T, F>, lane: Lane) -> Result<(), Wrong> {
    bench.close(&[lane])?;
    let endpoint = bench.endpoint(0)?;
    bench.iommu.aux_detach(DOMAIN, endpoint, PASID)?;
    Ok(bench.iommu.unbind_table(DOMAIN)?)
}

/// Entries at each level: loops, reserved bits, pointers to nowhere and into the IOMMU's own tables.
fn bad_entries<T: Transport, F: Function>(bench: &mut Bench<T, F>) -> Result<usize, Wrong> {
    let (mut table, lane) = bound(bench)?;
    let tables = match bench.flavour() {
        Flavour::Vtd => VTD_TABLES,
        Flavour::SmmuV3 => SMMU_TABLES,
    };
    let mut bad = Vec::new();
    for level in 1..4 {
        let at = table.entry_at(WORK, level)?;
        let good = table.load(at)?;
        // a loop: the table leads to the root again; then to nowhere, and to the IOMMU's tables
        let root = table.pages().first().copied().unwrap_or_default();
        let pointers = [root, NO_MEMORY, tables, tables + 0x1000].map(|to| table.pointer(to));
        bad.extend(pointers.map(|entry| (at, entry, good)));
        let reserved = reserved_bits(bench.flavour(), level, good);
        bad.extend(reserved.into_iter().map(|entry| (at, entry, good)));
    }
    let at = table.entry_at(WORK, 0)?;
    let leaves = [tables, tables + 0x1000].map(|to| table.leaf(to, true));
    bad.extend(leaves.map(|entry| (at, entry, 0)));
    for (at, entry, good) in &bad {
        table.store(*at, *entry)?;
        bench.iommu.invalidate(DOMAIN, Scope::Domain)?;
        bench.blocked(lane, WORK, Refusal::Mapping)?;
        table.store(*at, *good)?;
    }
    a_loop(bench, &mut table, lane)?;
    unbind(bench, lane)?;
    Ok(bad.len() + 1)
}

/// A table that leads to itself at each level: the walk ends all the same. Where such a table is a page
/// as well (x86), it is the guest's own; where it is none (Arm), the access faults.
fn a_loop<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
    table: &mut GuestTable<T::Memory>,
    lane: Lane,
) -> Result<(), Wrong> {
    let root = table.pages().first().copied().unwrap_or_default();
    let at = table.entry_at(LOOP, 3)?;
    table.store(at, table.pointer(root))?;
    if bench.flavour() == Flavour::SmmuV3 {
        return bench.blocked(lane, LOOP, Refusal::Mapping);
    }
    // the first walks set accessed flags in the page that is then read
    for _ in 0..2 {
        same("a read through a loop", &bench.read(lane, LOOP)?, &Outcome::Done)?;
    }
    let (mut found, mut own) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
    bench.memory.read(lane.landing, &mut found)?;
    bench.memory.read(root, &mut own)?;
    same("the page at the end of a loop is the guest's own", &(found == own), &true)
}

/// Entries of a table at `level` with bits that have to be zero.
fn reserved_bits(flavour: Flavour, level: u32, good: u64) -> Vec<u64> {
    match (flavour, level) {
        // a page of 512 GiB, which there is not
        (Flavour::Vtd, 3) => vec![good | 1 << 7],
        // a page of 1 GiB or 2 MiB with address bits below its size
        (Flavour::Vtd, _) => vec![good | 1 << 7 | 1 << 13],
        // a block of 512 GiB, which there is not with pages of 4 KiB
        (Flavour::SmmuV3, 3) => vec![good & !(1 << 1)],
        (Flavour::SmmuV3, _) => Vec::new(),
    }
}

/// Roots outside memory: the bind is no error, each access is.
fn bad_roots<T: Transport, F: Function>(bench: &mut Bench<T, F>) -> Result<usize, Wrong> {
    let roots = [NO_MEMORY, NO_MEMORY - 0x1_0000];
    let endpoint = bench.endpoint(0)?;
    let table = bench.table(0)?;
    for root in roots {
        let output = Output::GuestPhysical;
        let bind = BindTable { domain: DOMAIN, format: table.format(), root, output };
        bench.iommu.bind_table(bind)?;
        bench.iommu.aux_attach(DOMAIN, endpoint, PasidChoice::This(PASID))?;
        let landing = bench.page(0)?;
        let lane = bench.lane(0, Some(PASID), landing)?;
        bench.blocked(lane, WORK, Refusal::Mapping)?;
        unbind(bench, lane)?;
    }
    Ok(roots.len())
}

/// An entry that changes while it is walked: each access is the one, the other, or a fault.
fn changing_entry<T: Transport, F: Function>(bench: &mut Bench<T, F>) -> Result<usize, Wrong> {
    const CHANGES: usize = 64;
    let (mut table, lane) = bound(bench)?;
    let (one, other) = (bench.page(1)?, bench.page(2)?);
    let secret = bench.page(SECRET)?;
    let at = table.set(WORK, one)?;
    let upper = table.entry_at(WORK, 1)?;
    let good = table.load(upper)?;
    for change in 0..CHANGES {
        let copy = Work::Copy { source: WORK, destination: LANDING, bytes: 4096 };
        bench.refill(lane.landing, 0)?;
        let places = bench.engine(lane.device)?.submit(lane.queue, &[copy; 8])?;
        // under the walks: another page, no table, the table again
        table.store(at, table.leaf(if change % 2 == 0 { other } else { one }, true))?;
        table.store(upper, 0)?;
        bench.iommu.invalidate(DOMAIN, Scope::Domain)?;
        table.store(upper, good)?;
        for place in places {
            bench.engine(lane.device)?.wait(lane.queue, place)?;
        }
        match bench.marker(lane.landing)? {
            Some(0..=2) => {}
            seen => {
                let (what, seen) = ("a page under changes", format!("{seen:x?}"));
                return Err(Wrong::Seen { what, seen, expected: "one of its pages".to_owned() });
            }
        }
        bench.forget_faults()?;
    }
    // the page that no entry ever led to is untouched
    same("another page", &bench.marker(secret)?, &Some(SECRET))?;
    unbind(bench, lane)?;
    bench.forget_faults()?;
    Ok(CHANGES)
}

/// Where the second level refuses: the root, a table and a page of the first level.
fn refused_below<T: Transport, F: Function>(bench: &mut Bench<T, F>) -> Result<usize, Wrong> {
    const OFFSET: u64 = 0x40_0000_0000;
    let endpoint = bench.endpoint(0)?;
    let (landing, page) = (bench.page(0)?, bench.page(SECRET)?);
    let mut table = bench.table(OFFSET)?;
    table.set(WORK, page + OFFSET)?;
    let missing: Vec<u64> = table.pages().iter().copied().chain([page]).collect();
    table.set(LANDING, landing + OFFSET)?;
    bench.iommu.bind_table(table.bind(NESTED, Output::Through(NESTED)))?;
    for there in table.pages().iter().chain(&[landing]).filter(|at| !missing.contains(at)) {
        bench.map(NESTED, there + OFFSET, *there, Rights::ReadWrite)?;
    }
    bench.iommu.aux_attach(NESTED, endpoint, PasidChoice::This(PASID))?;
    let lane = bench.lane(0, Some(PASID), landing)?;
    for at in &missing {
        bench.blocked(lane, WORK, Refusal::SecondLevel)?;
        bench.map(NESTED, at + OFFSET, *at, Rights::ReadWrite)?;
    }
    bench.sees(lane, WORK, SECRET)?;
    bench.close(&[lane])?;
    bench.iommu.aux_detach(NESTED, endpoint, PASID)?;
    bench.iommu.unbind_table(NESTED)?;
    Ok(missing.len())
}

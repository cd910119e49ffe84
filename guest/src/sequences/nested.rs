//! Sequences 3 and 4: the guest's first level over second levels that MAP fills.

use viommu_client::{
    Attribute, Function, Memory, Output, PasidChoice, Request, Rights, Status, Transport,
};

use super::bench::{Bench, Flavour, LANDING, PAGE, Refusal, Wrong, same};
use super::table::GuestTable;

/// Where a page is for the first level.
const WORK: u64 = 0x7f00_1000_0000;

/// What separates the address that a first level yields from the guest-physical one: the second
/// level takes it away, so one that is passed by shows.
const OFFSET: u64 = 0x40_0000_0000;

const FIRST: u32 = 21;
const SECOND: u32 = 22;
const PARENT: u32 = 20;

const OF_FIRST: u64 = 0xaaaa_0001;
const OF_SECOND: u64 = 0xbbbb_0002;

/// A first level with one page to look at and a landing page, and all of it.
struct Nest<M> {
    table: GuestTable<M>,
    page: u64,
    landing: u64,
}

impl<M: Memory> Nest<M> {
    fn new<T: Transport<Memory = M>, F: Function>(
        bench: &Bench<T, F>,
        marker: u64,
    ) -> Result<Self, Wrong> {
        let (page, landing) = (bench.page(marker)?, bench.page(0)?);
        let mut table = bench.table(OFFSET)?;
        table.set(WORK, page + OFFSET)?;
        table.set(LANDING, landing + OFFSET)?;
        Ok(Self { table, page, landing })
    }

    /// The second level that it needs: MAP on `domain`.
    fn map_below<T: Transport<Memory = M>, F: Function>(
        &self,
        bench: &mut Bench<T, F>,
        domain: u32,
    ) -> Result<(), Wrong> {
        let own = [self.page, self.landing];
        for page in self.table.pages().iter().chain(&own) {
            bench.map(domain, page + OFFSET, *page, Rights::ReadWrite)?;
        }
        Ok(())
    }
}

pub(super) fn own_second_levels<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    let endpoint = bench.endpoint(0)?;
    bench.iommu.aux_enable(endpoint)?;
    let first = Nest::new(bench, OF_FIRST)?;
    let second = Nest::new(bench, OF_SECOND)?;
    for (nest, domain) in [(&first, FIRST), (&second, SECOND)] {
        bench.iommu.bind_table(nest.table.bind(domain, Output::Through(domain)))?;
        nest.map_below(bench, domain)?;
        let nested = bench.iommu.attribute(Attribute::Nested, domain, endpoint)?;
        same("NESTED", &nested, &1)?;
    }
    bench.iommu.aux_attach(FIRST, endpoint, PasidChoice::This(1))?;
    let lane = bench.lane(0, Some(1), first.landing)?;
    bench.sees(lane, WORK, OF_FIRST)?;
    bench.writes(lane, WORK, first.page, OF_FIRST + 1)?;

    let attach = Request::AuxAttach { domain: SECOND, endpoint, pasid: 2, flags: 0 };
    let seen = if bench.flavour() == Flavour::Vtd {
        bench.iommu.aux_attach(SECOND, endpoint, PasidChoice::This(2))?;
        let other = bench.lane(0, Some(2), second.landing)?;
        bench.sees(other, WORK, OF_SECOND)?;
        bench.sees(lane, WORK, OF_FIRST + 1)?;
        bench.unmap(FIRST, first.page + OFFSET)?;
        bench.blocked(lane, WORK, Refusal::SecondLevel)?;
        bench.sees(other, WORK, OF_SECOND)?;
        bench.close(&[other])?;
        bench.iommu.aux_detach(SECOND, endpoint, 2)?;
        "two PASIDs, two second levels; UNMAP on one left the other"
    } else {
        bench.answers(&attach, Status::UNSUPP)?;
        bench.sees(lane, WORK, OF_FIRST + 1)?;
        bench.unmap(FIRST, first.page + OFFSET)?;
        bench.blocked(lane, WORK, Refusal::SecondLevel)?;
        "one second level for the endpoint; the second one is UNSUPP and changes nothing"
    };
    bench.close(&[lane])?;
    bench.iommu.aux_detach(FIRST, endpoint, 1)?;
    bench.iommu.unbind_table(FIRST)?;
    bench.iommu.unbind_table(SECOND)?;
    bench.iommu.aux_disable(endpoint)?;
    Ok(seen.to_owned())
}

pub(super) fn one_second_level_for_all<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    let (one, other) = (bench.endpoint(0)?, bench.endpoint(1)?);
    bench.iommu.attach(PARENT, one)?;
    bench.iommu.aux_enable(one)?;
    bench.iommu.aux_enable(other)?;
    let first = Nest::new(bench, OF_FIRST)?;
    let second = Nest::new(bench, OF_SECOND)?;
    for (nest, domain) in [(&first, FIRST), (&second, SECOND)] {
        nest.map_below(bench, PARENT)?;
        bench.iommu.bind_table(nest.table.bind(domain, Output::Through(PARENT)))?;
        let nested = bench.iommu.attribute(Attribute::Nested, domain, one)?;
        same("NESTED", &nested, &2)?;
    }
    let attachments = [(FIRST, one, 1), (SECOND, one, 2), (FIRST, other, 3)];
    for (domain, endpoint, pasid) in attachments {
        bench.iommu.aux_attach(domain, endpoint, PasidChoice::This(pasid))?;
    }
    let lanes = [
        bench.lane(0, Some(1), first.landing)?,
        bench.lane(0, Some(2), second.landing)?,
        bench.lane(1, Some(3), first.landing)?,
    ];
    let [of_first, of_second, elsewhere] = lanes;
    bench.sees(of_first, WORK, OF_FIRST)?;
    bench.sees(of_second, WORK, OF_SECOND)?;
    bench.sees(elsewhere, WORK, OF_FIRST)?;

    // a mapping of the parent's acts on all that go through it
    let (at, page) = (OFFSET + (1 << 38), bench.page(OF_SECOND)?);
    let (mut first, mut second) = (first, second);
    first.table.set(WORK + PAGE, at)?;
    second.table.set(WORK + PAGE, at)?;
    lanes.iter().try_for_each(|lane| bench.blocked(*lane, WORK + PAGE, Refusal::SecondLevel))?;
    bench.map(PARENT, at, page, Rights::ReadWrite)?;
    lanes.iter().try_for_each(|lane| bench.sees(*lane, WORK + PAGE, OF_SECOND))?;
    bench.unmap(PARENT, at)?;
    lanes.iter().try_for_each(|lane| bench.blocked(*lane, WORK + PAGE, Refusal::SecondLevel))?;
    bench.sees(of_second, WORK, OF_SECOND)?;
    // the parent alone, on untagged DMA: its mappings and no first level
    let untagged = bench.lane(0, None, first.landing)?;
    bench.map(PARENT, LANDING, first.landing, Rights::ReadWrite)?;
    bench.sees(untagged, first.page + OFFSET, OF_FIRST)?;

    bench.close(&lanes)?;
    bench.close(&[untagged])?;
    for (domain, endpoint, pasid) in attachments {
        bench.iommu.aux_detach(domain, endpoint, pasid)?;
    }
    bench.iommu.unbind_table(FIRST)?;
    bench.iommu.unbind_table(SECOND)?;
    bench.iommu.detach(PARENT, one)?;
    bench.iommu.aux_disable(one)?;
    bench.iommu.aux_disable(other)?;
    Ok("MAP and UNMAP on the parent reached 3 PASIDs of 2 endpoints and untagged DMA".to_owned())
}

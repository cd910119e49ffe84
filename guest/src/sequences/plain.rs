//! Sequences 1, 2 and 7: domains that MAP fills.

use viommu_client::{Attribute, Function, PasidChoice, Request, Rights, Status, Transport};

use super::bench::{Bench, Refusal, Wrong, same};

/// Where a page is in every address space, and one that only the first domain has.
const WORK: u64 = 0x1000_0000;
const ONLY_FIRST: u64 = 0x1800_0000;

/// What pages hold.
const OF_RID: u64 = 0x1111_1111;
const OF_FIRST: u64 = 0xaaaa_aaaa;
const OF_SECOND: u64 = 0xbbbb_bbbb;

/// Domains.
const RID: u32 = 1;
const FIRST: u32 = 11;
const SECOND: u32 = 12;

pub(super) fn two_domains_behind_chosen_pasids<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    let endpoint = bench.endpoint(0)?;
    bench.iommu.attach(RID, endpoint)?;
    let early = Request::AuxAttach { domain: FIRST, endpoint, pasid: 5, flags: 0 };
    bench.answers(&early, Status::INVAL)?;
    bench.iommu.aux_enable(endpoint)?;
    let first = bench.iommu.aux_attach(FIRST, endpoint, PasidChoice::Any)?;
    let second = bench.iommu.aux_attach(SECOND, endpoint, PasidChoice::Any)?;
    same("the PASIDs are the same", &(first == second), &false)?;
    for (domain, pasid) in [(FIRST, first), (SECOND, second)] {
        let told = bench.iommu.attribute(Attribute::AuxId, domain, endpoint)?;
        same("AUX_ID", &told, &u64::from(pasid))?;
    }
    let enabled = bench.iommu.attribute(Attribute::AuxEnabled, 0, endpoint)?;
    same("AUX_ENABLED", &enabled, &1)?;

    let mut lanes = Vec::new();
    let spaces =
        [(RID, None, OF_RID), (FIRST, Some(first), OF_FIRST), (SECOND, Some(second), OF_SECOND)];
    for (domain, pasid, marker) in spaces {
        let page = bench.page(marker)?;
        bench.map(domain, WORK, page, Rights::ReadWrite)?;
        let landing = bench.map_landing(domain)?;
        lanes.push((bench.lane(0, pasid, landing)?, page, marker));
    }
    let alone = bench.page(OF_FIRST)?;
    bench.map(FIRST, ONLY_FIRST, alone, Rights::ReadWrite)?;
    for (lane, page, marker) in &lanes {
        bench.sees(*lane, WORK, *marker)?;
        bench.writes(*lane, WORK, *page, marker + 1)?;
        if lane.pasid == Some(first) {
            bench.sees(*lane, ONLY_FIRST, OF_FIRST)?;
        } else {
            bench.blocked(*lane, ONLY_FIRST, Refusal::Mapping)?;
        }
    }
    bench.iommu.aux_detach(FIRST, endpoint, first)?;
    for (lane, _, marker) in &lanes {
        if lane.pasid == Some(first) {
            bench.blocked(*lane, WORK, Refusal::NotAttached)?;
        } else {
            bench.sees(*lane, WORK, marker + 1)?;
        }
    }
    let open: Vec<_> = lanes.iter().map(|(lane, _, _)| *lane).collect();
    bench.close(&open)?;
    bench.iommu.aux_detach(SECOND, endpoint, second)?;
    bench.iommu.aux_disable(endpoint)?;
    bench.iommu.detach(RID, endpoint)?;
    Ok(format!("PASIDs {first} and {second}, each with untagged DMA sees its own pages only"))
}

pub(super) fn one_iova_in_two_domains<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    let (one, other) = (bench.endpoint(0)?, bench.endpoint(1)?);
    bench.iommu.aux_enable(one)?;
    bench.iommu.aux_enable(other)?;
    // the first domain twice on one endpoint and once on the other, the second beside it
    let attachments =
        [(FIRST, 0, one, 100), (FIRST, 0, one, 101), (FIRST, 1, other, 7), (SECOND, 0, one, 200)];
    for (domain, _, endpoint, pasid) in attachments {
        let got = bench.iommu.aux_attach(domain, endpoint, PasidChoice::This(pasid))?;
        same("the PASID", &got, &pasid)?;
    }
    let (first, second) = (bench.page(OF_FIRST)?, bench.page(OF_SECOND)?);
    let landings = [bench.map_landing(FIRST)?, bench.map_landing(SECOND)?];
    bench.map(FIRST, WORK, first, Rights::ReadWrite)?;
    bench.map(SECOND, WORK, second, Rights::ReadWrite)?;

    let mut of_first = Vec::new();
    let mut of_second = Vec::new();
    for (domain, device, _, pasid) in attachments {
        let [landing, second_landing] = landings;
        if domain == FIRST {
            of_first.push(bench.lane(device, Some(pasid), landing)?);
        } else {
            of_second.push(bench.lane(device, Some(pasid), second_landing)?);
        }
    }
    of_first.iter().try_for_each(|lane| bench.sees(*lane, WORK, OF_FIRST))?;
    of_second.iter().try_for_each(|lane| bench.sees(*lane, WORK, OF_SECOND))?;
    bench.unmap(FIRST, WORK)?;
    of_first.iter().try_for_each(|lane| bench.blocked(*lane, WORK, Refusal::Mapping))?;
    of_second.iter().try_for_each(|lane| bench.sees(*lane, WORK, OF_SECOND))?;
    bench.map(FIRST, WORK, second, Rights::Read)?;
    for lane in &of_first {
        bench.sees(*lane, WORK, OF_SECOND)?;
        bench.blocked_write(*lane, WORK, Refusal::Mapping)?;
    }
    bench.close(&of_first)?;
    bench.close(&of_second)?;
    for (domain, _, endpoint, pasid) in attachments {
        bench.iommu.aux_detach(domain, endpoint, pasid)?;
    }
    bench.iommu.aux_disable(one)?;
    bench.iommu.aux_disable(other)?;
    Ok("one IOVA, two pages; UNMAP on one domain reached 3 PASIDs of 2 endpoints".to_owned())
}

/// What a driver does that wants a part of its device to itself, and knows nothing of the others.
pub(super) fn private_pasid<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    let endpoint = bench.endpoint(0)?;
    bench.iommu.aux_enable(endpoint)?;
    let pasid = bench.iommu.aux_attach(FIRST, endpoint, PasidChoice::Any)?;
    let nested = bench.iommu.attribute(Attribute::Nested, FIRST, endpoint)?;
    same("NESTED", &nested, &0)?;
    let page = bench.page(OF_FIRST)?;
    let landing = bench.map_landing(FIRST)?;
    let lane = bench.lane(0, Some(pasid), landing)?;
    bench.blocked(lane, WORK, Refusal::Mapping)?;
    bench.map(FIRST, WORK, page, Rights::ReadWrite)?;
    bench.sees(lane, WORK, OF_FIRST)?;
    bench.writes(lane, WORK, page, OF_SECOND)?;
    bench.unmap(FIRST, WORK)?;
    bench.blocked(lane, WORK, Refusal::Mapping)?;
    bench.blocked_write(lane, WORK, Refusal::Mapping)?;
    same("the page after UNMAP", &bench.marker(page)?, &Some(OF_SECOND))?;
    bench.close(&[lane])?;
    bench.iommu.aux_detach(FIRST, endpoint, pasid)?;
    bench.iommu.aux_disable(endpoint)?;
    Ok(format!("PASID {pasid}: mapped, written, unmapped, blocked"))
}

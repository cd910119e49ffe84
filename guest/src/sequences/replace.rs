//! Sequence 6: AUX_ATTACH over another domain while DMA goes on.

use viommu_client::engine::{Outcome, Work};
use viommu_client::{Function, PasidChoice, Rights, Transport};

use super::bench::{Bench, Lane, PAGE, Wrong, same};

const DOMAINS: [u32; 2] = [41, 42];
const PASID: u32 = 9;

/// Where each domain has pages of its own to read and to write.
const SOURCE: u64 = 0x1000_0000;
const TARGET: u64 = 0x1800_0000;
/// Where both have the same pages, those of each descriptor apart.
const LANDINGS: u64 = 0x3000_0000;

/// Copies under way at a replacement, a write behind each, and pages that each copies.
const COPIES: u64 = 12;
const PAGES: usize = 8;
const BYTES: u32 = 8 * 4096;

/// How often one domain replaces the other.
const ROUNDS: u64 = 24;

/// What the pages of each domain hold that DMA reads.
const MARKERS: [u64; 2] = [0xaaaa_0001, 0xbbbb_0002];

/// The pages of the two domains.
struct Pages {
    /// What DMA writes, by domain.
    targets: [u64; 2],
    /// What DMA has read, descriptor by descriptor.
    landings: Vec<u64>,
}

/// What was found in the pages that were read under a replacement.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    old: u64,
    new: u64,
}

pub(super) fn under_load<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    let endpoint = bench.endpoint(0)?;
    bench.iommu.aux_enable(endpoint)?;
    let [first, second] = DOMAINS;
    // both live, at PASIDs of their own, so that they can be filled and go on living
    bench.iommu.aux_attach(first, endpoint, PasidChoice::This(PASID + 1))?;
    bench.iommu.aux_attach(second, endpoint, PasidChoice::This(PASID + 2))?;
    let pages = fill(bench)?;
    bench.iommu.aux_attach(first, endpoint, PasidChoice::This(PASID))?;
    let landing = pages.landings.first().copied().unwrap_or_default();
    let lane = bench.lane(0, Some(PASID), landing)?;
    let mut sum = Tally::default();
    for round in 0..ROUNDS {
        let (old, new) = if round % 2 == 0 { (0, 1) } else { (1, 0) };
        let tally = replace(bench, lane, &pages, (old, new))?;
        sum = Tally { old: sum.old + tally.old, new: sum.new + tally.new };
    }
    bench.close(&[lane])?;
    for (domain, pasid) in [(first, PASID), (first, PASID + 1), (second, PASID + 2)] {
        bench.iommu.aux_detach(domain, endpoint, pasid)?;
    }
    bench.iommu.aux_disable(endpoint)?;
    let Tally { old, new } = sum;
    Ok(format!("{ROUNDS} replacements under load: {old} pages read as before, {new} as after"))
}

fn fill<T: Transport, F: Function>(bench: &mut Bench<T, F>) -> Result<Pages, Wrong> {
    let targets = [bench.page(0)?, bench.page(0)?];
    let landings: Vec<u64> =
        (0..COPIES * PAGES as u64).map(|_| bench.page(0)).collect::<Result<_, _>>()?;
    for ((domain, marker), target) in DOMAINS.into_iter().zip(MARKERS).zip(targets) {
        let source = bench.page(marker)?;
        for n in 0..PAGES as u64 {
            bench.map(domain, SOURCE + n * PAGE, source, Rights::Read)?;
        }
        bench.map(domain, TARGET, target, Rights::ReadWrite)?;
        for (iova, page) in (LANDINGS..).step_by(4096).zip(&landings) {
            bench.map(domain, iova, *page, Rights::ReadWrite)?;
        }
    }
    Ok(Pages { targets, landings })
}

/// Replaces one domain by the other, of these indexes, while descriptors are under way.
fn replace<T: Transport, F: Function>(
    bench: &mut Bench<T, F>,
    lane: Lane,
    pages: &Pages,
    (old, new): (usize, usize),
) -> Result<Tally, Wrong> {
    let pick = |from: [u64; 2], index: usize| from.get(index).copied().unwrap_or_default();
    let domain = DOMAINS.get(new).copied().unwrap_or_default();
    let endpoint = bench.endpoint(lane.device)?;
    let pair = |n| {
        let destination = LANDINGS + n * u64::from(BYTES);
        let copy = Work::Copy { source: SOURCE, destination, bytes: BYTES };
        [copy, Work::Fill { pattern: n, destination: TARGET, bytes: 4096 }]
    };
    let work: Vec<Work> = (0..COPIES).flat_map(pair).collect();
    let places = bench.engine(lane.device)?.submit(lane.queue, &work)?;
    bench.iommu.aux_attach(domain, endpoint, PasidChoice::This(PASID))?;
    // what the queue is at now may have read before the answer; what comes after it may not
    let at = bench.engine(lane.device)?.head(lane.queue)?;
    let before = bench.marker(pick(pages.targets, old))?;
    same("a write after the answer", &bench.fill(lane, TARGET, u64::from(at))?, &Outcome::Done)?;
    same("the page of the old domain", &bench.marker(pick(pages.targets, old))?, &before)?;
    let written = bench.marker(pick(pages.targets, new))?;
    same("the page of the new domain", &written, &Some(u64::from(at)))?;

    let is = pick(MARKERS, new);
    let underway = places.iter().position(|place| *place == at).unwrap_or(places.len());
    let mut tally = Tally::default();
    for (index, place) in places.iter().enumerate() {
        let outcome = bench.engine(lane.device)?.wait(lane.queue, *place)?;
        same("an access under way", &outcome, &Outcome::Done)?;
        let landings = pages.landings.chunks(PAGES).nth(index / 2);
        for landing in landings.into_iter().flatten().filter(|_| index % 2 == 0) {
            let seen = bench.marker(*landing)?;
            if seen == Some(pick(MARKERS, old)) && index <= underway {
                tally.old += 1;
            } else {
                same("a page that was read", &seen, &Some(is))?;
                tally.new += 1;
            }
        }
    }
    Ok(tally)
}

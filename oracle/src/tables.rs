//! Random page tables, made by our mapper, and the entries that lead through them.

use viommu_pgtable::{
    Access, Entry, Format, Geometry, Iova, IovaRange, MapError, Mapping, PhysAddr, Table,
    TableMemory,
};

use crate::error::{Error, Result};
use crate::random::Random;
use crate::region::Region;

/// Mappings of one table, at most.
const MAX_MAPPINGS: u64 = 24;
/// Leaves of one mapping, at most: enough to cross tables of the lowest level.
const MAX_LEAVES: u64 = 600;
/// Leaves of more than 2 MiB in one mapping, at most: memory for DMA is small.
const MAX_LARGE_LEAVES: u64 = 2;

/// Where mappings lead: memory that holds neither tables nor anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Landing {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Landing {
    /// What leads each address of it to itself: the mapping of those that are not translated.
    ///
    /// # Errors
    /// If it is empty or runs past the last address.
    pub fn identity(&self) -> Result<Mapping> {
        let range = IovaRange::with_len(Iova::new(self.start), self.bytes);
        let range = range.ok_or_else(|| Error::build("an empty landing"))?;
        Mapping::new(range, PhysAddr::new(self.start), Access::RW).map_err(Error::build)
    }

    /// True if a DMA to `at` lands inside.
    #[must_use]
    pub const fn contains(&self, at: PhysAddr) -> bool {
        at.raw() >= self.start && at.raw() - self.start <= self.bytes - crate::dma::DMA_BYTES
    }
}

/// A table and what our mapper put into it.
#[derive(Debug)]
pub struct Filled {
    /// The root table.
    pub root: PhysAddr,
    /// What is mapped.
    pub mappings: Vec<Mapping>,
}

/// Builds a random table in `region`: leaves of all sizes, alone and in runs, near each other and
/// far.
///
/// # Errors
/// If the region is too small, or our mapper refuses what it must take.
pub fn fill<F: Format>(
    format: F,
    region: &mut Region,
    landing: Landing,
    random: &mut Random,
) -> Result<Filled> {
    let mut table = Table::new(format, region).map_err(Error::build)?;
    let mut mappings: Vec<Mapping> = Vec::new();
    for _ in 0..=random.below(MAX_MAPPINGS) {
        let near = random.pick(&mappings).map(|mapping| mapping.iova().last());
        let Some(mapping) = draw(&format, landing, near, random) else { continue };
        match table.map(region, &mapping) {
            Ok(()) => mappings.push(mapping),
            Err(MapError::Overlap { .. }) => {}
            Err(error) => return Err(Error::build(error)),
        }
    }
    region.check()?;
    Ok(Filled { root: table.root(), mappings })
}

/// Builds a table of one mapping in `region`; its root.
///
/// # Errors
/// As [`fill`].
pub fn single<F: Format>(format: F, region: &mut Region, mapping: &Mapping) -> Result<PhysAddr> {
    let mut table = Table::new(format, region).map_err(Error::build)?;
    table.map(region, mapping).map_err(Error::build)?;
    region.check()?;
    Ok(table.root())
}

/// A random mapping, perhaps near `near`; `None` if it came out wider than the table.
fn draw<F: Format>(
    format: &F,
    landing: Landing,
    near: Option<Iova>,
    random: &mut Random,
) -> Option<Mapping> {
    let geometry = format.geometry();
    let levels: Vec<u8> = (0..geometry.levels)
        .filter(|level| geometry.has_leaves(*level) && fits(&geometry, *level, landing))
        .collect();
    let lg2 = geometry.entry_lg2(random.pick(&levels)?);
    let most = if lg2 > 21 { MAX_LARGE_LEAVES } else { MAX_LEAVES.min(landing.bytes >> lg2) };
    let leaves = if random.once_in(2) { 1 } else { 1 + random.below(most) };
    let bytes = leaves << lg2;
    let slots = landing.bytes.checked_sub(bytes)? >> lg2;
    let oa = landing.start + (random.below(slots + 1) << lg2);
    let start = match near {
        Some(near) if random.once_in(2) => near.checked_add(1)?.raw().next_multiple_of(1 << lg2),
        _ => input(format, random) >> lg2 << lg2,
    };
    let iova = IovaRange::with_len(Iova::new(start), bytes)?;
    let _translated = (format.input(iova.start())?, format.input(iova.last())?);
    let access = random.pick(&[Access::RW, Access::RW, Access::READ, Access::WRITE])?;
    let access = if format.expresses(access) { access } else { Access::READ };
    Mapping::new(iova, PhysAddr::new(oa), access).ok()
}

/// A random address that the format translates.
pub fn input<F: Format>(format: &F, random: &mut Random) -> u64 {
    let bits = format.geometry().input_bits;
    let raw = random.bits() & ((1 << bits) - 1);
    match format.input(Iova::new(raw)) {
        Some(_) => raw,
        // canonical formats: the upper half has its top bits set
        None => raw | !((1 << bits) - 1),
    }
}

/// True if at least one leaf of `level` fits into `landing`.
fn fits(geometry: &Geometry, level: u8, landing: Landing) -> bool {
    let bytes = 1u64 << geometry.entry_lg2(level);
    landing.bytes >= bytes && landing.start.is_multiple_of(bytes)
}

/// An entry on the way of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Where it is.
    pub at: PhysAddr,
    /// Its level.
    pub level: u8,
    /// Bytes that it covers.
    pub size_lg2: u8,
    /// What it is.
    pub raw: u64,
}

/// The entries that lead `iova` through the table at `root`, as far as they lead.
pub fn path<F: Format, M: TableMemory>(
    format: &F,
    memory: &M,
    root: PhysAddr,
    iova: Iova,
) -> Vec<Step> {
    let geometry = format.geometry();
    let mut steps = Vec::new();
    let Some(input) = format.input(iova) else { return steps };
    let mut table = root;
    for level in (0..geometry.levels).rev() {
        let at = geometry.entry_at(level, table, input);
        let Some(raw) = memory.load(at) else { break };
        steps.push(Step { at, level, size_lg2: geometry.entry_lg2(level), raw });
        match format.decode(level, raw) {
            Entry::Table { next, .. } => table = next,
            _ => break,
        }
    }
    steps
}

//! Our VT-d tables in the machine's memory, from the root table to the pages.

use viommu_pasid::vtd::legacy::{self, LegacyContext, LegacyTranslation};
use viommu_pasid::vtd::{
    AddressWidth, FirstControls, FirstLevel, PasidEntry, PasidTable, RootTable, Translation,
};
use viommu_pgtable::{Mapping, PhysAddr, TableMemory, TableStore};

use super::levels::Levels;
use super::lookup::Lookup;
use super::mode::Mode;
use crate::error::{Error, Result};
use crate::random::Random;
use crate::region::Region;
use crate::tables::Landing;

/// The domain id in all entries that are filled at random: everything cached is dropped before each
/// access.
const DOMAIN_TAG: u16 = 5;
/// One table in so many is none: requests pass through.
const UNTRANSLATED: u64 = 16;

/// The tables of one mode.
#[derive(Debug)]
pub(super) struct Tables {
    lookup: Lookup,
    levels: Levels,
    table: RootTable,
    mappings: Vec<Mapping>,
}

impl Tables {
    /// An empty root table, in the first page of the region.
    pub(super) fn new(mode: Mode, region: &mut Region) -> Result<Self> {
        let levels = Levels::of(mode).ok_or_else(|| Error::build("no such format"))?;
        // the one page of a root table is the same in both modes
        let table = RootTable::new(region).map_err(Error::build)?;
        let lookup = Lookup { mode, root: table.root() };
        Ok(Self { lookup, levels, table, mappings: Vec::new() })
    }

    /// What our code says about these tables.
    pub(super) const fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// Maps at random, and leads the functions `bdfs` to the result; now and then they are not
    /// translated.
    pub(super) fn fill(
        &mut self,
        region: &mut Region,
        landing: Landing,
        bdfs: [u16; 2],
        random: &mut Random,
    ) -> Result<()> {
        let root = if random.once_in(UNTRANSLATED) {
            self.mappings = vec![landing.identity()?];
            None
        } else {
            let filled = self.levels.fill(region, landing, random)?;
            self.mappings = filled.mappings;
            Some(filled.root)
        };
        bdfs.into_iter().try_for_each(|bdf| self.lead(region, bdf, DOMAIN_TAG, root))
    }

    /// Leads the function `bdf` through the table at `root`, in domain `tag`; without one it is not
    /// translated.
    pub(super) fn lead(
        &self,
        region: &mut Region,
        bdf: u16,
        tag: u16,
        root: Option<PhysAddr>,
    ) -> Result<()> {
        match self.lookup.mode {
            Mode::Legacy(_) => self.lead_legacy(region, bdf, tag, root)?,
            _ => self.lead_scalable(region, bdf, tag, root)?,
        }
        region.check()
    }

    /// A table of one mapping; its root.
    pub(super) fn single(&self, region: &mut Region, mapping: &Mapping) -> Result<PhysAddr> {
        self.levels.single(region, mapping)
    }

    fn width(&self) -> Result<AddressWidth> {
        AddressWidth::from_bits(self.lookup.mode.bits()).ok_or_else(|| Error::build("no width"))
    }

    fn lead_legacy(
        &self,
        region: &mut Region,
        bdf: u16,
        domain_tag: u16,
        root: Option<PhysAddr>,
    ) -> Result<()> {
        let translation = match root {
            Some(root) => LegacyTranslation::SecondLevel { root },
            None => LegacyTranslation::PassThrough,
        };
        let context = LegacyContext { domain_tag, width: self.width()?, translation };
        legacy::set_context(region, self.lookup.root, bdf, &context).map_err(Error::build)
    }

    fn lead_scalable(
        &self,
        region: &mut Region,
        bdf: u16,
        domain_tag: u16,
        root: Option<PhysAddr>,
    ) -> Result<()> {
        let width = self.width()?;
        let translation = match (root, self.lookup.mode) {
            (None, _) => Translation::PassThrough,
            (Some(root), Mode::ScalableFirst) => Translation::FirstLevel(FirstLevel {
                root,
                five_levels: false,
                controls: FirstControls::empty(),
            }),
            (Some(root), _) => Translation::SecondLevel { root, width },
        };
        let table = PasidTable::new(region, 0).map_err(Error::build)?;
        table.set(region, 0, &PasidEntry { domain_tag, translation }).map_err(Error::build)?;
        self.widen(region, &table)?;
        self.table.set_context(region, bdf, &table.context()).map_err(Error::build)
    }

    /// Sets AW of a first level's entry to 48 bits. It means nothing there, but QEMU looks at it.
    fn widen(&self, region: &mut Region, table: &PasidTable) -> Result<()> {
        if self.lookup.mode == Mode::ScalableFirst {
            let leaf = region.load(table.context().directory).unwrap_or(0);
            let entry = PhysAddr::new(leaf & !0xfff);
            let word = region.load(entry).ok_or(Error::TableMemory { at: entry })?;
            region.store(entry, word | 2 << 2);
        }
        Ok(())
    }

    /// A random address, mostly a mapped one.
    pub(super) fn address(&self, random: &mut Random) -> u64 {
        match (random.below(20), random.pick(&self.mappings)) {
            (0, _) | (_, None) => self.levels.input(random),
            (1, _) => random.bits(),
            (_, Some(mapping)) => {
                let range = mapping.iova();
                range.start().raw() + random.below(range.len_minus_one() + 1)
            }
        }
    }
}

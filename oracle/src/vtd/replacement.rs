//! Replacement: what a device reaches while it is taken from one domain to another.
//!
//! The steps are the manual's for an entry that is taken out of use (VT-d 6.5.3.3), as Linux 7.3
//! takes them: the present bit is cleared, what is cached of the entry is invalidated, then the
//! entry is cleared, and the new one is written. A unit without caching mode keeps nothing of an
//! entry that is not present (6.1), so nothing is invalidated after that.

use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

use super::lookup::offset;
use super::tables::Tables;
use super::{LANDING, Vtd};
use crate::dma::Effect;
use crate::error::{Error, Result};
use crate::subject::{Probe, Subject};

/// Where a write ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reached {
    /// In the page of the domain that is left.
    Left,
    /// In the page of the domain that is entered.
    Entered,
    /// Nowhere: it was refused.
    Nothing,
}

/// What a write reaches at each step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replacement {
    /// In the first domain.
    pub before: Reached,
    /// The entry is not present, and what was cached of it is invalidated.
    pub between: Reached,
    /// In the second domain.
    pub after: Reached,
    /// What is cached of the first domain is invalidated once more.
    pub flushed: Reached,
}

impl Replacement {
    /// What the manual says.
    pub const MANUAL: Self = Self {
        before: Reached::Left,
        between: Reached::Nothing,
        after: Reached::Entered,
        flushed: Reached::Entered,
    };

    /// What QEMU 11.1.3 does in scalable mode. If it has the context entry cached it does not look
    /// at the present bit of the PASID entry: the write between is translated through the entry
    /// that is not present, and the translation is kept for the domain that is named in it.
    pub const PRESENCE_OVERLOOKED: Self =
        Self { between: Reached::Left, after: Reached::Left, ..Self::MANUAL };
}

/// One of the two domains: its tag, and where it leads [`IOVA`].
#[derive(Debug, Clone, Copy)]
struct Domain {
    tag: u16,
    page: PhysAddr,
}

const LEFT: Domain = Domain { tag: 6, page: PhysAddr::new(LANDING.start) };
const ENTERED: Domain = Domain { tag: 7, page: PhysAddr::new(LANDING.start + PAGE_BYTES) };
const IOVA: Iova = Iova::new(0x4000_0000);
const PAGE_BYTES: u64 = 4096;

/// The present bit of context and PASID entries, in their first word.
const PRESENT: u64 = 1;

impl Vtd {
    /// Takes the writing device from one domain to another.
    ///
    /// # Errors
    /// If the tables cannot be built or the emulator is gone.
    pub fn replace(&mut self) -> Result<Replacement> {
        self.region.reset();
        self.tables = Tables::new(self.tables.lookup().mode, &mut self.region)?;
        // the entry of the second domain is copied from one that is made as all others are
        let entered = self.enter(ENTERED)?;
        let left = self.enter(LEFT)?;
        self.registers.invalidate(&mut self.machine, self.region.ram())?;
        let before = self.reached()?;
        for (at, word) in left.iter().take(1) {
            self.poke(*at, word & !PRESENT)?;
        }
        self.forget()?;
        let between = self.reached()?;
        for (at, _) in &left {
            self.poke(*at, 0)?;
        }
        for ((at, _), (_, word)) in left.iter().zip(&entered).rev() {
            self.poke(*at, *word)?;
        }
        let after = self.reached()?;
        self.forget()?;
        Ok(Replacement { before, between, after, flushed: self.reached()? })
    }

    /// Leads the writing device into `domain`, in tables of its own; the words of the entry that
    /// does, and where they are.
    fn enter(&mut self, domain: Domain) -> Result<Vec<(PhysAddr, u64)>> {
        let bdf = self.engines.writer.bdf();
        let range = IovaRange::with_len(IOVA, PAGE_BYTES).ok_or_else(|| Error::build("no page"))?;
        let mapping = Mapping::new(range, domain.page, Access::RW).map_err(Error::build)?;
        let root = self.tables.single(&mut self.region, &mapping)?;
        self.tables.lead(&mut self.region, bdf, domain.tag, Some(root))?;
        let lookup = self.tables.lookup();
        let found = lookup.structures(self.region.ram(), bdf);
        let scalable = lookup.mode.is_scalable();
        let (entry, words) = if scalable { (found.entry, 8) } else { (found.context, 2) };
        let entry = entry.ok_or_else(|| Error::build("no entry"))?;
        let words = (0..words).map(|word| offset(entry, word * 8));
        Ok(words.map(|at| (at, self.load(at))).collect())
    }

    /// Has the unit forget what it has cached of the device in the first domain.
    fn forget(&mut self) -> Result<()> {
        let what = (self.tables.lookup().mode, self.engines.writer.bdf(), LEFT.tag);
        self.registers.invalidate_one(&mut self.machine, self.region.ram(), what)
    }

    /// What a write reaches now.
    fn reached(&mut self) -> Result<Reached> {
        let probe = Probe { iova: IOVA, write: true, token: 1 };
        let (machine, ram) = (&mut self.machine, self.region.ram());
        let effect = self.engines.access(machine, ram, &probe, &[LEFT.page, ENTERED.page])?;
        let _fault = self.registers.take_fault(machine)?;
        Ok(match effect {
            Effect::Moved(at) if at == LEFT.page => Reached::Left,
            Effect::Moved(_) => Reached::Entered,
            Effect::Nothing | Effect::Elsewhere => Reached::Nothing,
        })
    }
}

//! Page tables of the guest's own: x86-64 with four levels, or Arm's stage 1 with four levels of 4 KiB.

use viommu_client::{BindTable, Memory, Output, TableFormat};

use super::bench::{Flavour, Wrong};

/// Levels of either kind, and bits that each translates.
const LEVELS: u32 = 4;
const INDEX_BITS: u32 = 9;
const PAGE_BITS: u32 = 12;

/// x86-64 (SDM 3A, 4.5): present, writable, for users, accessed, dirty.
const X86_TABLE: u64 = 0b111;
const X86_READ: u64 = 0b101;
const X86_WRITABLE: u64 = 1 << 1;
pub(super) const X86_ACCESSED: u64 = 1 << 5;
pub(super) const X86_DIRTY: u64 = 1 << 6;

/// Arm (Arm ARM, D8.3): a table or a page; accessed, inner shareable, unprivileged, read-only.
const ARM_TABLE: u64 = 0b11;
const ARM_ACCESSED: u64 = 1 << 10;
const ARM_READ: u64 = 0b11 | ARM_ACCESSED | 3 << 8 | 1 << 7 | 1 << 6;
const ARM_READ_ONLY: u64 = 1 << 7;

/// TCR: 48 bits of input (T0SZ 16), cached and inner shareable walks, pages of 4 KiB, no second
/// table (EPD1), 48 bits of output (IPS).
const TCR: u64 = 16 | 1 << 8 | 1 << 10 | 3 << 12 | 1 << 23 | 0b101 << 32;
/// MAIR: attribute 0 is normal memory, cached.
const MAIR: u64 = 0xff;

/// A table in pages of the guest's memory.
#[derive(Debug)]
pub(super) struct GuestTable<M> {
    memory: M,
    flavour: Flavour,
    /// What is added to a page's address where an entry leads to it.
    offset: u64,
    /// Its pages, the root first.
    pages: Vec<u64>,
}

impl<M: Memory> GuestTable<M> {
    /// An empty table.
    ///
    /// # Errors
    /// There is no page left.
    pub(super) fn new(memory: M, flavour: Flavour, offset: u64) -> Result<Self, Wrong> {
        let root = memory.page()?;
        Ok(Self { memory, flavour, offset, pages: vec![root] })
    }

    /// The pages that it consists of, guest-physical.
    pub(super) fn pages(&self) -> &[u64] {
        &self.pages
    }

    /// BIND_TABLE of this table.
    pub(super) fn bind(&self, domain: u32, output: Output) -> BindTable {
        let root = self.offset + self.pages.first().copied().unwrap_or_default();
        BindTable { domain, format: self.format(), root, output }
    }

    /// Its kind, as BIND_TABLE says it.
    pub(super) const fn format(&self) -> TableFormat {
        match self.flavour {
            Flavour::Vtd => TableFormat::VtdFirst { five_levels: false },
            Flavour::SmmuV3 => TableFormat::ArmStage1 { tcr: TCR, mair: MAIR },
        }
    }

    /// The address of the entry for `iova` at `level` (0 holds pages); tables on the way are made.
    ///
    /// # Errors
    /// There is no page left.
    pub(super) fn entry_at(&mut self, iova: u64, level: u32) -> Result<u64, Wrong> {
        let mut table = self.pages.first().copied().unwrap_or_default();
        for above in (level + 1..LEVELS).rev() {
            let at = table + 8 * index(iova, above);
            let entry = self.memory.load_entry(at)?;
            table = if entry == 0 {
                let page = self.memory.page()?;
                self.pages.push(page);
                self.memory.store_entry(at, self.pointer(page + self.offset))?;
                page
            } else {
                address(entry) - self.offset
            };
        }
        Ok(table + 8 * index(iova, level))
    }

    /// An entry that leads to the table at `at`.
    pub(super) const fn pointer(&self, at: u64) -> u64 {
        match self.flavour {
            Flavour::Vtd => at | X86_TABLE,
            Flavour::SmmuV3 => at | ARM_TABLE,
        }
    }

    /// An entry of a page at `output`.
    pub(super) const fn leaf(&self, output: u64, writable: bool) -> u64 {
        match (self.flavour, writable) {
            (Flavour::Vtd, false) => output | X86_READ,
            (Flavour::Vtd, true) => output | X86_READ | X86_WRITABLE,
            (Flavour::SmmuV3, false) => output | ARM_READ,
            (Flavour::SmmuV3, true) => output | ARM_READ & !ARM_READ_ONLY,
        }
    }

    /// Lets the page at `iova` lead to `output`, for reading and writing; where its entry is.
    ///
    /// # Errors
    /// There is no page left.
    pub(super) fn set(&mut self, iova: u64, output: u64) -> Result<u64, Wrong> {
        let at = self.entry_at(iova, 0)?;
        self.memory.store_entry(at, self.leaf(output, true))?;
        Ok(at)
    }

    /// Writes any entry.
    ///
    /// # Errors
    /// There is no memory there.
    pub(super) fn store(&self, at: u64, entry: u64) -> Result<(), Wrong> {
        Ok(self.memory.store_entry(at, entry)?)
    }

    /// Reads an entry.
    ///
    /// # Errors
    /// There is no memory there.
    pub(super) fn load(&self, at: u64) -> Result<u64, Wrong> {
        Ok(self.memory.load_entry(at)?)
    }
}

/// The index of `iova` in a table of `level`.
const fn index(iova: u64, level: u32) -> u64 {
    iova >> (PAGE_BITS + INDEX_BITS * level) & ((1 << INDEX_BITS) - 1)
}

/// Where an entry leads.
const fn address(entry: u64) -> u64 {
    entry & 0x0000_ffff_ffff_f000
}

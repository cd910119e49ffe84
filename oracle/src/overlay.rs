//! Memory that remembers writes instead of making them.

use std::cell::RefCell;
use std::collections::BTreeMap;

use viommu_pgtable::{PhysAddr, TableMemory};

use crate::memory::GuestRam;

/// The machine's memory as our walker would leave it: accessed and dirty flags are set here only,
/// so that the emulator still finds them clear.
#[derive(Debug)]
pub struct Overlay<'r> {
    ram: &'r GuestRam,
    patches: BTreeMap<PhysAddr, u64>,
    repeat: Option<Repeat>,
    writes: RefCell<BTreeMap<PhysAddr, u64>>,
}

impl<'r> Overlay<'r> {
    /// `ram`, unchanged so far.
    #[must_use]
    pub const fn new(ram: &'r GuestRam) -> Self {
        let writes = RefCell::new(BTreeMap::new());
        Self { ram, patches: BTreeMap::new(), repeat: None, writes }
    }

    /// The same as if `word` had been at `at` all the time.
    #[must_use]
    pub fn with(mut self, at: PhysAddr, word: u64) -> Self {
        self.patches.insert(at, word);
        self
    }

    /// The same as if the first `once` bytes from `start` on filled the first `all`, again and
    /// again.
    #[must_use]
    pub const fn repeating(mut self, start: PhysAddr, once: u64, all: u64) -> Self {
        self.repeat = Some(Repeat { start: start.raw(), once, all });
        self
    }

    /// The same before anything was written.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self { patches: self.patches.clone(), repeat: self.repeat, ..Self::new(self.ram) }
    }

    /// The words written so far, and what they are now.
    #[must_use]
    pub fn writes(&self) -> BTreeMap<PhysAddr, u64> {
        self.writes.borrow().clone()
    }

    /// The words written, and what they are now.
    #[must_use]
    pub fn into_writes(self) -> BTreeMap<PhysAddr, u64> {
        self.writes.into_inner()
    }
}

/// A range whose first part is seen everywhere in it.
#[derive(Debug, Clone, Copy)]
struct Repeat {
    start: u64,
    once: u64,
    all: u64,
}

impl Repeat {
    fn place(self, at: PhysAddr) -> PhysAddr {
        match at.raw().checked_sub(self.start) {
            Some(inside) if inside < self.all => PhysAddr::new(self.start + inside % self.once),
            _ => at,
        }
    }
}

impl TableMemory for Overlay<'_> {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        let at = self.repeat.map_or(at, |repeat| repeat.place(at));
        let written = self.writes.borrow().get(&at).copied();
        written.or_else(|| self.patches.get(&at).copied()).or_else(|| self.ram.load(at))
    }

    fn compare_exchange(&self, at: PhysAddr, old: u64, new: u64) -> Option<Result<(), u64>> {
        let found = self.load(at)?;
        if found != old {
            return Some(Err(found));
        }
        self.writes.borrow_mut().insert(at, new);
        Some(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Window;

    fn at(raw: u64) -> PhysAddr {
        PhysAddr::new(raw)
    }

    #[test]
    fn writes_and_patches_stay_above_the_memory() {
        let ram = GuestRam::new(&[Window { start: 0, bytes: 0x4000, offset: 0 }]).unwrap();
        ram.store(at(8), 1).unwrap();
        let overlay = Overlay::new(&ram).with(at(16), 2);
        assert_eq!(overlay.compare_exchange(at(8), 1, 5), Some(Ok(())));
        assert_eq!(overlay.compare_exchange(at(16), 9, 5), Some(Err(2)));
        assert_eq!([at(8), at(16)].map(|at| overlay.load(at)), [Some(5), Some(2)]);
        assert_eq!([at(8), at(16)].map(|at| ram.load(at)), [Some(1), Some(0)]);
        assert_eq!(overlay.fresh().load(at(8)), Some(1));
        assert_eq!(overlay.into_writes(), BTreeMap::from([(at(8), 5)]));
    }

    #[test]
    fn a_repeated_range_shows_its_first_part_everywhere() {
        let ram = GuestRam::new(&[Window { start: 0, bytes: 0x5000, offset: 0 }]).unwrap();
        for page in 0..5 {
            ram.store(at(page * 0x1000 + 8), page).unwrap();
        }
        let overlay = Overlay::new(&ram).repeating(at(0x1000), 0x1000, 0x3000);
        let seen: Vec<_> =
            (0..5).map(|page| overlay.load(at(page * 0x1000 + 8)).unwrap()).collect();
        assert_eq!(seen, [0, 1, 1, 1, 4]);
    }
}

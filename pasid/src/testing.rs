//! Memory for tests: the daemon's, the guest's, and the guest's seen through a second level.

use std::cell::RefCell;
use std::collections::BTreeMap;

use viommu_pgtable::{Fault, FaultKind, PhysAddr, Purpose, Stage, TableMemory};

use crate::smmuv3::Stage2;
use crate::{Space, Spaces};

/// Where tables begin.
pub(crate) const TABLE_BASE: u64 = 1 << 47;
/// The second level adds this to an address, and knows none from here on.
pub(crate) const SECOND_LEVEL_OFFSET: u64 = 1 << 40;

/// The three spaces. What was not written is 0; there is memory everywhere below 2^48.
#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) tables: Words,
    pub(crate) guest: Words,
    /// Every load, in order.
    pub(crate) loads: RefCell<Vec<(Space, u64)>>,
}

/// Some words.
#[derive(Debug, Default)]
pub(crate) struct Words(BTreeMap<u64, u64>);

impl Words {
    pub(crate) fn write(&mut self, at: u64, words: &[u64]) {
        self.0.extend((at..).step_by(8).zip(words.iter().copied()));
    }

    fn read(&self, at: PhysAddr) -> Option<u64> {
        assert!(at.is_aligned(3), "load at {at}");
        (at.raw() >> 48 == 0).then(|| self.0.get(&at.raw()).copied().unwrap_or(0))
    }
}

/// What the second level says to an address that it does not know.
pub(crate) fn refused(at: PhysAddr) -> Fault {
    let (stage, purpose) = (Stage::Second, Purpose::TableEntry);
    let (input, entry_at) = (at.raw(), PhysAddr::new(0));
    Fault { stage, purpose, input, level: 0, entry_at, kind: FaultKind::NotPresent }
}

impl TableMemory for World {
    fn load(&self, at: PhysAddr) -> Option<u64> {
        self.loads.borrow_mut().push((Space::Tables, at.raw()));
        self.tables.read(at)
    }
}

impl Spaces for World {
    type Tables = Self;

    fn tables(&self) -> &Self {
        self
    }

    fn table_base(&self) -> PhysAddr {
        PhysAddr::new(TABLE_BASE)
    }

    fn load_guest(&self, at: PhysAddr) -> Option<u64> {
        self.loads.borrow_mut().push((Space::Guest, at.raw()));
        self.guest.read(at).filter(|_| at.raw() < TABLE_BASE)
    }

    fn load_through(&self, _: &Stage2, at: PhysAddr) -> Result<Option<u64>, Fault> {
        self.loads.borrow_mut().push((Space::SecondLevel, at.raw()));
        let below = (at.raw() < SECOND_LEVEL_OFFSET).then_some(at.raw() + SECOND_LEVEL_OFFSET);
        below.map(|at| self.guest.read(PhysAddr::new(at))).ok_or(refused(at))
    }
}

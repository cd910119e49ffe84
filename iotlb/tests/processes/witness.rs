//! An honest device of another endpoint, which sees to it that nothing of its own changes.

use viommu_iotlb::{Device, DeviceEvent, FaultClass, FaultRecord, Reader};
use viommu_pasid::vtd::{AddressWidth, PasidEntry, PasidTable, RootTable, Translation};
use viommu_pasid::{EndpointId, Structures};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr, Table, VtdSecond};

use crate::support::{Daemon, World};

/// Whose device it is; the hostile ones forge this number, too.
pub(crate) const WITNESS: EndpointId = EndpointId::new(0x20);

/// The page that it may access, and where that leads.
const MAPPED: (u64, u64) = (0x1000, 0x9_0000_0000);

/// A page that it may not access; the next report is of the next page.
const UNMAPPED: u64 = 0x100_0000;

/// An honest device of [`WITNESS`].
pub(crate) struct Witness {
    reader: Reader,
    _device: Device,
    /// Faults that it reported.
    reported: u64,
}

/// Attaches [`WITNESS`] to a domain of its own, and listens for its device.
fn add(world: &mut World, socket: &std::path::Path) {
    let store = world.hub.region_mut();
    let mut table = Table::new(VtdSecond::new(48, 1 << 12).unwrap(), store).unwrap();
    let range = IovaRange::with_len(Iova::new(MAPPED.0), 0x1000).unwrap();
    let mapping = Mapping::new(range, PhysAddr::new(MAPPED.1), Access::RW).unwrap();
    table.map(store, &mapping).unwrap();
    let pasids = PasidTable::new(store, 0).unwrap();
    let (root, width) = (table.root(), AddressWidth::Bits48);
    let translation = Translation::SecondLevel { root, width };
    pasids.set(store, 0, &PasidEntry { domain_tag: 9, translation }).unwrap();
    let root = RootTable::new(store).unwrap();
    root.set_context(store, WITNESS.bdf(), &pasids.context()).unwrap();
    let structures = Structures::Vtd { root: root.root() };
    world.hub.listen(WITNESS, structures, 0, socket).unwrap();
}

impl Witness {
    pub(crate) fn new(daemon: &Daemon) -> Self {
        let socket = daemon.socket.with_file_name("witness");
        let theirs = socket.clone();
        daemon.run(move |world| add(world, &theirs));
        let device = Device::connect(socket).unwrap();
        Self { reader: device.reader().unwrap(), _device: device, reported: 0 }
    }

    /// Its translations are right, also while the daemon waits for somebody.
    pub(crate) fn translates(&self) {
        let guard = self.reader.enter().unwrap();
        let mut pieces = guard.translate(None, Iova::new(MAPPED.0 + 8), 16, Access::RW);
        let led = pieces.next().unwrap().map(|piece| (piece.gpa.raw(), piece.len));
        assert_eq!((led, pieces.next()), (Ok((MAPPED.1 + 8, 16)), None));
        let missing = Iova::new(UNMAPPED);
        assert!(guard.translate(None, missing, 1, Access::READ).next().unwrap().is_err());
    }

    /// Its translations are right, a fault that it reports arrives as it is, and no other arrives in
    /// its name.
    pub(crate) fn is_well(&mut self, daemon: &Daemon) {
        self.translates();
        let guard = self.reader.enter().unwrap();
        let iova = Iova::new(UNMAPPED + (self.reported << 12));
        let fault = guard.translate(None, iova, 1, Access::WRITE).next().unwrap().unwrap_err();
        assert!(guard.report(&fault));
        drop(guard);
        self.reported += 1;
        let told = |n: u64| record(UNMAPPED + (n << 12));
        let events = daemon.events(|events| events.contains(&told(self.reported - 1)));
        let ours =
            |event: &&DeviceEvent| matches!(event, DeviceEvent::Fault { endpoint: WITNESS, .. });
        let heard: Vec<_> = events.iter().filter(ours).copied().collect();
        assert_eq!(heard, (0..self.reported).map(told).collect::<Vec<_>>());
    }
}

fn record(iova: u64) -> DeviceEvent {
    let (iova, access, class) = (Iova::new(iova), Access::WRITE, FaultClass::Mapping);
    let record = FaultRecord { pasid: None, iova, access, class, second_level: false };
    DeviceEvent::Fault { endpoint: WITNESS, record }
}

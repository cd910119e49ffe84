//! Whom a change waits for: pins of the requesters that go through what was withdrawn, and no
//! others.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::mpsc::channel;
use std::time::Duration;

use viommu_backend::{
    DevicePlace, DomainId, HostIommu, Output, Role, SoftwareConfig, SoftwareIommu, Target,
};
use viommu_iotlb::{Arch, Device, HubConfig, StuckPolicy};
use viommu_pasid::smmuv3::{ContextControls, ContextDescriptor, Stage1Table, Stage1Tables};
use viommu_pasid::vtd::{FirstControls, FirstLevel};
use viommu_pasid::{EndpointId, FirstTable, Pasid, Requester};
use viommu_pgtable::{Access, ArmStage1, Granule, Iova, IovaRange, Mapping, PhysAddr};

const ENDPOINT: EndpointId = EndpointId::new(0x20);
const PAGE: u64 = 4096;
/// How long a drain waits for the pins of these tests, which nobody drops.
const STUCK: Duration = Duration::from_millis(5);

/// Domains: [`PLAIN`] has mappings and PASIDs 1 and 2; [`CHILD`], a table bound through [`PARENT`],
/// has PASIDs 11 and 12 of the same endpoint on VT-d, alone there on SMMUv3; so has [`OWN`] 21, on
/// VT-d.
const PLAIN: DomainId = DomainId::new(1);
const PARENT: DomainId = DomainId::new(2);
const CHILD: DomainId = DomainId::new(3);
const OWN: DomainId = DomainId::new(4);

fn tagged(pasid: u32) -> Requester {
    Requester { endpoint: ENDPOINT, pasid: Pasid::new(pasid) }
}

fn range(page: u64, pages: u64) -> IovaRange {
    IovaRange::with_len(Iova::new(page * PAGE), pages * PAGE).unwrap()
}

fn mapping(page: u64) -> Mapping {
    Mapping::new(range(page, 1), PhysAddr::new(page * PAGE), Access::RW).unwrap()
}

/// A table somewhere in guest memory: nothing is read from it here.
fn table(arch: Arch) -> FirstTable {
    let root = PhysAddr::new(0x10_0000);
    match arch {
        Arch::Vtd => {
            let controls = FirstControls::empty();
            FirstTable::Vtd(FirstLevel { root, five_levels: false, controls })
        }
        Arch::SmmuV3 => {
            let format = ArmStage1::new(Granule::K4, 48, 48).unwrap();
            let tables = Stage1Tables::lower_only(Stage1Table::new(root, format).unwrap());
            let controls = ContextControls::empty();
            FirstTable::Arm(ContextDescriptor { tables, asid: 0, mair: 0, controls })
        }
    }
}

struct Rig {
    host: SoftwareIommu,
    device: Device,
    arch: Arch,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new(arch: Arch) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let (stuck, policy) = (STUCK, StuckPolicy::Disconnect);
        let table_base = PhysAddr::new(1 << 46);
        let hub = HubConfig { arch, table_base, stuck, policy, ..HubConfig::default() };
        let config = SoftwareConfig { input_bits: 48, page_size_mask: 0x4020_1000, hub };
        let mut host = SoftwareIommu::new(config).unwrap();
        let place =
            DevicePlace { endpoint: ENDPOINT, pasid_bits: 10, socket: Some(socket.clone()) };
        host.add_endpoint(&place).unwrap();
        let (done, device) = channel();
        std::thread::spawn(move || done.send(Device::connect(socket)).unwrap());
        let device = loop {
            host.dispatch(&mut |_| {});
            if let Ok(device) = device.recv_timeout(Duration::from_millis(1)) {
                break device.unwrap();
            }
        };
        let mut rig = Self { host, device, arch, _folder: folder };
        rig.fill();
        rig.host.sync();
        rig
    }

    fn fill(&mut self) {
        for domain in [PLAIN, PARENT, CHILD, OWN] {
            self.host.create_domain(domain).unwrap();
        }
        for domain in [PLAIN, PARENT, OWN] {
            let mappings = [mapping(5), mapping(9)];
            mappings.iter().for_each(|new| self.host.map(domain, new).unwrap());
            let mut mappings = mappings.into_iter();
            self.host.prepare(domain, Role::SecondLevel, &mut mappings).unwrap();
        }
        self.host.bind(CHILD, &table(self.arch), Output::Through(PARENT)).unwrap();
        let to = |domain| Target::Domain(domain);
        for pasid in [11, 12] {
            self.host.attach(tagged(pasid), to(CHILD)).unwrap();
        }
        if self.arch == Arch::Vtd {
            for pasid in [1, 2] {
                self.host.attach(tagged(pasid), to(PLAIN)).unwrap();
            }
            self.host.bind(OWN, &table(self.arch), Output::Through(OWN)).unwrap();
            self.host.attach(tagged(21), to(OWN)).unwrap();
        }
    }

    /// Whether `change` waits for a pin of page 5 of `pasid`.
    fn waits(mut self, pasid: u32, change: impl FnOnce(&mut SoftwareIommu)) -> bool {
        let reader = self.device.reader().unwrap();
        let guard = reader.enter().unwrap();
        let pin = guard.pin(Pasid::new(pasid), range(5, 1)).unwrap();
        drop(guard);
        change(&mut self.host);
        self.host.sync();
        drop(pin);
        self.host.hub().counters().cut_off != 0
    }
}

/// What is done, and the PASIDs of which page 5 is then waited for.
type Case = (fn(&mut SoftwareIommu), &'static [u32]);

const VTD: [Case; 11] = [
    (|host| host.unmap(PLAIN, &mapping(5)), &[1, 2]),
    (|host| host.unmap(PLAIN, &mapping(9)), &[]),
    // which inputs of a bound table lead there is not known
    (|host| host.unmap(PARENT, &mapping(9)), &[11, 12]),
    (|host| host.unmap(OWN, &mapping(9)), &[21]),
    (|host| host.invalidate(CHILD, None), &[11, 12]),
    (|host| host.invalidate(CHILD, Some(range(4, 2))), &[11, 12]),
    (|host| host.invalidate(CHILD, Some(range(6, 2))), &[]),
    (|host| host.unbind(OWN).unwrap(), &[21]),
    (|host| host.bind(PLAIN, &table(Arch::Vtd), Output::Through(PLAIN)).unwrap(), &[1, 2]),
    (|host| host.attach(tagged(11), Target::Domain(PLAIN)).unwrap(), &[11]),
    (|host| host.attach(tagged(2), Target::Blocked).unwrap(), &[2]),
];

const SMMUV3: [Case; 5] = [
    (|host| host.unmap(PARENT, &mapping(9)), &[11, 12]),
    (|host| host.unmap(OWN, &mapping(5)), &[]),
    (|host| host.invalidate(CHILD, Some(range(5, 1))), &[11, 12]),
    (|host| host.invalidate(CHILD, Some(range(6, 1))), &[]),
    (|host| host.attach(tagged(11), Target::Blocked).unwrap(), &[11]),
];

#[test]
fn a_change_waits_for_the_pins_of_whom_it_concerns_and_no_others() {
    for (arch, cases) in [(Arch::Vtd, &VTD[..]), (Arch::SmmuV3, &SMMUV3[..])] {
        for (nth, (change, waited_for)) in cases.iter().enumerate() {
            for pasid in [1, 2, 11, 12, 21] {
                let waits = Rig::new(arch).waits(pasid, change);
                assert_eq!(waits, waited_for.contains(&pasid), "{arch:?} {nth} {pasid}");
            }
        }
    }
}

#[test]
fn of_many_pasids_of_one_domain_each_is_waited_for() {
    for pasid in [1, 200] {
        let mut rig = Rig::new(Arch::Vtd);
        for pasid in 100..=200 {
            rig.host.attach(tagged(pasid), Target::Domain(PLAIN)).unwrap();
        }
        rig.host.sync();
        assert!(rig.waits(pasid, |host| host.unmap(PLAIN, &mapping(5))), "{pasid}");
    }
}

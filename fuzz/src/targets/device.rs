//! A device process that lies, beside one that does not, at one hub.

use std::path::PathBuf;
use std::sync::mpsc::channel;
use std::time::Duration;

use viommu_iotlb::{
    AccessFault, Device, DeviceEvent, FaultRecord, Hub, HubConfig, Reader, State, StuckPolicy,
    Withdrawn,
};
use viommu_pasid::vtd::{AddressWidth, PasidEntry, PasidTable, RootTable, Translation};
use viommu_pasid::{EndpointId, Requester, Structures};
use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr, Table, VtdSecond};

use super::raw_device::{Caller, Raw};
use crate::{Input, Target, Trace};

pub(crate) const TARGET: Target = Target {
    name: "device",
    claim: "a device process that lies harms itself only: not the hub, nor another device",
    longest: 1 << 9,
    run,
};

const HONEST: EndpointId = EndpointId::new(0x08);
const LIAR: EndpointId = EndpointId::new(0x10);

/// Pages that come and go.
const PAGES: usize = 4;

/// How long the hub waits for the liar.
const STUCK: Duration = Duration::from_millis(1);

/// Events of one dispatch, at most: 64 that are ready, each a ring of 256 records at most, and the last
/// words of as many that are gone.
const MOST_EVENTS: usize = 2 * 64 * 257;

fn run(bytes: &[u8], trace: &mut Trace) {
    let mut input = Input::new(bytes);
    let mut rig = Rig::new();
    while !input.is_empty() {
        rig.step(&mut input, trace);
    }
    rig.find_all();
}

struct Rig {
    hub: Hub,
    table: Table<VtdSecond>,
    mapped: [bool; PAGES],
    reader: Reader,
    raw: Option<Raw>,
    /// What the honest device said, and the hub has not told of yet.
    reported: Vec<FaultRecord>,
    liar: PathBuf,
    _device: Device,
    _folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        let table_bytes = 1 << 20;
        let policy = StuckPolicy::Disconnect;
        let config = HubConfig { table_bytes, stuck: STUCK, policy, ..HubConfig::default() };
        let mut hub = Hub::new(config).unwrap();
        let store = hub.region_mut();
        let table = Table::new(VtdSecond::new(48, 1 << 12).unwrap(), store).unwrap();
        let root = RootTable::new(store).unwrap();
        let width = AddressWidth::Bits48;
        let translation = Translation::SecondLevel { root: table.root(), width };
        for endpoint in [HONEST, LIAR] {
            let pasids = PasidTable::new(store, 4).unwrap();
            pasids.set(store, 0, &PasidEntry { domain_tag: 1, translation }).unwrap();
            root.set_context(store, endpoint.bdf(), &pasids.context()).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let structures = Structures::Vtd { root: root.root() };
        let [honest, liar] = ["honest", "liar"].map(|name| folder.path().join(name));
        hub.listen(HONEST, structures, 4, &honest).unwrap();
        hub.listen(LIAR, structures, 4, &liar).unwrap();
        let device = connect(&mut hub, honest);
        let reader = device.reader().unwrap();
        let mut rig = Self {
            hub,
            table,
            mapped: [false; PAGES],
            reader,
            raw: None,
            reported: Vec::new(),
            liar,
            _device: device,
            _folder: folder,
        };
        rig.join();
        rig
    }

    /// The liar connects, anew if it was connected.
    fn join(&mut self) {
        self.raw = None;
        let caller = Caller::new(&self.liar);
        // one to accept, one to greet
        self.dispatch();
        self.dispatch();
        self.raw = caller.welcomed();
        assert!(self.raw.is_some() || self.hub.is_cut_off(LIAR), "refused for nothing");
    }

    fn step(&mut self, input: &mut Input<'_>, trace: &mut Trace) {
        match (input.u8() % 16, &self.raw) {
            (0..5, Some(raw)) => raw.forge(input),
            (5 | 6, Some(raw)) => raw.ring(),
            (7 | 8, Some(raw)) => raw.say(input),
            (9, _) => self.join(),
            (10, _) => self.hub.readmit_all(),
            (11, _) => {
                let states = [State::Running, State::Running, State::Parked, State::CutOff];
                self.hub.set_state(LIAR, input.pick(&states));
            }
            (12, _) => self.change(u64::from(input.u8()) % PAGES as u64),
            (13, _) => self.report(),
            (14, _) => self.dispatch(),
            _ => self.drain(),
        }
        let counters = self.hub.counters();
        let some = |count: u64| count.min(3);
        let seen = (some(counters.faults), some(counters.bad_faults), some(counters.cut_off));
        trace.reached((
            seen,
            some(counters.refused),
            self.hub.is_cut_off(LIAR),
            self.raw.is_some(),
        ));
    }

    /// Takes what there is; nobody speaks for somebody else.
    fn dispatch(&mut self) {
        let (mut events, mut heard) = (0, Vec::new());
        self.hub.dispatch(&mut |event| {
            events += 1;
            match event {
                DeviceEvent::Fault { endpoint: HONEST, record } => heard.push(record),
                DeviceEvent::Connected { endpoint }
                | DeviceEvent::Disconnected { endpoint }
                | DeviceEvent::FunctionReset { endpoint }
                | DeviceEvent::FunctionStarted { endpoint }
                | DeviceEvent::Fault { endpoint, .. } => {
                    assert!(endpoint == LIAR || matches!(event, DeviceEvent::Connected { .. }));
                }
            }
        });
        assert!(events <= MOST_EVENTS, "{events} events in one dispatch");
        assert!(self.reported.starts_with(&heard), "{heard:?} was never said");
        self.reported.drain(..heard.len());
    }

    /// Whoever waits too long is the liar.
    fn drain(&mut self) {
        let report = self.hub.drain();
        assert_eq!(report.killed, 0);
        assert!(!self.hub.is_cut_off(HONEST), "{report:?}");
        self.find_all();
    }

    /// Maps a page, or unmaps it and waits until nobody uses it.
    fn change(&mut self, page: u64) {
        let range = IovaRange::with_len(Iova::new(page << 12), 0x1000).unwrap();
        let (table, store) = (&mut self.table, self.hub.region_mut());
        let mapped = &mut self.mapped[usize::try_from(page).unwrap()];
        *mapped = !*mapped;
        if *mapped {
            let mapping = Mapping::new(range, output(page), Access::RW).unwrap();
            table.map(store, &mapping).unwrap();
            return;
        }
        table.unmap(store, range).unwrap();
        for endpoint in [HONEST, LIAR] {
            let requester = Requester::rid(endpoint);
            self.hub.withdraw(Withdrawn::Range { requester, range });
        }
        self.drain();
    }

    /// The honest device finds what is mapped, and nothing else.
    fn find_all(&self) {
        let guard = self.reader.enter().unwrap();
        for (page, mapped) in (0..).zip(self.mapped) {
            let iova = Iova::new(page << 12);
            let found = guard.translate(None, iova, 8, Access::WRITE).next().unwrap();
            let found = found.ok().map(|piece| piece.gpa);
            assert_eq!(found, mapped.then_some(output(page)), "page {page}");
        }
    }

    /// The honest device says of an access past all pages.
    fn report(&mut self) {
        let guard = self.reader.enter().unwrap();
        let iova = Iova::new((PAGES as u64) << 12 | self.reported.len() as u64);
        let fault: AccessFault =
            guard.translate(None, iova, 8, Access::READ).next().unwrap().unwrap_err();
        if guard.report(&fault) {
            self.reported.push(FaultRecord::from(&fault));
        }
    }
}

const fn output(page: u64) -> PhysAddr {
    PhysAddr::new((page + 0x100) << 12)
}

/// Connects an honest device; its library waits for the hub's answer on a thread of its own.
fn connect(hub: &mut Hub, path: PathBuf) -> Device {
    let (done, device) = channel();
    std::thread::spawn(move || done.send(Device::connect(path).unwrap()));
    loop {
        hub.dispatch(&mut |_| {});
        if let Ok(device) = device.recv_timeout(Duration::from_micros(100)) {
            return device;
        }
    }
}

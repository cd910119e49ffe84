//! A reader and tables that a guest has bound, in real guest memory.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use viommu_iotlb::{
    AccessFault, FaultReason, FaultRecord, Guard, GuestTables, HubConfig, IovaMemory, Withdrawn,
};
use viommu_pasid::vtd::{AddressWidth, FirstControls, FirstLevel, SecondLevel, Translation};
use viommu_pasid::{Pasid, Requester};
use viommu_pgtable::{Access, FaultKind, Iova, PhysAddr, Purpose, Stage};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

use crate::support::{Daemon, ENDPOINT};

const MIB: u64 = 1 << 20;
const PAGE: u64 = 0x1000;

/// Bytes of guest memory.
const MEMORY: u64 = 16 * MIB;
/// What the second level adds to an address; it knows those below, for reading and writing, but for
/// [`READ_ONLY`] and [`HOLE`].
const SHIFT: u64 = 8 * MIB;
const READ_ONLY: u64 = 0x30_0000;
const HOLE: u64 = 0x40_0000;

/// Where the guest's tables are, as it knows them, root first.
const TABLES: [u64; 4] = [0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000];

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const ALL: u64 = PRESENT | WRITE | USER;

fn seven() -> Option<Pasid> {
    Pasid::new(7)
}

/// Guest memory, and how the guest's addresses lead into it.
struct Guest {
    memory: GuestMemoryMmap,
    shift: u64,
}

impl Guest {
    /// With tables for the first 2 MiB, which hold nothing.
    fn new(shift: u64) -> Self {
        let bytes = usize::try_from(MEMORY).unwrap();
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), bytes)]).unwrap();
        let guest = Self { memory, shift };
        for pair in TABLES.windows(2) {
            let [upper, lower] = pair else { continue };
            guest.put(*upper, lower | ALL);
        }
        guest
    }

    fn put(&self, at: u64, word: u64) {
        self.memory.store(word, GuestAddress(at + self.shift), Ordering::Release).unwrap();
    }

    fn get(&self, at: u64) -> u64 {
        self.memory.load(GuestAddress(at + self.shift), Ordering::Acquire).unwrap()
    }

    /// Where the entry of the page `page` is.
    const fn leaf_of(page: u64) -> u64 {
        TABLES[3] + page * 8
    }

    fn map(&self, page: u64, to: u64, flags: u64) {
        self.put(Self::leaf_of(page), to | flags);
    }

    /// Which levels have their accessed flag set, the root's first, and the dirty flag of the page.
    fn flags(&self, page: u64) -> ([bool; 4], bool) {
        let [a, b, c] = [TABLES[0], TABLES[1], TABLES[2]].map(|at| self.get(at) & ACCESSED != 0);
        let leaf = self.get(Self::leaf_of(page));
        ([a, b, c, leaf & ACCESSED != 0], leaf & DIRTY != 0)
    }

    fn ask(&self, guard: &Guard<'_>, iova: u64, access: Access) -> Result<u64, AccessFault> {
        let tables = GuestTables::new(&self.memory);
        let mut pieces = guard.translate_with(&tables, seven(), Iova::new(iova), 8, access);
        pieces.next().unwrap().map(|piece| piece.gpa.raw())
    }
}

const FIRST: FirstLevel = FirstLevel {
    root: PhysAddr::new(TABLES[0]),
    five_levels: false,
    controls: FirstControls::empty(),
};

/// A daemon in which PASID 7 has a bound table with guest-physical output.
fn shared() -> (Daemon, Guest) {
    let daemon = Daemon::start(HubConfig::default());
    daemon.run(|world| {
        world.set(seven(), Some(Translation::FirstLevel(FIRST)));
        world.hub.drain();
    });
    (daemon, Guest::new(0))
}

/// A daemon in which PASID 7 has a bound table above a second level.
fn nested() -> (Daemon, Guest) {
    let daemon = Daemon::start(HubConfig::default());
    daemon.run(|world| {
        world.map(0, READ_ONLY, SHIFT, Access::RW);
        world.map(READ_ONLY, HOLE - READ_ONLY, SHIFT + READ_ONLY, Access::READ);
        let second = SecondLevel { root: world.table.root(), width: AddressWidth::Bits48 };
        world.set(seven(), Some(Translation::Nested { first: FIRST, second }));
        world.hub.drain();
    });
    (daemon, Guest::new(SHIFT))
}

/// Has readers forget what they know.
fn forget(daemon: &Daemon) {
    daemon.run(|world| {
        world.hub.withdraw(Withdrawn::Everything);
        world.hub.drain();
    });
}

fn both() -> [(Daemon, Guest); 2] {
    [shared(), nested()]
}

#[test]
fn a_bound_table_leads_to_guest_memory_directly_or_through_the_second_level() {
    for (daemon, guest) in both() {
        guest.map(5, 0x20_0000, ALL);
        guest.map(6, 0x20_1000, ALL);
        let device = daemon.connect();
        let reader = device.reader().unwrap();
        let guard = reader.enter().unwrap();
        for _cold_then_warm in 0..2 {
            assert_eq!(guest.ask(&guard, 0x5010, Access::RW), Ok(0x20_0010 + guest.shift));
        }
        let iovas = IovaMemory::new(&guard, seven(), &guest.memory);
        iovas.write_slice(b"across two pages", GuestAddress(0x5ff8)).unwrap();
        let mut seen = [0; 16];
        guest.memory.read_slice(&mut seen, GuestAddress(0x20_0ff8 + guest.shift)).unwrap();
        assert_eq!(&seen, b"across two pages");
        assert!(iovas.check_range(GuestAddress(0x5000), 0x2000, Permissions::ReadWrite));
        assert!(!iovas.check_range(GuestAddress(0x5000), 0x2001, Permissions::ReadWrite));
        // who names no memory has none
        let blind = guard.translate(seven(), Iova::new(0x9000), 8, Access::READ).next().unwrap();
        assert!(blind.is_err());
    }
}

#[test]
fn accessed_is_set_on_the_way_and_dirty_before_the_first_write_though_reads_are_remembered() {
    for (daemon, guest) in both() {
        guest.map(5, 0x20_0000, ALL);
        let device = daemon.connect();
        let reader = device.reader().unwrap();
        let guard = reader.enter().unwrap();
        assert_eq!(guest.flags(5), ([false; 4], false));
        for _cold_then_warm in 0..2 {
            guest.ask(&guard, 0x5000, Access::READ).unwrap();
            assert_eq!(guest.flags(5), ([true; 4], false));
        }
        for _cold_then_warm in 0..2 {
            guest.ask(&guard, 0x5000, Access::WRITE).unwrap();
            assert_eq!(guest.flags(5), ([true; 4], true));
        }
    }
}

#[test]
fn a_flag_that_the_second_level_lets_nobody_write_refuses_the_access() {
    let (daemon, guest) = nested();
    guest.put(TABLES[2], READ_ONLY | ALL | ACCESSED);
    guest.put(READ_ONLY + 8 * 5, 0x20_0000 | ALL);
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let fault = guest.ask(&guard, 0x5000, Access::READ).unwrap_err();
    let FaultReason::SecondLevel(walk) = fault.reason else { panic!("{fault:?}") };
    assert_eq!((walk.purpose, walk.input), (Purpose::TableEntry, READ_ONLY + 8 * 5));
    assert_eq!(guest.get(READ_ONLY + 8 * 5) & ACCESSED, 0);
}

#[test]
fn an_entry_made_present_is_seen_at_once_and_one_taken_away_after_the_drain() {
    for (daemon, guest) in both() {
        let device = daemon.connect();
        let reader = device.reader().unwrap();
        let guard = reader.enter().unwrap();
        assert!(guest.ask(&guard, 0x5000, Access::READ).is_err());
        guest.map(5, 0x20_0000, ALL);
        assert_eq!(guest.ask(&guard, 0x5000, Access::READ), Ok(0x20_0000 + guest.shift));
        drop(guard);
        guest.map(5, 0, 0);
        // INVALIDATE
        daemon.run(|world| {
            let requester = Requester { endpoint: ENDPOINT, pasid: seven() };
            world.hub.withdraw(Withdrawn::Requester(requester));
            world.hub.drain();
        });
        let guard = reader.enter().unwrap();
        assert!(guest.ask(&guard, 0x5000, Access::READ).is_err());
    }
}

/// What is wrong with a table, and what a read of page 5 meets there.
type Wrong = (fn(&Guest), FaultKind);

const FIRST_LEVEL_FAULTS: [Wrong; 5] = [
    (|_| {}, FaultKind::NotPresent),
    (|guest| guest.put(TABLES[1], 0), FaultKind::NotPresent),
    // a page of 512 GiB; one of 2 MiB that is not aligned
    (|guest| guest.put(TABLES[0], TABLES[1] | ALL | 1 << 7), FaultKind::Malformed),
    (|guest| guest.put(TABLES[2], 0x20_2000 | ALL | 1 << 7), FaultKind::Malformed),
    // a page of the guest's privileged software
    (
        |guest| guest.map(5, 0x20_0000, PRESENT | WRITE),
        FaultKind::Denied { granted: Access::empty(), wanted: Access::READ },
    ),
];

#[test]
fn what_is_wrong_in_the_guests_own_table_is_a_fault_of_the_first_level() {
    for (daemon, guest) in both() {
        let device = daemon.connect();
        let reader = device.reader().unwrap();
        let guard = reader.enter().unwrap();
        for (break_it, kind) in FIRST_LEVEL_FAULTS {
            let guest = Guest::new(guest.shift);
            break_it(&guest);
            let fault = guest.ask(&guard, 0x5000, Access::READ).unwrap_err();
            let FaultReason::Mapping(walk) = fault.reason else { panic!("{fault:?}") };
            assert_eq!((walk.stage, walk.purpose), (Stage::First, Purpose::Access));
            assert_eq!((walk.input, walk.kind), (0x5000, kind));
            assert_eq!((fault.pasid, FaultRecord::from(&fault).second_level), (seven(), false));
        }
        let fault = guest.ask(&guard, 1 << 47, Access::READ).unwrap_err();
        let FaultReason::Mapping(walk) = fault.reason else { panic!("{fault:?}") };
        assert_eq!((walk.stage, walk.kind), (Stage::First, FaultKind::InputTooWide));
    }
}

#[test]
fn what_the_second_level_refuses_is_told_as_its_fault_with_what_it_was_for() {
    let (daemon, _) = nested();
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let base = HubConfig::default().table_base.raw();
    let table = Purpose::TableEntry;
    // the output; a table in a hole; one where the region is
    let cases = [
        (Guest::leaf_of(5), HOLE, Purpose::Access),
        (TABLES[1], HOLE, table),
        (TABLES[0], base, table),
    ];
    for (at, input, purpose) in cases {
        let guest = Guest::new(SHIFT);
        guest.put(at, input | ALL);
        let fault = guest.ask(&guard, 0x5000, Access::READ).unwrap_err();
        let FaultReason::SecondLevel(walk) = fault.reason else { panic!("{fault:?}") };
        assert_eq!((walk.stage, walk.purpose), (Stage::Second, purpose), "{walk:?}");
        assert_eq!(walk.input & !0xfff, input);
        assert!(FaultRecord::from(&fault).second_level);
    }
    // a write to what may only be read below
    let guest = Guest::new(SHIFT);
    guest.map(5, READ_ONLY, ALL);
    assert_eq!(guest.ask(&guard, 0x5000, Access::READ), Ok(READ_ONLY + SHIFT));
    let fault = guest.ask(&guard, 0x5000, Access::WRITE).unwrap_err();
    let FaultReason::SecondLevel(walk) = fault.reason else { panic!("{fault:?}") };
    assert!(matches!(walk.kind, FaultKind::Denied { .. }), "{walk:?}");
}

#[test]
fn pointers_out_of_guest_memory_and_into_the_region_lead_nowhere() {
    let (daemon, _) = shared();
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let base = HubConfig::default().table_base.raw();
    // the header, the first table pages, and no memory at all
    for wrong in [base, base + PAGE, base + 4 * PAGE, MEMORY, 1 << 50] {
        let guard = reader.enter().unwrap();
        for table in TABLES.iter().take(3) {
            let guest = Guest::new(0);
            guest.put(*table, wrong | ALL);
            let fault = guest.ask(&guard, 0x5000, Access::READ).unwrap_err();
            let FaultReason::Mapping(walk) = fault.reason else { panic!("{fault:?}") };
            assert_eq!(
                (walk.stage, walk.kind),
                (Stage::First, FaultKind::Unreadable),
                "{wrong:#x}"
            );
        }
        let guest = Guest::new(0);
        guest.map(5, wrong, ALL);
        let led = guest.ask(&guard, 0x5000, Access::READ).map_err(|fault| fault.reason);
        if wrong < base {
            // whether memory is there is for who uses the address to see
            assert_eq!(led, Ok(wrong));
        } else {
            let Err(FaultReason::Mapping(walk)) = led else { panic!("{led:?}") };
            assert_eq!(walk.kind, FaultKind::OutputTooWide);
        }
        drop(guard);
        forget(&daemon);
    }
}

#[test]
fn a_table_that_leads_to_itself_ends_after_its_levels() {
    for (daemon, guest) in both() {
        let device = daemon.connect();
        let reader = device.reader().unwrap();
        let guard = reader.enter().unwrap();
        guest.put(TABLES[0], TABLES[0] | ALL);
        // the entry is a table four times but for the last, when it is a page: that is x86's, too
        assert_eq!(guest.ask(&guard, 0x10, Access::READ), Ok(TABLES[0] + 0x10 + guest.shift));
        guest.put(TABLES[1], TABLES[1] | ALL);
        guest.put(TABLES[0] + 8, TABLES[1] | PRESENT | USER);
        let fault = guest.ask(&guard, 1 << 39, Access::WRITE).unwrap_err();
        let FaultReason::Mapping(walk) = fault.reason else { panic!("{fault:?}") };
        assert!(matches!(walk.kind, FaultKind::Denied { .. }), "{walk:?}");
    }
}

/// An entry changes from one page to another, to nothing and to nonsense while it is walked.
#[test]
fn a_table_that_changes_under_the_walk_leads_to_one_of_its_pages_or_faults() {
    const WALKS: u64 = 2000;
    for (daemon, guest) in both() {
        let device = daemon.connect();
        let reader = device.reader().unwrap();
        let pages = [0x20_0000, 0x20_1000].map(|page| page | ALL);
        let words = [pages[0], 0, pages[1], !0, TABLES[0] | ALL, 1 << 50 | ALL];
        let (over, changes) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for word in words.iter().cycle() {
                    guest.map(5, word & !0xfff, word & 0xfff);
                    guest.put(TABLES[2], if word & 1 == 0 { *word } else { TABLES[3] | ALL });
                    changes.fetch_add(1, Ordering::Relaxed);
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                }
            });
            for _ in 0..WALKS {
                let guard = reader.enter().unwrap();
                let outputs = [0x20_0000, 0x20_1000, TABLES[0]].map(|page| page + guest.shift);
                match guest.ask(&guard, 0x5000, Access::RW) {
                    Ok(led) => assert!(outputs.contains(&led) || led == 1 << 50, "{led:#x}"),
                    Err(fault) => {
                        assert!(!matches!(fault.reason, FaultReason::NotAttached), "{fault}");
                    }
                }
                drop(guard);
                forget(&daemon);
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(changes.into_inner() > 0);
    }
}

#[test]
fn guest_memory_may_be_another_one_in_the_next_section() {
    let (daemon, old) = shared();
    old.map(5, 0x20_0000, ALL);
    let new = Guest::new(0);
    new.map(5, 0x30_0000, ALL);
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    assert_eq!(old.ask(&guard, 0x5000, Access::READ), Ok(0x20_0000));
    drop((guard, old));
    forget(&daemon);
    let guard = reader.enter().unwrap();
    assert_eq!(new.ask(&guard, 0x5000, Access::READ), Ok(0x30_0000));
}

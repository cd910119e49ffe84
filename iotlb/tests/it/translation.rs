//! What a reader finds.

use viommu_iotlb::{AccessFault, FaultReason, Guard, HubConfig};
use viommu_pasid::Pasid;
use viommu_pasid::vtd::Translation;
use viommu_pgtable::{Access, FaultKind, Iova};

use crate::support::{Daemon, PATIENCE, World};

/// The pieces of an access as (address, length), and the fault that ended it.
pub(crate) fn pieces(
    guard: &Guard<'_>,
    pasid: Option<Pasid>,
    (iova, len): (u64, u64),
    access: Access,
) -> (Vec<(u64, u64)>, Option<AccessFault>) {
    let mut found = Vec::new();
    for piece in guard.translate(pasid, Iova::new(iova), len, access) {
        match piece {
            Ok(piece) => found.push((piece.gpa.raw(), piece.len)),
            Err(fault) => return (found, Some(fault)),
        }
    }
    (found, None)
}

fn with_world(set_up: impl FnOnce(&mut World) + Send + 'static) -> Daemon {
    let daemon = Daemon::start(HubConfig::default());
    daemon.run(|world| {
        set_up(world);
        world.hub.drain();
    });
    daemon
}

#[test]
fn a_range_over_several_mappings_is_cut_where_outputs_jump_and_merged_where_they_do_not() {
    let daemon = with_world(|world| {
        world.map(0x1000, 0x1000, 0x10_0000, Access::RW);
        world.map(0x2000, 0x1000, 0x10_1000, Access::RW);
        world.map(0x3000, 0x1000, 0x50_0000, Access::RW);
    });
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    for _cold_then_warm in 0..2 {
        let found = pieces(&guard, None, (0x1800, 0x2000), Access::READ);
        assert_eq!(found, (vec![(0x10_0800, 0x1800), (0x50_0000, 0x800)], None));
        let (found, fault) = pieces(&guard, None, (0x3ff0, 0x20), Access::WRITE);
        assert_eq!(found, [(0x50_0ff0, 0x10)]);
        let fault = fault.unwrap();
        assert_eq!((fault.iova, fault.access), (Iova::new(0x4000), Access::WRITE));
        let FaultReason::Mapping(walk) = fault.reason else { panic!("{fault:?}") };
        assert_eq!((walk.kind, walk.input), (FaultKind::NotPresent, 0x4000));
    }
    assert_eq!(pieces(&guard, None, (0x1000, 0), Access::READ), (vec![], None));
}

#[test]
fn large_pages_are_found_at_every_offset() {
    let daemon = with_world(|world| {
        world.map(0x4000_0000, 0x4000_0000, 0x1_4000_0000, Access::RW);
        world.map(0x8020_0000, 0x20_0000, 0x60_0000, Access::RW);
        world.map(0x8040_0000, 0x1000, 0x1000, Access::RW);
    });
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    for _cold_then_warm in 0..2 {
        for (iova, oa) in [
            (0x4000_0000, 0x1_4000_0000),
            (0x7fff_fff8, 0x1_7fff_fff8),
            (0x5234_5678, 0x1_5234_5678),
            (0x8020_0008, 0x60_0008),
            (0x803f_fff8, 0x7f_fff8),
            (0x8040_0ff8, 0x1ff8),
        ] {
            let found = pieces(&guard, None, (iova, 8), Access::READ);
            assert_eq!(found, (vec![(oa, 8)], None), "{iova:#x}");
        }
    }
}

#[test]
fn a_mapping_allows_what_it_says_and_nothing_more_also_from_the_private_tlb() {
    let daemon = with_world(|world| {
        world.map(0x1000, 0x1000, 0x10_0000, Access::READ);
        world.map(0x2000, 0x1000, 0x20_0000, Access::WRITE);
    });
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    for _cold_then_warm in 0..2 {
        for (iova, allowed, denied) in
            [(0x1000, Access::READ, Access::WRITE), (0x2000, Access::WRITE, Access::READ)]
        {
            assert_eq!(pieces(&guard, None, (iova, 16), allowed).1, None);
            for denied in [denied, Access::RW] {
                let (found, fault) = pieces(&guard, None, (iova, 16), denied);
                assert_eq!(found, []);
                let FaultReason::Mapping(walk) = fault.unwrap().reason else { panic!("{fault:?}") };
                assert!(matches!(walk.kind, FaultKind::Denied { wanted, .. } if wanted == denied));
            }
        }
    }
}

#[test]
fn each_pasid_goes_its_own_way_and_one_without_faults() {
    let (seven, eight) = (Pasid::new(7), Pasid::new(8));
    let daemon = with_world(move |world| {
        world.map(0x1000, 0x1000, 0x10_0000, Access::RW);
        world.set(seven, Some(Translation::PassThrough));
    });
    let device = daemon.connect();
    assert_eq!(device.pasid_bits(), 20);
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    for _cold_then_warm in 0..2 {
        let read = |pasid| pieces(&guard, pasid, (0x1008, 8), Access::READ);
        assert_eq!(read(None), (vec![(0x10_0008, 8)], None));
        assert_eq!(read(seven), (vec![(0x1008, 8)], None));
        assert_eq!(read(eight).1.unwrap().reason, FaultReason::NotAttached);
    }
}

#[test]
fn passed_through_accesses_end_where_the_tables_begin_and_at_the_last_address() {
    let daemon = with_world(|world| world.set(None, Some(Translation::PassThrough)));
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let base = 1 << 51;
    let (found, fault) = pieces(&guard, None, (base - 16, 32), Access::RW);
    assert_eq!(found, [(base - 16, 16)]);
    let fault = fault.unwrap();
    assert_eq!((fault.iova, fault.reason), (Iova::new(base), FaultReason::OutOfRange));
    let (found, fault) = pieces(&guard, None, (u64::MAX - 7, 16), Access::RW);
    assert_eq!((found, fault.unwrap().reason), (vec![], FaultReason::OutOfRange));
}

#[test]
fn a_new_translation_is_found_without_a_drain_and_a_withdrawn_one_is_gone_after_it() {
    let daemon = with_world(|world| world.map(0x1000, 0x1000, 0x10_0000, Access::RW));
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let read = |iova| pieces(&reader.enter().unwrap(), None, (iova, 8), Access::READ);
    assert_eq!(read(0x1000), (vec![(0x10_0000, 8)], None));
    assert!(read(0x2000).1.is_some());
    daemon.run(|world| world.map(0x2000, 0x1000, 0x20_0000, Access::RW));
    assert_eq!(read(0x2000), (vec![(0x20_0000, 8)], None));
    daemon.run(|world| {
        world.unmap(0x1000, 0x1000);
        world.hub.drain()
    });
    assert!(read(0x1000).1.is_some());
    daemon.run(|world| {
        world.set(None, None);
        world.hub.drain()
    });
    assert_eq!(read(0x2000).1.unwrap().reason, FaultReason::NotAttached);
    assert!(PATIENCE > daemon.run(|world| world.hub.counters().longest_drain));
}

const REGION: u64 = 0x20_0000;

#[test]
fn a_mapping_in_a_table_that_took_anothers_place_is_found_in_the_same_section() {
    let daemon = with_world(|world| world.map(REGION, 0x1000, 0x10_0000, Access::RW));
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    let read = |iova| pieces(&guard, None, (iova, 8), Access::READ);
    assert_eq!(read(REGION).1, None);
    daemon.run(|world| {
        // the table is empty now, and another is made for the next page
        world.unmap(REGION, 0x1000);
        world.map(REGION + 0x1000, 0x1000, 0x20_0000, Access::RW);
    });
    assert_eq!(read(REGION + 0x1000), (vec![(0x20_0000, 8)], None));
    daemon.run(|world| world.map(REGION + 0x2000, 0x1000, 0x30_0000, Access::RW));
    assert_eq!(read(REGION + 0x2000), (vec![(0x30_0000, 8)], None));
}

#[test]
fn a_table_that_came_back_as_another_is_not_walked_for_the_old_address() {
    // the first region keeps what lies above the tables
    let daemon = with_world(|world| {
        world.map(REGION, 0x1000, 0x10_0000, Access::RW);
        world.map(2 * REGION, 0x2000, 0x20_0000, Access::RW);
    });
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let read = |iova| pieces(&reader.enter().unwrap(), None, (iova, 8), Access::READ);
    assert_eq!(read(2 * REGION), (vec![(0x20_0000, 8)], None));
    let tables = |daemon: &Daemon| {
        daemon.run(|world| viommu_pgtable::TableStore::pages_left(world.hub.region()))
    };
    let before = tables(&daemon);
    daemon.run(|world| {
        world.unmap(2 * REGION, 0x2000);
        world.hub.drain();
        world.map(3 * REGION, 0x2000, 0x30_0000, Access::RW);
    });
    assert_eq!(tables(&daemon), before, "one table went, and came back");
    assert!(read(2 * REGION + 0x1000).1.is_some());
    assert_eq!(read(3 * REGION + 0x1000), (vec![(0x30_1000, 8)], None));
}

#[test]
fn readers_count_their_hits_and_misses() {
    let daemon = with_world(|world| world.map(0x1000, 0x1000, 0x10_0000, Access::RW));
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    for _ in 0..10 {
        assert_eq!(pieces(&guard, None, (0x1000, 8), Access::READ).1, None);
    }
    drop(guard);
    let counters = daemon.run(|world| world.hub.reader_counters());
    assert_eq!((counters.hits, counters.misses, counters.flushes), (9, 1, 1));
}

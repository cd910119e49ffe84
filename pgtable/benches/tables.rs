//! What a walk, a map and an unmap cost, for each format.
//!
//! The store is a plain array: what is measured is this crate, not the memory behind it. `dependent loads`
//! is the yardstick of a walk: four loads, each at an address that the one before gave.
#![expect(clippy::unwrap_used, reason = "a bench")]

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use viommu_pgtable::testing::HeapStore;
use viommu_pgtable::{
    Access, ArmStage1, ArmStage2, Behind, Format, Granule, Iova, IovaRange, Mapping, PhysAddr,
    Table, TableMemory, TableStore, VtdFirst, VtdSecond, walk, walk_nested,
};

const SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;
const BASE: PhysAddr = PhysAddr::new(1 << 31);
/// Pages of a bulk mapping: 32 tables' worth.
const BULK_PAGES: u64 = 1 << 14;

/// A single page, or many that no larger leaf can map.
fn pages(start: u64, pages: u64) -> Mapping {
    let iova = IovaRange::with_len(Iova::new(start), pages << 12).unwrap();
    Mapping::new(iova, PhysAddr::new(0x1000), Access::RW).unwrap()
}

fn filled<F: Format>(format: F) -> (HeapStore, Table<F>) {
    let mut store = HeapStore::new(BASE, 1 << 12);
    let mut table = Table::new(format, &mut store).unwrap();
    table.map(&mut store, &pages(0, BULK_PAGES)).unwrap();
    (store, table)
}

fn walks(c: &mut Criterion) {
    let mut group = c.benchmark_group("walk, hot, one 4 KiB page");
    // each word leads to the next: the address is data, as in a table
    let mut chain = HeapStore::new(BASE, 8);
    let first = chain.alloc_pages(4).unwrap();
    for hop in 0..4 {
        let at = PhysAddr::new(first.raw() + hop * 4096);
        chain.store(at, first.raw() + ((hop + 1) % 4) * 4096);
    }
    group.bench_function("dependent loads, same store", |b| {
        b.iter(|| {
            let hop = |at: PhysAddr| PhysAddr::new(chain.load(at).unwrap_or(0));
            hop(hop(hop(hop(black_box(first)))))
        });
    });
    macro_rules! bench {
        ($($name:literal: $format:expr;)*) => {$(
            let (store, table) = filled($format.unwrap());
            group.bench_function($name, |b| {
                b.iter(|| {
                    let iova = Iova::new(black_box(0x1234_5678 & 0x3ff_ffff));
                    walk(table.format(), &store, table.root(), iova, Access::READ)
                });
            });
        )*};
    }
    bench! {
        "VT-d second level, 3 levels": VtdSecond::new(39, SIZES);
        "VT-d second level, 4 levels": VtdSecond::new(48, SIZES);
        "VT-d second level, 5 levels": VtdSecond::new(57, SIZES);
        "VT-d first level, 4 levels": VtdFirst::new(48, SIZES);
        "Arm stage 1, 4 levels": ArmStage1::new(Granule::K4, 48, 48);
        "Arm stage 2, 4 levels": ArmStage2::new(Granule::K4, 4, 48, 48);
    }
    group.finish();
}

fn nested(c: &mut Criterion) {
    let (first_store, first) = filled(VtdFirst::new(48, SIZES).unwrap());
    let mut store = HeapStore::new(PhysAddr::new(1 << 32), 1 << 12);
    let mut second = Table::new(VtdSecond::new(48, SIZES).unwrap(), &mut store).unwrap();
    for (start, bytes) in [(0, 1 << 30), (BASE.raw(), 1 << 30)] {
        let iova = IovaRange::with_len(Iova::new(start), bytes).unwrap();
        let identity = Mapping::new(iova, PhysAddr::new(start), Access::RW).unwrap();
        second.map(&mut store, &identity).unwrap();
    }
    let behind = Behind::new(*second.format(), &store, second.root(), &first_store);
    c.bench_function("walk, hot, VT-d first level 4 KiB over second level 1 GiB", |b| {
        b.iter(|| {
            let iova = Iova::new(black_box(0x12_3456));
            walk_nested(first.format(), first.root(), &behind, iova, Access::READ)
        });
    });
}

fn single<F: Format>(c: &mut Criterion, name: &str, format: F) {
    let mut group = c.benchmark_group("map and unmap, one 4 KiB page");
    let (mut store, mut table) = filled(format);
    // beside a page that keeps the tables; and where each map makes and each unmap frees them
    let beside = pages((BULK_PAGES + 511) << 12, 1);
    table.map(&mut store, &pages(BULK_PAGES << 12, 1)).unwrap();
    for (place, one) in [("tables there", beside), ("tables made", pages(1 << 38, 1))] {
        group.bench_function(format!("{name}, {place}"), |b| {
            b.iter(|| {
                table.map(&mut store, black_box(&one)).unwrap();
                let unmapped = table.unmap(&mut store, one.iova()).unwrap();
                store.reclaim();
                unmapped
            });
        });
    }
    group.finish();
}

fn bulk<F: Format>(c: &mut Criterion, name: &str, format: F) {
    let mut group = c.benchmark_group("bulk, 4 KiB pages");
    group.throughput(Throughput::Elements(BULK_PAGES));
    let all = pages(0, BULK_PAGES);
    let empty = || {
        let (mut store, mut table) = filled(format);
        table.unmap(&mut store, all.iova()).unwrap();
        store.reclaim();
        (store, table)
    };
    group.bench_function(format!("map, {name}"), |b| {
        b.iter_batched_ref(
            empty,
            |(store, table)| table.map(store, black_box(&all)).unwrap(),
            BatchSize::LargeInput,
        );
    });
    group.bench_function(format!("unmap, {name}"), |b| {
        b.iter_batched_ref(
            || filled(format),
            |(store, table)| table.unmap(store, black_box(all.iova())).unwrap(),
            BatchSize::LargeInput,
        );
    });
    group.finish();
}

fn maps(c: &mut Criterion) {
    let vtd = VtdSecond::new(48, SIZES).unwrap();
    let arm = ArmStage2::new(Granule::K4, 4, 48, 48).unwrap();
    single(c, "VT-d second level", vtd);
    single(c, "Arm stage 2", arm);
    bulk(c, "VT-d second level", vtd);
    bulk(c, "Arm stage 2", arm);
}

criterion_group!(benches, walks, nested, maps);
criterion_main!(benches);

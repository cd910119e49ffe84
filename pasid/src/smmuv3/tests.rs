//! Entries packed and unpacked, tables written and looked up, garbage survived.

mod entries;
mod model;
mod tables;

use proptest::prelude::*;
use proptest::sample::select;
use viommu_pgtable::{ArmStage1, ArmStage2, Granule, PhysAddr};

use super::*;

/// A multiple of `1 << lg2` below 2^`bits`.
pub(crate) fn address(lg2: u8, bits: u8) -> impl Strategy<Value = PhysAddr> {
    (0..1_u64 << bits.saturating_sub(lg2)).prop_map(move |page| PhysAddr::new(page << lg2))
}

fn granules() -> impl Strategy<Value = Granule> {
    select(vec![Granule::K4, Granule::K16, Granule::K64])
}

fn sizes() -> impl Strategy<Value = AddressSize> {
    let bits = select(vec![32, 36, 40, 42, 44, 48_u8]);
    bits.prop_map(|bits| AddressSize::from_bits(bits).unwrap())
}

fn stage2s() -> impl Strategy<Value = Stage2> {
    let shape = (25..=48_u8, granules(), 1..=4_u8, sizes(), any::<bool>());
    let aligned = shape.prop_flat_map(|shape| (Just(shape), address(20, shape.3.bits())));
    aligned.prop_filter_map("no such shape", |((input_bits, granule, levels, output, af), root)| {
        let format = ArmStage2::new(granule, levels, input_bits, output.bits()).ok()?;
        let table = Stage2::new(root, format)?;
        Some(if af { table.ignoring_access_flag() } else { table })
    })
}

pub(crate) fn stage1s() -> impl Strategy<Value = Stage1> {
    let layouts = [ContextLayout::Linear, ContextLayout::Leaves4K, ContextLayout::Leaves64K];
    let untagged = [Untagged::Terminate, Untagged::Bypass, Untagged::Context0];
    let fields = (address(26, 48), select(layouts.to_vec()), 0..=20_u8, select(untagged.to_vec()));
    fields.prop_map(|(contexts, layout, pasid_bits, untagged)| {
        Stage1::new(contexts, layout, pasid_bits, untagged).unwrap()
    })
}

fn stage1_tables(output: AddressSize) -> impl Strategy<Value = Stage1Table> {
    (address(16, output.bits()), 25..=48_u8, granules()).prop_map(
        move |(root, input_bits, granule)| {
            let format = ArmStage1::new(granule, input_bits, output.bits()).unwrap();
            Stage1Table::new(root, format).unwrap()
        },
    )
}

pub(crate) fn descriptors() -> impl Strategy<Value = ContextDescriptor> {
    let tables = sizes().prop_flat_map(|output| {
        let table = || proptest::option::of(stage1_tables(output));
        (table(), table())
    });
    (tables, any::<u16>(), any::<u64>(), any::<u64>()).prop_map(
        |((lower, upper), asid, mair, controls)| {
            let tables = Stage1Tables::new(lower, upper).unwrap();
            let controls = ContextControls::from_bits_truncate(controls);
            ContextDescriptor { tables, asid, mair, controls }
        },
    )
}

pub(crate) fn entries() -> impl Strategy<Value = StreamEntry> {
    let config = prop_oneof![
        Just(StreamConfig::Abort),
        Just(StreamConfig::Bypass),
        stage1s().prop_map(StreamConfig::Stage1),
        stage2s().prop_map(StreamConfig::Stage2),
        (stage1s(), stage2s()).prop_map(|(first, second)| StreamConfig::Nested { first, second }),
    ];
    (any::<u16>(), config).prop_map(|(vmid, config)| StreamEntry { vmid, config })
}

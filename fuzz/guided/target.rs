//! One of the fuzz targets, whichever `VIOMMU_FUZZ_TARGET` names, under libFuzzer:
//!
//! ```text
//! VIOMMU_FUZZ_TARGET=walk cargo +nightly fuzz run --fuzz-dir fuzz/guided target fuzz/corpus/walk
//! ```
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use viommu_fuzz::{Target, Trace, target};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("VIOMMU_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("VIOMMU_FUZZ_TARGET={name} names no target"))
});

fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes, &mut Trace::default()));

//! The rows of the standard's conformance table, F1 to E4, as `docs/spec-coverage.md` lists them.
//!
//! The name of a test here begins with the rows that it shows, `m4_m5_...`; where a test of another
//! module shows a row already, the table names that one. [`table`] checks that the table and the
//! tests agree.

mod configuration;
mod domains;
mod endpoints;
mod mappings;
mod probe;
mod table;
mod unmaps;

use std::path::Path;

use viommu_iotlb::{Device, FaultClass};
use viommu_pgtable::Access;

use crate::support::daemon::Daemon;
use crate::support::device::Dma;
use crate::support::guest::Guest;

/// The second endpoint of a [`pair`]: 0000:00:03.0.
const SECOND: u32 = 0x18;

/// No endpoint of any test.
const NOBODY: u32 = 0xdead;

/// Why a read of an unmapped page is refused.
const UNMAPPED: Result<u64, FaultClass> = Err(FaultClass::Mapping);

/// Why an access of an endpoint that is attached to nothing is refused.
const NOT_ATTACHED: Result<u64, FaultClass> = Err(FaultClass::NotAttached);

/// A guest with two endpoints, 0000:00:02.0 and [`SECOND`], and a device process behind each.
/// Nothing is attached.
fn pair() -> (Daemon, Guest, [Dma; 2]) {
    let folder = tempfile::Builder::new().prefix("viommu-it-").tempdir().unwrap();
    let paths = ["02.0", "03.0"].map(|function| folder.path().join(function));
    let endpoint = |function: &str, path: &Path| format!("00:{function},socket={}", path.display());
    let endpoints = [endpoint("02.0", &paths[0]), endpoint("03.0", &paths[1])];
    let options = ["--endpoint", &endpoints[0], "--endpoint", &endpoints[1]];
    let daemon = Daemon::in_folder(folder, &options);
    let guest = Guest::start(&daemon);
    let devices = paths.map(|path| {
        let device = Device::connect(path).unwrap();
        let reader = device.reader().unwrap();
        Dma { device, reader }
    });
    (daemon, guest, devices)
}

/// Whether a device may read, and whether it may write, at `iova`.
fn rights(dma: &Dma, iova: u64) -> [bool; 2] {
    [Access::READ, Access::WRITE].map(|access| dma.access(iova, 4, access).is_ok())
}

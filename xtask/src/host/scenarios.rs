//! The scenarios.

use super::board::Iommu;
use super::{Kernel, Scenario};

/// What `tests/host` shows of every IOMMU.
const BASIC: &[&str] =
    &["serve", "probe", "write", "copy", "read-only", "unmapped", "detached", "replaced", "end"];

const fn basic(name: &'static str, about: &'static str, iommu: Iommu) -> Scenario {
    let (kernel, play) = (Kernel::Built, "basic");
    Scenario { name, about, kernel, iommu, play, checks: BASIC, remark: "replaced" }
}

const fn type1(name: &'static str, iommu: Iommu) -> Scenario {
    let about = "type1 on the stock kernel: no step between two domains";
    let (kernel, play) = (Kernel::Stock, "type1");
    Scenario { name, about, kernel, iommu, play, checks: BASIC, remark: "replaced" }
}

/// All of them, in the order in which they run.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "plain",
        about: "no daemon: machine, kernel and device alone",
        kernel: Kernel::Stock,
        iommu: Iommu::IntelLegacy,
        play: "plain",
        checks: &["type1"],
        remark: "type1",
    },
    basic("intel-legacy", "iommufd over VT-d in legacy mode", Iommu::IntelLegacy),
    basic("intel-scalable", "iommufd over VT-d's second level", Iommu::IntelScalable),
    basic("intel-fsts", "iommufd over VT-d's first level", Iommu::IntelFirstStage),
    basic("amd", "iommufd over AMD's IOMMU", Iommu::Amd),
    basic("smmuv3", "iommufd over Arm's SMMUv3", Iommu::SmmuV3),
    type1("type1-intel", Iommu::IntelLegacy),
    type1("type1-smmuv3", Iommu::SmmuV3),
];

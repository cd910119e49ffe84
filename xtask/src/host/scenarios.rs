//! The scenarios.

use super::board::Iommu;
use super::{Kernel, Scenario};

/// What `tests/host` shows of every IOMMU.
const BASIC: &[&str] = &[
    "serve",
    "probe",
    "width",
    "write",
    "copy",
    "read-only",
    "unmapped",
    "detached",
    "end",
    "replaced",
];

const fn basic(name: &'static str, about: &'static str, iommu: Iommu) -> Scenario {
    let (kernel, play) = (Kernel::Built, replacement(iommu));
    Scenario { name, about, kernel, iommu, unplugs: false, inner: false, play, checks: BASIC }
}

/// The play for an IOMMU that keeps nothing of a domain that was left, or may.
const fn replacement(iommu: Iommu) -> &'static str {
    match iommu {
        Iommu::IntelLegacy | Iommu::Amd | Iommu::SmmuV3 | Iommu::SmmuV3Twice => "basic",
        Iommu::IntelScalable | Iommu::IntelFirstStage => "basic-kept",
    }
}

const fn type1(name: &'static str, iommu: Iommu) -> Scenario {
    let about = "type1 on the stock kernel";
    let (kernel, play) = (Kernel::Stock, "basic");
    Scenario { name, about, kernel, iommu, unplugs: false, inner: false, play, checks: BASIC }
}

/// What does not depend on the IOMMU; the last check is the one that is shown.
const fn special(
    name: &'static str,
    about: &'static str,
    checks: &'static [&'static str],
) -> Scenario {
    let (kernel, iommu) = (Kernel::Built, Iommu::IntelLegacy);
    Scenario { name, about, kernel, iommu, unplugs: false, inner: false, play: name, checks }
}

/// Registers of another device.
const MMIO: Scenario = special(
    "mmio",
    "mappings that lead to another device's registers",
    &["static", "dynamic", "replaced", "gone", "shared"],
);

/// The same on a kernel without iommufd.
const MMIO_TYPE1: Scenario = Scenario {
    kernel: Kernel::Stock,
    ..special(
        "mmio-type1",
        "type1: mappings that lead to another device's registers",
        &["gone", "replaced", "type1"],
    )
};

/// Hot-unplug.
const UNPLUG: Scenario = Scenario {
    unplugs: true,
    ..special(
        "unplug",
        "a function that the machine takes away while the daemon has it",
        &["before", "others", "detached", "refused", "replaced", "gone"],
    )
};

/// A scenario over Arm's IOMMU, too.
const fn over_smmuv3(name: &'static str, scenario: Scenario) -> Scenario {
    Scenario { name, iommu: Iommu::SmmuV3, ..scenario }
}

/// All of them, in the order in which they run.
pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "plain",
        about: "no daemon: machine, kernel and device alone",
        kernel: Kernel::Stock,
        iommu: Iommu::IntelLegacy,
        unplugs: false,
        inner: false,
        play: "plain",
        checks: &["type1"],
    },
    basic("intel-legacy", "iommufd over VT-d in legacy mode", Iommu::IntelLegacy),
    basic("intel-scalable", "iommufd over VT-d's second level", Iommu::IntelScalable),
    basic("intel-fsts", "iommufd over VT-d's first level", Iommu::IntelFirstStage),
    basic("amd", "iommufd over AMD's IOMMU", Iommu::Amd),
    basic("smmuv3", "iommufd over Arm's SMMUv3", Iommu::SmmuV3),
    type1("type1-intel", Iommu::IntelLegacy),
    type1("type1-smmuv3", Iommu::SmmuV3),
    special(
        "mixed",
        "a domain with a device process and a VFIO device",
        &["replaced", "both", "late", "refused", "undone"],
    ),
    MMIO,
    over_smmuv3("mmio-smmuv3", MMIO),
    MMIO_TYPE1,
    over_smmuv3("mmio-type1-smmuv3", MMIO_TYPE1),
    Scenario {
        iommu: Iommu::SmmuV3Twice,
        ..special(
            "two-iommus",
            "a domain with functions behind two IOMMUs",
            &[
                "apart",
                "bypass",
                "both",
                "tables",
                "late",
                "left",
                "away",
                "end",
                "given",
                "replaced-other",
                "replaced",
            ],
        )
    },
    special(
        "restart",
        "the daemon killed, and started again with keep and block",
        &["taken", "killed", "keep", "unmapped", "replaced", "block"],
    ),
    Scenario {
        // narrower than the guest's range is if nobody cuts it
        iommu: Iommu::IntelFirstStage,
        ..special("given-fsts", "a device that the VMM shares: how far it can map", &["width"])
    },
    special(
        "memory",
        "guest memory taken away and given back under mappings and bypass",
        &["static", "dynamic"],
    ),
    Scenario {
        kernel: Kernel::Stock,
        ..special(
            "memory-type1",
            "type1: the same; no more mappings than a container takes",
            &["type1", "limit"],
        )
    },
    special("memlock", "RLIMIT_MEMLOCK reached", &["halfway", "replaced", "static", "dynamic"]),
    UNPLUG,
    over_smmuv3("unplug-smmuv3", UNPLUG),
    Scenario {
        inner: true,
        ..special(
            "launch",
            "an unpatched QEMU shares functions with the daemon",
            &[
                "inner-behind",
                "inner-written",
                "inner-copied",
                "inner-apart",
                "inner-replaced",
                "terminated",
                "killed",
                "orphaned",
                "early",
                "guest",
            ],
        )
    },
    special("pairs", "what map and unmap cost", &["pinned-static", "pinned-dynamic", "pairs"]),
];

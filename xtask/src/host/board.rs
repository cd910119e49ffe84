//! The machines of the host suite: which IOMMU they have, and which functions are behind it.

use super::twice;
use crate::setup::guest_kernel::Architecture;

/// An IOMMU of QEMU's, and the mode in which Linux drives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Iommu {
    /// Intel's in legacy mode: a second-level table for each device.
    IntelLegacy,
    /// Intel's in scalable mode, with second-level tables.
    IntelScalable,
    /// Intel's in scalable mode, with first-level tables only.
    IntelFirstStage,
    /// AMD's.
    Amd,
    /// Arm's SMMUv3.
    SmmuV3,
    /// Two of them, each of a host bridge of its own.
    SmmuV3Twice,
}

impl Iommu {
    /// Its name in tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::IntelLegacy => "intel legacy",
            Self::IntelScalable => "intel scalable",
            Self::IntelFirstStage => "intel fsts",
            Self::Amd => "amd",
            Self::SmmuV3 => "smmuv3",
            Self::SmmuV3Twice => "smmuv3 twice",
        }
    }

    /// The processor of the machine that has it.
    pub(super) const fn architecture(self) -> Architecture {
        match self {
            Self::IntelLegacy | Self::IntelScalable | Self::IntelFirstStage | Self::Amd => {
                Architecture::Amd64
            }
            Self::SmmuV3 | Self::SmmuV3Twice => Architecture::Arm64,
        }
    }

    /// QEMU's arguments for it; it has to come before what is behind it.
    pub(super) const fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::IntelLegacy => &["-device", "intel-iommu,intremap=on"],
            Self::IntelScalable => &["-device", "intel-iommu,intremap=on,scalable-mode=on"],
            Self::IntelFirstStage => {
                &["-device", "intel-iommu,intremap=on,scalable-mode=on,fsts=on"]
            }
            Self::Amd => &["-device", "amd-iommu,dma-remap=on"],
            Self::SmmuV3 => &["-machine", "iommu=smmuv3", "-global", "arm-smmuv3.stage=nested"],
            Self::SmmuV3Twice => twice::ARGUMENTS,
        }
    }

    /// What the kernel's command line says of it. A loaded machine can be too slow for the kernel's check
    /// of its timer, which ends in a panic where interrupts are remapped.
    pub(super) const fn append(self) -> &'static str {
        match self {
            Self::IntelLegacy => "no_timer_check intel_iommu=on,sm_off",
            Self::IntelScalable | Self::IntelFirstStage => "no_timer_check intel_iommu=on,sm_on",
            // it remaps no interrupts under TCG, and iommufd then wants this said
            Self::Amd => "no_timer_check iommufd.allow_unsafe_interrupts=1",
            Self::SmmuV3 | Self::SmmuV3Twice => "",
        }
    }
}

/// The functions behind the IOMMU: QEMU's device for testing IOMMUs, one that copies memory, and a second
/// of the first kind.
pub(super) const FUNCTIONS: &[&str] = &[
    "-device",
    "iommu-testdev,bus=pcie.0,addr=4",
    "-device",
    "edu,bus=pcie.0,addr=5,dma_mask=0xffffffffffffffff",
    "-device",
    "iommu-testdev,bus=pcie.0,addr=6",
];

//! Devices of the host, as people name them.

use std::os::fd::RawFd;

use viommu_backend::vfio::PciAddress;

use super::SpecError;
use super::endpoint::function;

/// Where an endpoint's VFIO device comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfioDevice {
    /// A PCI function of the host, which we open.
    Address(PciAddress),
    /// Descriptors that were inherited; the VMM has bound the device, or will.
    Given {
        /// The device's.
        device: RawFd,
        /// Its iommufd's.
        iommufd: RawFd,
    },
}

/// The kernel's interface to the host's IOMMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum HostInterface {
    /// iommufd where the kernel has it, else type1.
    #[default]
    Auto,
    /// iommufd.
    Iommufd,
    /// A container for each device.
    Type1,
}

/// Which guest memory is pinned for VFIO devices, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Pin {
    /// All of it, once: a MAP pins nothing.
    #[default]
    Static,
    /// What is mapped, when it is mapped.
    Dynamic,
}

/// What becomes of a device that the VMM has and that is attached already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum OnStart {
    /// It goes where --boot-bypass says.
    #[default]
    Boot,
    /// It keeps its mappings until the guest attaches it.
    Keep,
    /// It reaches nothing until the guest attaches it.
    Block,
}

/// How VFIO devices are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VfioOptions {
    /// The kernel's interface.
    pub interface: HostInterface,
    /// What is pinned when.
    pub pin: Pin,
    /// What becomes of devices that the VMM has.
    pub on_start: OnStart,
    /// An inherited socket on which the launcher says when the VMM has bound its devices.
    pub control: Option<RawFd>,
}

/// The words `vfio=` and `iommufd=` of an endpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct VfioWords {
    pub(super) vfio: Option<String>,
    pub(super) iommufd: Option<String>,
}

impl VfioWords {
    /// The device that they name, if any.
    pub(super) fn device(&self) -> Result<Option<VfioDevice>, SpecError> {
        let Some(vfio) = &self.vfio else {
            return if self.iommufd.is_some() { Err(SpecError::IommufdAlone) } else { Ok(None) };
        };
        let wrong = || SpecError::Vfio(vfio.clone());
        let Some(number) = vfio.strip_prefix("fd:") else {
            let address = function(vfio, 0).map_err(|_| wrong())?;
            return match self.iommufd {
                None => Ok(Some(VfioDevice::Address(PciAddress::new(address)))),
                Some(_) => Err(SpecError::IommufdAlone),
            };
        };
        let iommufd = self.iommufd.as_deref().and_then(|text| text.strip_prefix("fd:"));
        let descriptor = |text: &str| text.parse::<RawFd>().ok().filter(|raw| *raw >= 0);
        let device = descriptor(number).ok_or_else(wrong)?;
        let iommufd = iommufd.and_then(descriptor).ok_or_else(wrong)?;
        Ok(Some(VfioDevice::Given { device, iommufd }))
    }
}

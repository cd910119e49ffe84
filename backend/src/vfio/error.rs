//! Why a device of the host cannot be served.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use viommu_pasid::EndpointId;

use super::BarWindow;
use crate::HostError;

/// Found at the start; the message says what would help.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VfioError {
    /// No such device, or sysfs cannot be read.
    #[error("{device}: {source}; is it there, and is sysfs mounted?")]
    NoDevice {
        /// Its address, or descriptor.
        device: String,
        /// What sysfs said.
        source: io::Error,
    },
    /// The device is another driver's.
    #[error("{device} is bound to {}, not to vfio-pci: bind it with driverctl or driver_override",
        driver.as_deref().unwrap_or("no driver"))]
    NotVfio {
        /// Its address.
        device: String,
        /// The driver that has it.
        driver: Option<String>,
    },
    /// The kernel has no iommufd, or no descriptors of devices.
    #[error(
        "{device}: {missing}: the kernel needs CONFIG_IOMMUFD and CONFIG_VFIO_DEVICE_CDEV (Linux 6.6); only \
         a daemon that opens its devices itself can do without, with --host-iommu type1"
    )]
    NoIommufd {
        /// Its address.
        device: String,
        /// What is not there.
        missing: &'static str,
    },
    /// What was given as a device is something else.
    #[error(
        "the descriptor that was given for {endpoint} is of no VFIO device: open /dev/vfio/devices/vfioN"
    )]
    NotCdev {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// What was given as iommufd is something else.
    #[error("the descriptor that was given as iommufd is of something else: open /dev/iommu")]
    NotIommufd,
    /// A file cannot be opened.
    #[error("{}: {source}", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel lacks a call.
    #[error("{call} needs Linux {since}; this kernel does not know it")]
    TooOld {
        /// The call.
        call: &'static str,
        /// The version that has it.
        since: &'static str,
    },
    /// The kernel does not give us the device.
    #[error("{device}: {call}: {source}{}", hint(call, source))]
    Refused {
        /// Its address.
        device: String,
        /// What was tried.
        call: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel has no room for what every machine needs.
    #[error("{what}: {error}")]
    Setup {
        /// What was to be made.
        what: &'static str,
        /// What the kernel said.
        error: HostError,
    },
    /// A group of which another driver has a device.
    #[error("{device}: a device of its IOMMU group is bound to another driver than vfio-pci")]
    NotViable {
        /// Its address.
        device: String,
    },
    /// Two endpoints whose DMA the host cannot tell apart.
    #[error(
        "{device} and {other} are both in IOMMU group {group}: the host's IOMMU has one address space for \
         the two; take one of them"
    )]
    OneGroup {
        /// Its address.
        device: String,
        /// The other endpoint's address.
        other: String,
        /// Their group.
        group: String,
    },
    /// A window over registers of a device that is not ours.
    #[error("{window}: that endpoint has no device that we open")]
    NoWindowDevice {
        /// The window.
        window: BarWindow,
    },
    /// The kernel says nothing of the BAR.
    #[error("{window}: VFIO_DEVICE_GET_REGION_INFO: {source}")]
    NoBar {
        /// The window.
        window: BarWindow,
        /// What the kernel said.
        source: io::Error,
    },
    /// A window that is longer than what is in the BAR.
    #[error("{window}: the BAR has {bytes:#x} bytes")]
    ShortBar {
        /// The window.
        window: BarWindow,
        /// The BAR's length, bytes.
        bytes: u64,
    },
    /// Registers that the kernel maps nowhere.
    #[error("{window}: the BAR cannot be mapped: it is for I/O ports, or shorter than a page")]
    UnmappableBar {
        /// The window.
        window: BarWindow,
    },
    /// A descriptor that two endpoints name.
    #[error("descriptor {0} is named for two devices")]
    NoDescriptor(RawFd),
}

/// What helps against the refusals that have one cause.
fn hint(call: &str, error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => {
            "; without interrupt remapping the kernel wants allow_unsafe_interrupts=1 (iommufd or \
             vfio_iommu_type1)"
        }
        Some(libc::EBUSY) => "; another process has it",
        Some(libc::EINVAL) if call.contains("BIND") => "; another process has bound it",
        _ => "",
    }
}

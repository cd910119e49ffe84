//! The command `launch`.

use std::ffi::OsString;

use clap::Args;
use viommu_backend::vfio::PciAddress;
use viommu_pasid::EndpointId;

use super::Switch;
use crate::config::{self, FunctionError};
use crate::launch::{Assigned, Launch};

/// What `launch` takes.
#[derive(Debug, Args)]
pub(super) struct Launcher {
    /// A device of the host that is bound to vfio-pci, and its function in the guest:
    /// SSSS:BB:DD.F[,at=DD.F]; again for more. The default is the next device from 04.0 on.
    #[arg(long, value_name = "DEVICE", required = true)]
    vfio: Vec<String>,
    /// The IOMMU's own function in the guest, on bus 0.
    #[arg(long, value_name = "DD.F", default_value = "01.0", value_parser = on_bus_0)]
    iommu: EndpointId,
    /// Whether the guest is told by an ACPI table what is behind the IOMMU.
    #[arg(long, value_name = "on|off", default_value = "on")]
    viot: Switch,
    /// An option for the daemon, such as --daemon=--boot-bypass=off; again for more.
    #[arg(long = "daemon", value_name = "OPTION", allow_hyphen_values = true)]
    options: Vec<OsString>,
    /// QEMU's program and arguments.
    #[arg(last = true, required = true, value_name = "QEMU")]
    qemu: Vec<OsString>,
}

/// The first function in the guest that a device takes for which no place is named: 00:04.0.
const FIRST_ASSIGNED: u32 = 0x20;

impl Launcher {
    /// The launch that it asks for.
    ///
    /// # Errors
    /// [`FunctionError`]: no function, or two devices at one place.
    pub(super) fn into_launch(self) -> Result<Launch, FunctionError> {
        let mut devices: Vec<Assigned> = Vec::new();
        for (text, next) in self.vfio.iter().zip((FIRST_ASSIGNED..).step_by(8)) {
            let (host, at) = match text.split_once(",at=") {
                Some((host, at)) => (host, on_bus_0(at)?),
                None => (text.as_str(), EndpointId::new(next)),
            };
            let host = PciAddress::new(config::function(host)?);
            let twice = |other: &Assigned| other.host == host || other.guest == at;
            if devices.iter().any(twice) || at == self.iommu || at.bus() != 0 {
                return Err(FunctionError::Taken(text.clone()));
            }
            devices.push(Assigned { host, guest: at });
        }
        let (iommu, viot) = (self.iommu, self.viot == Switch::On);
        Ok(Launch { devices, iommu, viot, options: self.options, qemu: self.qemu })
    }
}

/// A function of bus 0: `DD.F`.
fn on_bus_0(text: &str) -> Result<EndpointId, FunctionError> {
    config::function(&format!("00:{text}"))
}

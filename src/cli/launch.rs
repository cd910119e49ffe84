//! The command `launch`.

use std::ffi::OsString;

use clap::Args;
use viommu_backend::vfio::PciAddress;
use viommu_pasid::EndpointId;

use super::options::{Options, Switch};
use crate::config::{
    self, ConfigError, EndpointOption, FunctionError, FunctionRange, HostInterface, OnStart,
    Socket, SpecError,
};
use crate::launch::{Assigned, Launch};

/// What `launch` takes.
#[derive(Debug, Args)]
pub(super) struct Launcher {
    /// A device of the host that is bound to vfio-pci, and its function in the guest:
    /// SSSS:BB:DD.F[,at=DD.F]; again for more, each of an IOMMU group of its own. The default is the
    /// next device from 04.0 on.
    #[arg(long, value_name = "DEVICE", required = true)]
    vfio: Vec<String>,
    /// The IOMMU's own function in the guest, on bus 0.
    #[arg(long, value_name = "DD.F", default_value = "01.0", value_parser = on_bus_0)]
    iommu: EndpointId,
    /// Whether the guest is told by an ACPI table what is behind the IOMMU.
    #[arg(long, value_name = "on|off", default_value = "on")]
    viot: Switch,
    #[command(flatten)]
    options: Options,
    /// QEMU's program and arguments.
    #[arg(last = true, required = true, value_name = "QEMU")]
    qemu: Vec<OsString>,
}

/// What cannot be launched; the message says what would be right.
#[derive(Debug, thiserror::Error)]
pub(super) enum LaunchOptionError {
    /// A device or its place.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// An endpoint.
    #[error(transparent)]
    Endpoint(#[from] SpecError),
    /// What the daemon would refuse.
    #[error(transparent)]
    Daemon(#[from] ConfigError),
    /// A device of the host that QEMU would not have.
    #[error("--endpoint {0} has vfio=: with launch, name devices of the host with --vfio DEVICE")]
    Vfio(EndpointId),
    /// What is attached is QEMU's, and leads to all of the guest's memory.
    #[error(
        "--on-start keep is for a daemon that is started again beside the same VMM: launch starts \
         QEMU anew, so write boot or block"
    )]
    Keep,
}

/// The first function in the guest that a device takes for which no place is named: 00:04.0.
const FIRST_ASSIGNED: u32 = 0x20;

/// Stands for descriptors that are not open yet, where the daemon's options are checked.
const LATER: i32 = 0;

impl Launcher {
    /// The launch that it asks for. `told` are the daemon's options as they were written; they are
    /// checked here, so that a wrong one ends the program before anything is opened.
    ///
    /// # Errors
    /// [`LaunchOptionError`].
    pub(super) fn into_launch(self, told: Vec<OsString>) -> Result<Launch, LaunchOptionError> {
        let devices = self.devices()?;
        let Self { iommu, viot, mut options, qemu, .. } = self;
        if options.on_start == OnStart::Keep {
            return Err(LaunchOptionError::Keep);
        }
        let others: Vec<_> = options.endpoints.iter().map(|endpoint| endpoint.range).collect();
        let has_iommu = |range: &&FunctionRange| (range.first()..=range.last()).contains(&iommu);
        if let Some(range) = others.iter().find(has_iommu) {
            return Err(FunctionError::Taken(range.first().to_string()).into());
        }
        if let Some(endpoint) = options.endpoints.iter().find(|endpoint| endpoint.is_vfio()) {
            return Err(LaunchOptionError::Vfio(endpoint.range.first()));
        }
        for device in &devices {
            let given = format!("{},vfio=fd:{LATER},iommufd=fd:{LATER}", device.guest);
            options.endpoints.push(EndpointOption::parse(&given)?);
        }
        let config = options.config(Socket::Fd(LATER), HostInterface::Iommufd, Some(LATER))?;
        let (viot, log_level) = (viot == Switch::On, config.log_level);
        Ok(Launch { devices, others, iommu, viot, log_level, options: told, qemu })
    }

    /// The devices with their places, none of which is taken twice.
    fn devices(&self) -> Result<Vec<Assigned>, FunctionError> {
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
        Ok(devices)
    }
}

/// A function of bus 0: `DD.F`.
fn on_bus_0(text: &str) -> Result<EndpointId, FunctionError> {
    config::function(&format!("00:{text}"))
}

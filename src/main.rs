//! `vhost-user-iommu`: see `--help`, and the library for how it works.

use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use viommu::cli::{self, Invocation, ViotRequest};
use viommu::config::{Arch, Config, INPUT_BITS, Sandbox, Socket, StuckDevice};
use viommu::daemon::{self, Daemon, FrontEnds};
use viommu::host::{self, Descriptors};
use viommu::iommu::Iommu;
use viommu::launch::{self, Launch};
use viommu::{sandbox, viot};
use viommu_backend::{DevicePlace, SoftwareConfig, SoftwareIommu};
use viommu_iotlb::{Arch as Tables, HubConfig, StuckPolicy};
use viommu_pgtable::PhysAddr;

/// Where VT-d's tables are: above all guest memory, below its 52 bits.
const VTD_TABLE_BASE: u64 = 1 << 51;

/// Where SMMUv3's tables are: its tables of 4 KiB pages reach 48 bits.
const SMMU_TABLE_BASE: u64 = 1 << 47;

/// The smallest page that the tables have.
const TABLE_GRANULE: u64 = 1 << 12;

/// The pages that the tables can have: 4 KiB, 2 MiB, 1 GiB.
const TABLE_PAGES: u64 = TABLE_GRANULE | 1 << 21 | 1 << 30;

/// What a start that fails says.
type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    let done = match cli::parse(std::env::args_os()) {
        Err(usage) => usage.exit(),
        Ok(Invocation::PrintCapabilities) => {
            println!("{}", cli::capabilities());
            Ok(())
        }
        Ok(Invocation::Viot(request)) => write_viot(&request),
        Ok(Invocation::Launch(launch)) => match start(&launch) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Ok(Invocation::Serve(config)) => serve(*config),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-iommu: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A daemon and a QEMU, to QEMU's end; its status.
fn start(launch: &Launch) -> Result<ExitCode, Failure> {
    env_logger::Builder::new().filter_level(launch.log_level).init();
    Ok(launch::run(launch).map(ExitCode::from)?)
}

/// The ACPI table, into its file.
fn write_viot(request: &ViotRequest) -> Result<(), Failure> {
    let table = viot::table(request.iommu, &request.endpoints)?;
    fs::write(&request.output, table)
        .map_err(|error| format!("cannot write {}: {error}", request.output.display()).into())
}

/// The daemon's life: log, listen, make the tables, lock itself in, serve.
///
/// A descriptor that was handed over is taken before anything else opens one.
fn serve(mut config: Config) -> Result<(), Failure> {
    env_logger::Builder::new().filter_level(config.log_level).init();
    let mut descriptors = Descriptors::new();
    for raw in host::inherited(&config) {
        descriptors.insert(raw, daemon::take_over(raw)?);
    }
    let front_ends = match &config.socket {
        Socket::Path(path) => FrontEnds::at_path(path)?,
        Socket::Fd(raw) => FrontEnds::from_fd(*raw)?,
    };
    let control = config.vfio.control.and_then(|raw| descriptors.remove(&raw));
    let tables = tables(&config)?;
    let host = host::with_vfio(&mut config, tables, &mut descriptors)?;
    let vfio = config.endpoints.iter().any(|endpoint| endpoint.vfio.is_some());
    let (sandbox, sockets) = (config.sandbox, sockets(&config));
    let count = config.endpoints.len();
    let specs = config.endpoints.into_iter().map(|endpoint| endpoint.spec).collect();
    let iommu = Iommu::new(config.settings, specs)?;
    let mut daemon = Daemon::new(front_ends, iommu, host, config.polling)?;
    if let Some(control) = control {
        daemon.listen_to_launcher(control)?;
    }
    match sandbox {
        Sandbox::Auto => log::info!("sandbox {}", sandbox::enter(&sockets, vfio)),
        Sandbox::None => log::info!("no sandbox, as asked"),
    }
    log::info!("serving {count} endpoints, waiting for a front-end");
    Ok(daemon.run()?)
}

/// The sockets' files, which the daemon removes when it ends.
fn sockets(config: &Config) -> Vec<PathBuf> {
    let front_end = match &config.socket {
        Socket::Path(path) => Some(path.clone()),
        Socket::Fd(_) => None,
    };
    let devices = config.endpoints.iter().filter_map(|endpoint| endpoint.socket.clone());
    front_end.into_iter().chain(devices).collect()
}

/// The software IOMMU with its endpoints, and the sockets of their device processes.
fn tables(config: &Config) -> Result<SoftwareIommu, Failure> {
    let (arch, table_base) = match config.arch {
        Arch::Vtd => (Tables::Vtd, VTD_TABLE_BASE),
        Arch::SmmuV3 => (Tables::SmmuV3, SMMU_TABLE_BASE),
    };
    let hub = HubConfig {
        arch,
        table_base: PhysAddr::new(table_base),
        table_bytes: config.table_bytes,
        stuck: config.stuck_after,
        policy: match config.stuck_device {
            StuckDevice::Kill => StuckPolicy::Kill,
            StuckDevice::Disconnect => StuckPolicy::Disconnect,
        },
    };
    // As few levels as the guest's IOVAs need.
    let last = config.settings.input.last().raw();
    let [.., widest] = INPUT_BITS;
    let input_bits = INPUT_BITS.into_iter().find(|bits| last >> bits == 0).unwrap_or(widest);
    // A guest's larger granule is made of smaller pages.
    let page_size_mask = config.settings.page_size_mask & TABLE_PAGES | TABLE_GRANULE;
    let mut host = SoftwareIommu::new(SoftwareConfig { input_bits, page_size_mask, hub })?;
    for endpoint in &config.endpoints {
        host.add_endpoint(&DevicePlace {
            endpoint: endpoint.spec.id,
            pasid_bits: endpoint.pasid_bits,
            socket: endpoint.socket.clone(),
        })?;
    }
    Ok(host)
}

//! The command line.
//!
//! [`parse`] makes an [`Invocation`] of the arguments: everything is checked before anything is
//! done. Conventions are those of QEMU's backend programs (QEMU, vhost-user protocol, "Backend
//! program conventions"): exactly one of `--socket-path` and `--fd`; `--print-capabilities` prints
//! and ignores the rest. Exit codes: 0 at an ordered end, 1 at a failure, 2 for a wrong command
//! line.

mod launch;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, Parser, Subcommand, ValueEnum};
use serde::Serialize;
use viommu_backend::vfio::BarWindow;
use viommu_pasid::EndpointId;
use viommu_pgtable::IovaRange;

use crate::config::{
    self, Arch, Config, ConfigError, EndpointOption, FunctionError, FunctionRange, HostInterface,
    MAX_POLL_US, MAX_STUCK_MS, NumberError, OnStart, Pin, Sandbox, StuckDevice, VfioOptions,
};
use crate::iommu::Settings;
use crate::launch::Launch;
use launch::Launcher;

/// The option that overrides all others.
const PRINT_CAPABILITIES: &str = "--print-capabilities";

/// What the program is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invocation {
    /// Print [`capabilities`] and end.
    PrintCapabilities,
    /// Serve front-ends until told to end.
    Serve(Box<Config>),
    /// Write an ACPI table and end.
    Viot(ViotRequest),
    /// Start a daemon and a QEMU that share devices, and end with QEMU.
    Launch(Launch),
}

/// The table to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViotRequest {
    /// The IOMMU's own function.
    pub iommu: EndpointId,
    /// The functions behind it.
    pub endpoints: Vec<FunctionRange>,
    /// The file.
    pub output: PathBuf,
}

/// The guest's IOMMU as a process of its own: a virtio-iommu over vhost-user.
#[derive(Debug, Parser)]
#[command(
    name = "vhost-user-iommu",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_value_name = "COMMAND"
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: Serve,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Write the ACPI table (VIOT) that tells a guest what is behind the IOMMU.
    ///
    /// For a VMM that makes none for us; QEMU takes it with -acpitable file=FILE.
    Viot(Viot),
    /// Start a daemon and an unpatched QEMU that share devices of the host.
    ///
    /// QEMU's arguments describe the machine, its memory shared (share=on); the IOMMU and the
    /// devices are added, on bus 0. The guest runs once the devices are behind the IOMMU.
    Launch(Launcher),
}

#[derive(Debug, Args)]
struct Viot {
    /// The IOMMU's own function: [SSSS:]BB:DD.F.
    #[arg(long, value_name = "BDF", value_parser = one_function)]
    iommu: EndpointId,
    /// Functions behind it: [SSSS:]BB:DD.F[-[SSSS:]BB:DD.F]; again for more.
    #[arg(
        long = "endpoint",
        value_name = "RANGE",
        required = true,
        value_parser = FunctionRange::parse
    )]
    endpoints: Vec<FunctionRange>,
    /// Where the table goes.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
}

#[derive(Debug, Args)]
struct Serve {
    /// Listen for the front-end at this path; what is there is replaced.
    #[arg(long, value_name = "PATH")]
    socket_path: Option<PathBuf>,
    /// Take the front-end's connection, or a socket that listens, from this inherited descriptor.
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    fd: Option<RawFd>,
    /// An endpoint, or a range of them:
    /// [SSSS:]BB:DD.F[-[SSSS:]BB:DD.F][,socket=PATH][,pasid-bits=N][,vfio=DEVICE].
    ///
    /// socket=PATH is where its device process connects; for a range, PATH is a folder with one
    /// socket for each, named SSSS:BB:DD.F. pasid-bits=N, 1 to 20, lets the guest attach domains to
    /// PASIDs of N bits; 0, the default, does not. vfio=SSSS:BB:DD.F is a device of the host that is
    /// bound to vfio-pci; vfio=fd:N,iommufd=fd:M is one that the VMM binds, by inherited descriptors.
    /// BB, DD and F are hexadecimal, N and descriptors decimal. Again for more endpoints.
    #[arg(long = "endpoint", value_name = "SPEC", value_parser = EndpointOption::parse)]
    endpoints: Vec<EndpointOption>,
    /// Structures that the software IOMMU keeps.
    #[arg(long, value_enum, value_name = "ARCH", default_value_t = Arch::Vtd)]
    arch: Arch,
    /// Width of the guest's IOVAs, bits: 39, 48 or, for vtd, 57.
    #[arg(long, value_name = "N", default_value_t = Settings::DEFAULT_INPUT_BITS)]
    input_bits: u8,
    /// Page sizes for the guest's mappings: sizes with + between them, or a mask in hex.
    #[arg(long, value_name = "MASK", default_value = "4K+2M+1G", value_parser = page_sizes)]
    page_sizes: PageSizes,
    /// Keep the guest's IOVAs in this window, both ends inclusive; for instance in plain RAM, so
    /// that stock vhost-user-*-pci devices work behind us.
    #[arg(long, value_name = "START-END", value_parser = config::window)]
    iova_window: Option<IovaRange>,
    /// Where the guest's interrupt controller takes messages, both ends inclusive: no IOVAs. The
    /// default is x86's; with a GICv3 it is the ITS, on QEMU's virt machine 0x8080000-0x809ffff.
    #[arg(
        long,
        value_name = "START-END",
        default_value = "0xfee00000-0xfeefffff",
        value_parser = config::window
    )]
    msi_window: IovaRange,
    /// Whether DMA of an endpoint that is attached to nothing passes when a front-end comes.
    /// Firmware needs it on to read a disk.
    #[arg(long, value_name = "on|off", default_value = "on")]
    boot_bypass: Switch,
    /// Domains that the guest can have at once.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1 << 16,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_domains: u32,
    /// Mappings that each domain can hold.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1 << 20,
        value_parser = clap::value_parser!(u32).range(1..)
    )]
    max_mappings: u32,
    /// Memory for translation tables, bytes (K, M, G); only what is used is taken.
    #[arg(long, value_name = "BYTES", default_value = "1G", value_parser = bytes)]
    table_memory: Bytes,
    /// Poll the request queue for so long after work before sleeping, microseconds.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 0,
        value_parser = clap::value_parser!(u64).range(..=MAX_POLL_US)
    )]
    poll_us: u64,
    /// Wait for a device process that does not let go of a translation, milliseconds.
    #[arg(
        long,
        value_name = "N",
        default_value_t = 1000,
        value_parser = clap::value_parser!(u64).range(1..=MAX_STUCK_MS)
    )]
    stuck_ms: u64,
    /// What becomes of it then.
    #[arg(long, value_enum, value_name = "ACTION", default_value_t = StuckDevice::Kill)]
    stuck_device: StuckDevice,
    /// The kernel's interface to the host's IOMMU, for endpoints with vfio=.
    #[arg(long, value_enum, value_name = "INTERFACE", default_value_t = HostInterface::Auto)]
    host_iommu: HostInterface,
    /// Which guest memory is pinned for VFIO devices, and when.
    #[arg(long, value_enum, value_name = "static|dynamic", default_value_t = Pin::Static)]
    pin: Pin,
    /// Where the guest sees registers of a device of the host, so that the others may be mapped to them:
    /// START-END,endpoint=[SSSS:]BB:DD.F,bar=N[,offset=BYTES].
    ///
    /// START-END are guest-physical addresses, both ends inclusive; endpoint= is one with
    /// vfio=SSSS:BB:DD.F. Again for more. A VMM that shares its devices needs none of this.
    #[arg(long, value_name = "WINDOW", value_parser = config::mmio)]
    mmio: Vec<BarWindow>,
    /// What becomes of a device, given with vfio=fd:N, that is attached already.
    #[arg(long, value_enum, value_name = "boot|keep|block", default_value_t = OnStart::Boot)]
    on_start: OnStart,
    /// An inherited socket: a launcher writes "attach" once the VMM has bound the devices that are
    /// given with vfio=fd:N, and reads "ok", or "error" and why.
    #[arg(long, value_name = "N")]
    vfio_control: Option<RawFd>,
    /// Whether the daemon locks itself in once everything is open: no capabilities, landlock,
    /// seccomp.
    #[arg(long, value_enum, value_name = "auto|none", default_value_t = Sandbox::Auto)]
    sandbox: Sandbox,
    /// What is logged: off, error, warn, info, debug or trace.
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = log_level)]
    log_level: log::LevelFilter,
    /// Print what the program can do as JSON, and end; all else is ignored.
    #[arg(long)]
    print_capabilities: bool,
}

/// On or off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

/// Bytes, so that clap does not read them by itself.
#[derive(Debug, Clone, Copy)]
struct Bytes(u64);

/// A mask of page sizes, likewise.
#[derive(Debug, Clone, Copy)]
struct PageSizes(u64);

/// What the arguments, the program's name first, ask for.
///
/// # Errors
/// A usage error, or what `--help` and `--version` print: [`clap::Error::exit`] prints it in the
/// right place and ends with 2 or 0.
pub fn parse<I, T>(arguments: I) -> Result<Invocation, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    if arguments.iter().skip(1).any(|argument| argument == PRINT_CAPABILITIES) {
        return Ok(Invocation::PrintCapabilities);
    }
    let cli = Cli::try_parse_from(arguments)?;
    match cli.command {
        Some(Command::Viot(Viot { iommu, endpoints, output })) => {
            Ok(Invocation::Viot(ViotRequest { iommu, endpoints, output }))
        }
        Some(Command::Launch(launcher)) => match launcher.into_launch() {
            Ok(launch) => Ok(Invocation::Launch(launch)),
            Err(error) => Err(Cli::command().error(ErrorKind::ValueValidation, error)),
        },
        None => match Config::try_from(cli.serve) {
            Ok(config) => Ok(Invocation::Serve(Box::new(config))),
            Err(error) => Err(Cli::command().error(ErrorKind::ValueValidation, error)),
        },
    }
}

/// What `--print-capabilities` prints.
///
/// QEMU's conventions define the form, but no type for an IOMMU: "iommu" is ours.
#[must_use]
pub fn capabilities() -> String {
    #[derive(Serialize)]
    struct Capabilities {
        #[serde(rename = "type")]
        kind: &'static str,
        features: [&'static str; 0],
    }
    let capabilities = Capabilities { kind: "iommu", features: [] };
    serde_json::to_string_pretty(&capabilities).unwrap_or_default()
}

impl TryFrom<Serve> for Config {
    type Error = ConfigError;

    fn try_from(serve: Serve) -> Result<Self, ConfigError> {
        let page_size_mask = serve.page_sizes.0;
        config::width(serve.arch, serve.input_bits)?;
        let count = |count| usize::try_from(count).unwrap_or(usize::MAX);
        let settings = Settings {
            page_size_mask,
            input: config::input(serve.input_bits, serve.iova_window, page_size_mask)?,
            domains: config::DOMAINS,
            probe_size: Settings::DEFAULT_PROBE_SIZE,
            max_domains: count(serve.max_domains),
            max_mappings: count(serve.max_mappings),
            boot_bypass: serve.boot_bypass == Switch::On,
        };
        let endpoints = config::endpoints(&serve.endpoints, serve.msi_window)?;
        let vfio = VfioOptions {
            interface: serve.host_iommu,
            pin: serve.pin,
            on_start: serve.on_start,
            control: serve.vfio_control,
        };
        Ok(Self {
            socket: config::socket(serve.socket_path, serve.fd)?,
            vfio: config::vfio(&endpoints, vfio)?,
            mmio: config::windows(serve.mmio, &endpoints)?,
            endpoints,
            arch: serve.arch,
            settings,
            table_bytes: config::table_bytes(serve.table_memory.0)?,
            poll: Duration::from_micros(serve.poll_us),
            stuck_after: Duration::from_millis(serve.stuck_ms),
            stuck_device: serve.stuck_device,
            sandbox: serve.sandbox,
            log_level: serve.log_level,
        })
    }
}

fn one_function(text: &str) -> Result<EndpointId, FunctionError> {
    config::function(text)
}

fn bytes(text: &str) -> Result<Bytes, NumberError> {
    config::bytes(text).map(Bytes)
}

fn page_sizes(text: &str) -> Result<PageSizes, NumberError> {
    config::page_sizes(text).map(PageSizes)
}

fn log_level(text: &str) -> Result<log::LevelFilter, String> {
    text.parse().map_err(|_| "write off, error, warn, info, debug or trace".to_owned())
}

#[cfg(test)]
mod tests;

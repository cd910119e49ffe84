//! The command line.
//!
//! [`parse`] makes an [`Invocation`] of the arguments: everything is checked before anything is
//! done. Conventions are those of QEMU's backend programs (QEMU, vhost-user protocol, "Backend
//! program conventions"): exactly one of `--socket-path` and `--fd`; `--print-capabilities` prints
//! and ignores the rest. Exit codes: 0 at an ordered end, 1 at a failure, 2 for a wrong command
//! line.

mod launch;
mod options;

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::Serialize;
use viommu_backend::vfio::BarWindow;
use viommu_pasid::EndpointId;

use crate::config::{self, Config, ConfigError, FunctionError, FunctionRange, HostInterface};
use crate::launch::Launch;
use launch::Launcher;
use options::Options;

/// The option that overrides all others.
const PRINT_CAPABILITIES: &str = "--print-capabilities";

/// The command that takes the daemon's options and passes them on as they were written.
const LAUNCH: &str = "launch";

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
    #[command(flatten)]
    options: Options,
    /// The kernel's interface to the host's IOMMU, for endpoints with vfio=.
    #[arg(long, value_enum, value_name = "INTERFACE", default_value_t = HostInterface::Auto)]
    host_iommu: HostInterface,
    /// Where the guest sees registers of a device of the host, so that the others may be mapped to them:
    /// START-END,endpoint=[SSSS:]BB:DD.F,bar=N[,offset=BYTES].
    ///
    /// START-END are guest-physical addresses, both ends inclusive; endpoint= is one with
    /// vfio=SSSS:BB:DD.F. Again for more. A VMM that shares its devices needs none of this.
    #[arg(long, value_name = "WINDOW", value_parser = config::mmio)]
    mmio: Vec<BarWindow>,
    /// An inherited socket: a launcher writes "attach" once the VMM has bound the devices that are
    /// given with vfio=fd:N, and reads "ok", or "error" and why.
    #[arg(long, value_name = "N")]
    vfio_control: Option<RawFd>,
    /// Print what the program can do as JSON, and end; all else is ignored.
    #[arg(long)]
    print_capabilities: bool,
}

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
    let mut matches = Cli::command().try_get_matches_from(arguments)?;
    let told = matches.subcommand_matches(LAUNCH).map(Options::as_told).unwrap_or_default();
    let cli = Cli::from_arg_matches_mut(&mut matches)?;
    match cli.command {
        Some(Command::Viot(Viot { iommu, endpoints, output })) => {
            Ok(Invocation::Viot(ViotRequest { iommu, endpoints, output }))
        }
        Some(Command::Launch(launcher)) => match launcher.into_launch(told) {
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
        let socket = config::socket(serve.socket_path, serve.fd)?;
        let config = serve.options.config(socket, serve.host_iommu, serve.vfio_control)?;
        let mmio = config::windows(serve.mmio, &config.endpoints)?;
        Ok(Self { mmio, ..config })
    }
}

fn one_function(text: &str) -> Result<EndpointId, FunctionError> {
    config::function(text)
}

#[cfg(test)]
mod tests;

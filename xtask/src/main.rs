//! How to run everything: `cargo xtask set-up`, `guest`, `demo`, `fuzz`, `test`.
//!
//! Whatever is missing is fetched into a cache first: QEMU, guest kernels and busybox out of
//! Debian's packages, without installing them.

mod bench;
mod command;
mod demo;
mod error;
mod host;
mod image;
mod initramfs;
mod oracle;
mod setup;
mod suite;
mod test;
mod ui;
mod vm;

use std::process::{Command, ExitCode};

use clap::{Parser, Subcommand};

use error::{Error, Result};
use setup::guest_kernel::{ROWS, Row};
use suite::tools::Sources;
use suite::{Arch, Selection};

/// Runs what belongs to the project.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    order: Order,
    #[command(flatten)]
    sources: Sources,
}

#[derive(Debug, Subcommand)]
enum Order {
    /// Fetches QEMU and the guest's kernel into the cache, and nothing else
    SetUp,
    /// Boots a stock guest with its disk behind the IOMMU and shows what it says
    Demo,
    /// Runs everything that is checked: format, lints, documentation, tests, guests
    Test {
        /// The whole matrix: every scenario in every guest
        #[arg(long)]
        full: bool,
    },
    /// Measures MAP, UNMAP and translation beside the peers': the tables of docs/performance.md
    Bench {
        /// Fewer rounds over fewer mappings
        #[arg(long)]
        quick: bool,
    },
    /// Compares our tables with QEMU's emulated IOMMUs, which walk the same bytes
    Oracle {
        /// Options of the oracle's own; `-- --help` shows them
        #[arg(last = true)]
        more: Vec<String>,
    },
    /// Translates while mapping and unmapping and looks for one stale access
    Stress {
        /// For how long
        #[arg(long, default_value_t = test::STRESS_SECONDS)]
        seconds: u32,
    },
    /// Runs fuzz targets; `--list` shows them
    Fuzz {
        /// Targets, and options of the runner: --seconds, --seed, --input
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        more: Vec<String>,
    },
    /// Writes the table of sequences and verdicts into docs/aux-domains.md
    AuxTable,
    /// Runs one guest scenario, or all
    Guest {
        /// The scenario; all if there is none
        scenario: Option<String>,
        /// The guest to run in; else the first of each scenario
        #[arg(long, value_name = "GUEST")]
        guest: Option<String>,
        /// The structures that the daemon keeps: vtd or smmuv3; else the scenario's own choice
        #[arg(long, value_name = "ARCH")]
        arch: Option<Arch>,
        /// Runs each scenario in each of its guests, with both kinds of structures
        #[arg(long, conflicts_with = "guest")]
        full: bool,
        /// Shows which scenarios and guests there are
        #[arg(long)]
        list: bool,
        /// Measures the disk in a guest: behind nothing, behind our IOMMU, behind QEMU's own
        #[arg(long, exclusive = true)]
        bench: bool,
    },
    /// Runs one scenario of the host suite, or all: guests whose emulated IOMMU is the host's
    Host {
        /// The scenario; all if there is none
        scenario: Option<String>,
        /// Shows which scenarios there are
        #[arg(long)]
        list: bool,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all that was run passed.
fn run(arguments: &Arguments) -> Result<bool> {
    let sources = &arguments.sources;
    match &arguments.order {
        Order::SetUp => {
            let rows: Vec<&Row> = ROWS.iter().collect();
            suite::tools::fetch(sources, &rows).map(|()| true)
        }
        Order::Demo => demo::run(sources).map(|()| true),
        Order::Bench { quick } => bench::run(sources, *quick),
        Order::Oracle { more } => succeeds(oracle::command(sources, more)?),
        Order::AuxTable => succeeds(test::aux_table()),
        Order::Stress { seconds } => succeeds(test::stress(*seconds)),
        Order::Fuzz { more } => succeeds(test::fuzz(more)),
        Order::Test { full } => test::run(*full, sources),
        Order::Host { list: true, .. } => {
            host::list();
            Ok(true)
        }
        Order::Host { scenario, list: false } => {
            let reports = host::run(scenario.as_deref(), sources)?;
            Ok(reports.iter().all(host::Report::passed))
        }
        Order::Guest { list: true, .. } => {
            suite::list();
            Ok(true)
        }
        Order::Guest { bench: true, .. } => suite::bench::run(sources).map(|()| true),
        Order::Guest { scenario, guest, arch, full, list: false, bench: false } => {
            let (scenario, guest) = (scenario.clone(), guest.clone());
            let selection = Selection { scenario, guest, arch: *arch, full: *full };
            let reports = suite::run(&selection, sources)?;
            Ok(reports.iter().all(|report| report.outcome.passed()))
        }
    }
}

/// Runs a command with our own input and output.
fn succeeds(mut command: Command) -> Result<bool> {
    let status = command
        .status()
        .map_err(|source| Error::Spawn { program: command::name(&command), source })?;
    Ok(status.success())
}

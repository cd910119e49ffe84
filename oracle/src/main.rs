//! Compares our tables and walks with those of QEMU's emulated IOMMUs, and prints what came of it.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use viommu_oracle::emulator::Program;
use viommu_oracle::runner::{Outcome, compare};
use viommu_oracle::smmu::{self, Smmu};
use viommu_oracle::vtd::{self, Vtd};
use viommu_oracle::{Result, report};

/// Our tables against QEMU's emulated IOMMUs: the same bytes, walked by both
#[derive(Debug, Parser)]
struct Args {
    /// Debian's QEMU packages, unpacked here
    #[arg(long, value_name = "DIR", required_unless_present = "qemu")]
    qemu_root: Option<PathBuf>,
    /// A qemu-system-x86_64, or a script that runs one
    #[arg(long, value_name = "PATH")]
    qemu: Option<PathBuf>,
    /// A qemu-system-aarch64, or a script that runs one
    #[arg(long, value_name = "PATH")]
    qemu_arm: Option<PathBuf>,
    /// Accesses to compare in each mode
    #[arg(long, value_name = "N", default_value_t = 2000)]
    cases: u64,
    /// Names the random tables
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Only modes whose name has this in it
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
}

impl Args {
    fn program(&self, own: Option<&PathBuf>, name: &str) -> Option<Program> {
        let unpacked = || self.qemu_root.as_ref().map(|root| Program::unpacked(root, name));
        own.cloned().map(Program::installed).or_else(unpacked)
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(outcomes) => show(&outcomes),
        Err(error) => {
            eprintln!("viommu-oracle: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<Vec<Outcome>> {
    let mut outcomes = Vec::new();
    if let Some(program) = args.program(args.qemu.as_ref(), "qemu-system-x86_64") {
        for mode in vtd::Mode::ALL {
            if !mode.to_string().contains(&args.only) {
                continue;
            }
            let mut unit = Vtd::start(&program, mode)?;
            outcomes.push(compare(&mut unit, args.cases, args.seed)?);
        }
    }
    if let Some(program) = args.program(args.qemu_arm.as_ref(), "qemu-system-aarch64") {
        for mode in smmu::Mode::ALL {
            if !mode.to_string().contains(&args.only) {
                continue;
            }
            let mut unit = Smmu::start(&program, mode)?;
            outcomes.push(compare(&mut unit, args.cases, args.seed)?);
        }
    }
    Ok(outcomes)
}

fn show(outcomes: &[Outcome]) -> ExitCode {
    print!("{}\n{}", report::table(outcomes), report::exceptions(outcomes));
    let disagreements: u64 = outcomes.iter().map(|outcome| outcome.disagreements).sum();
    if disagreements == 0 {
        return ExitCode::SUCCESS;
    }
    eprint!("{}", report::disagreements(outcomes));
    eprintln!("viommu-oracle: {disagreements} disagreements");
    ExitCode::FAILURE
}

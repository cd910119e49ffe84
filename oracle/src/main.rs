//! Compares our tables and walks with those of QEMU's emulated IOMMUs, and prints what came of it.

use std::collections::HashMap;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

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
    #[arg(long, value_name = "DIR", required_unless_present_any = ["qemu", "qemu_arm"])]
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
        Ok(outcomes) if outcomes.is_empty() => {
            eprintln!("viommu-oracle: no mode has {:?} in its name", args.only);
            ExitCode::FAILURE
        }
        Ok(outcomes) => show(&outcomes),
        Err(error) => {
            eprintln!("viommu-oracle: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What one worker compares at a time, with a machine of its own.
#[derive(Debug, Clone)]
enum Job {
    Vtd(Program, vtd::Mode),
    Smmu(Program, smmu::Mode),
}

impl Job {
    fn name(&self) -> String {
        match self {
            Self::Vtd(_, mode) => mode.to_string(),
            Self::Smmu(_, mode) => mode.to_string(),
        }
    }

    fn run(&self, args: &Args) -> Result<Outcome> {
        match self {
            Self::Vtd(program, mode) => {
                compare(&mut Vtd::start(program, *mode)?, args.cases, args.seed)
            }
            Self::Smmu(program, mode) => {
                compare(&mut Smmu::start(program, *mode)?, args.cases, args.seed)
            }
        }
    }
}

fn jobs(args: &Args) -> Vec<Job> {
    let vtd = args.program(args.qemu.as_ref(), "qemu-system-x86_64");
    let smmu = args.program(args.qemu_arm.as_ref(), "qemu-system-aarch64");
    let vtd = vtd.into_iter().flat_map(|program| {
        vtd::Mode::ALL.into_iter().map(move |mode| Job::Vtd(program.clone(), mode))
    });
    let smmu = smmu.into_iter().flat_map(|program| {
        smmu::Mode::ALL.into_iter().map(move |mode| Job::Smmu(program.clone(), mode))
    });
    vtd.chain(smmu).filter(|job| job.name().contains(&args.only)).collect()
}

/// All jobs, as many at a time as there are processors; the outcomes in the jobs' order.
fn run(args: &Args) -> Result<Vec<Outcome>> {
    let jobs = jobs(args);
    let next = AtomicUsize::new(0);
    let work = || {
        // each number is drawn once; nothing else depends on the order
        let take = || jobs.get(next.fetch_add(1, Ordering::Relaxed));
        std::iter::from_fn(|| take().map(|job| (job.name(), job.run(args)))).collect::<Vec<_>>()
    };
    let workers = thread::available_parallelism().map_or(1, NonZero::get).min(jobs.len());
    let mut outcomes = thread::scope(|scope| {
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let done = workers.into_iter().flat_map(|worker| match worker.join() {
            Ok(outcomes) => outcomes,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.map(|(name, outcome)| Ok((name, outcome?))).collect::<Result<HashMap<_, _>>>()
    })?;
    Ok(jobs.iter().filter_map(|job| outcomes.remove(&job.name())).collect())
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

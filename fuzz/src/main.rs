//! Runs fuzz targets, on the stable toolchain.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use viommu_fuzz::runner::{self, Plan};
use viommu_fuzz::{TARGETS, Target, Trace, target};

/// Runs fuzz targets: the corpus, then inputs made of it.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask fuzz")]
struct Arguments {
    /// The targets; all of them if there is none
    targets: Vec<String>,
    /// How long to run each
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// What the inputs follow from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Runs this input and nothing else
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Where inputs that fail are saved
    #[arg(long, value_name = "FOLDER", default_value = "target/fuzz")]
    failures: PathBuf,
    /// Shows which targets there are
    #[arg(long)]
    list: bool,
    /// Saves the inputs that reached something new, a folder for each target
    #[arg(long, value_name = "FOLDER")]
    keep: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        TARGETS.iter().for_each(|target| println!("{:<20} {}", target.name, target.claim));
        return ExitCode::SUCCESS;
    }
    let targets = match chosen(&arguments.targets) {
        Ok(targets) => targets,
        Err(unknown) => {
            eprintln!("error: there is no target {unknown:?}; --list shows which there are");
            return ExitCode::FAILURE;
        }
    };
    match &arguments.input {
        Some(path) => again(&targets, path),
        None => run(&targets, &arguments),
    }
}

fn chosen(names: &[String]) -> Result<Vec<&'static Target>, &String> {
    if names.is_empty() {
        return Ok(TARGETS.iter().collect());
    }
    names.iter().map(|name| target(name).ok_or(name)).collect()
}

/// Runs one input; a failure is a panic with all that it says.
fn again(targets: &[&Target], path: &Path) -> ExitCode {
    let [target] = targets else {
        eprintln!("error: --input is for one target");
        return ExitCode::FAILURE;
    };
    match std::fs::read(path) {
        Ok(bytes) => {
            (target.run)(&bytes, &mut Trace::default());
            println!("{}: {} passes", target.name, path.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: read {}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

/// Runs each for its time. The last line is what cargo prints after tests, one for each target.
fn run(targets: &[&Target], arguments: &Arguments) -> ExitCode {
    let plan = Plan {
        seed: arguments.seed,
        time: Duration::from_secs(arguments.seconds),
        corpus: Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus"),
        failures: arguments.failures.clone(),
    };
    println!("seed {}, {} s for each target", plan.seed, arguments.seconds);
    let mut failures = 0;
    for target in targets {
        match runner::run(target, &plan) {
            Ok(passed) => {
                let (inputs, kept, reached) = (passed.inputs, passed.kept.len(), passed.reached);
                println!(
                    "{:<20} {inputs:>9} inputs, {kept:>4} kept, {reached:>4} outcomes",
                    target.name
                );
                if let Some(folder) = &arguments.keep {
                    passed.kept.iter().for_each(|bytes| _ = runner::save(target, folder, bytes));
                }
            }
            Err(failed) => {
                failures += 1;
                println!("{failed}");
            }
        }
    }
    let passed = targets.len() - failures;
    let verdict = if failures == 0 { "ok" } else { "FAILED" };
    println!("test result: {verdict}. {passed} passed; {failures} failed; 0 ignored");
    if failures == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

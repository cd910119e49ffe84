//! The lanes that cargo runs: format, lints, documentation, tests.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::tally::Tally;
use crate::command;
use crate::error::{Error, Result};
use crate::setup::build;
use crate::ui::Step;

/// Lines of a lane's log that are shown when it fails.
const LOG_LINES: usize = 40;

/// One call of cargo.
#[derive(Debug)]
pub(crate) struct Lane {
    /// Its name.
    pub(crate) name: &'static str,
    arguments: &'static [&'static str],
    environment: &'static [(&'static str, &'static str)],
}

/// In the order in which they run: what is quick and often wrong comes first.
pub(crate) const LANES: &[Lane] = &[
    Lane { name: "format", arguments: &["fmt", "--all", "--check"], environment: &[] },
    Lane {
        name: "clippy",
        arguments: &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
        environment: &[],
    },
    Lane {
        name: "documentation",
        arguments: &["doc", "--workspace", "--no-deps"],
        environment: &[("RUSTDOCFLAGS", "-D warnings")],
    },
    Lane {
        name: "tests",
        arguments: &["test", "--workspace", "--all-features", "--no-fail-fast"],
        environment: &[],
    },
    Lane {
        name: "tests-smmuv3",
        arguments: &["test", "--package", "viommu", "--test", "it"],
        environment: &[("VIOMMU_IT_ARCH", "smmuv3")],
    },
    Lane {
        name: "private-pasid",
        arguments: &["run", "--release", "--example", "private_pasid"],
        environment: &[],
    },
];

/// How long the stress lane looks for a stale access.
pub(crate) const STRESS_SECONDS: u32 = 60;

/// Processes that translate while the daemon maps and unmaps, looking for one stale access.
pub(crate) fn stress(seconds: u32) -> Command {
    let mut cargo = build::cargo();
    cargo.args(["test", "--release", "--package", "viommu-iotlb", "--test", "processes", "marks"]);
    cargo.env("STRESS_SECONDS", seconds.to_string());
    cargo
}

/// The sequences of auxiliary domains with both kinds of structures; what they saw goes into the page.
pub(crate) fn aux_table() -> Command {
    let mut cargo = build::cargo();
    cargo.args(["test", "--package", "viommu", "--test", "it", "sequences::table"]);
    cargo.env("VIOMMU_WRITE_TABLES", "1");
    cargo
}

/// How long the fuzz lane runs each target.
const FUZZ_SECONDS: u32 = 5;

/// The fuzz targets, with arguments for their runner.
pub(crate) fn fuzz(arguments: &[String]) -> Command {
    let mut cargo = build::cargo();
    cargo.args(["run", "--quiet", "--profile", "fuzz", "--package", "viommu-fuzz", "--"]);
    cargo.arg("--failures").arg(build::target().join("fuzz")).args(arguments);
    cargo
}

/// Each fuzz target for some seconds.
pub(crate) fn brief_fuzz() -> Command {
    fuzz(&["--seconds".to_owned(), FUZZ_SECONDS.to_string()])
}

impl Lane {
    /// True for those in which tests look for programs of others.
    pub(crate) fn compares(&self) -> bool {
        self.name == "tests"
    }

    /// Runs it with more in its environment, its output in `logs/NAME.log`. A lane without tests of its own
    /// counts as one.
    ///
    /// # Errors
    /// cargo cannot be started, or the log not be written.
    pub(crate) fn run(&self, logs: &Path, more: &[(&str, PathBuf)]) -> Result<Tally> {
        let mut cargo = build::cargo();
        cargo.args(self.arguments).envs(self.environment.iter().copied());
        cargo.envs(more.iter().map(|(name, value)| (name, value)));
        // the log is read by people and by us: no colours
        cargo.env("TERM", "dumb").env("CARGO_TERM_COLOR", "never");
        run(self.name, cargo, logs)
    }
}

/// Runs a command as a lane.
///
/// # Errors
/// It cannot be started, or its log not be written.
pub(crate) fn run(name: &str, mut lane: Command, logs: &Path) -> Result<Tally> {
    let step = Step::begin(name);
    let log = logs.join(format!("{name}.log"));
    let file = File::create(&log).map_err(Error::file("make", &log))?;
    let copy = file.try_clone().map_err(Error::file("use", &log))?;
    lane.stdin(Stdio::null()).stdout(file).stderr(copy);
    let status =
        lane.status().map_err(|source| Error::Spawn { program: command::name(&lane), source })?;
    let bytes = fs::read(&log).map_err(Error::file("read", &log))?;
    let output = String::from_utf8_lossy(&bytes).into_owned();
    let tally = counted(Tally::of_cargo_test(&output), status.success());
    if status.success() {
        step.done(tally);
    } else {
        step.done(format_args!("FAILED: {tally}"));
        println!("    -- {}:{}", log.display(), command::tail(&output, LOG_LINES));
    }
    Ok(tally)
}

/// A lane that fails has at least one failure, even if it never came to a test.
fn counted(tests: Tally, success: bool) -> Tally {
    match (tests, success) {
        (Tally { passed: 0, failed: 0, .. }, _) => Tally::one(success),
        (Tally { failed: 0, .. }, false) => Tally { failed: 1, ..tests },
        _ => tests,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lane_that_fails_without_a_failed_test_counts_as_a_failure() {
        let tests = Tally { passed: 3, failed: 0, skipped: 0 };
        assert_eq!(counted(tests, false), Tally { failed: 1, ..tests });
        assert_eq!(counted(Tally::default(), false), Tally::one(false));
    }

    #[test]
    fn a_lane_without_tests_counts_as_one_and_tests_count_themselves() {
        assert_eq!(counted(Tally::default(), true), Tally::one(true));
        let tests = Tally { passed: 3, failed: 2, skipped: 1 };
        assert_eq!(counted(tests, false), tests);
    }
}

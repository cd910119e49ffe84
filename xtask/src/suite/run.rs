//! Running scenarios and telling how they went.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::stage::Stage;
use super::tools::{Sources, Tools};
use super::{SCENARIOS, Scenario};
use crate::command;
use crate::error::{Error, Result};
use crate::setup::build;
use crate::ui::{Step, seconds, table};

/// Lines of each log that are shown when a scenario fails.
const LOG_LINES: usize = 12;

/// How one scenario went.
#[derive(Debug)]
pub(crate) struct Report {
    /// The scenario.
    pub(crate) scenario: &'static str,
    /// The guest that it ran in.
    pub(crate) guest: String,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// How long it took, without what is made once for all.
    pub(crate) time: Duration,
}

/// What came of a scenario.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All held; what is worth knowing besides.
    Passed(String),
    /// Something did not.
    Failed(String),
}

impl Outcome {
    /// Whether all held.
    pub(crate) fn passed(&self) -> bool {
        matches!(self, Self::Passed(_))
    }
}

/// Prints the scenarios.
pub(crate) fn list() {
    let rows: Vec<[String; 2]> = SCENARIOS
        .iter()
        .map(|scenario| [scenario.name.to_owned(), scenario.about.to_owned()])
        .collect();
    table(["scenario", "shows"], &rows);
}

/// Runs the scenario named, or all; prints a line for each and a table at the end.
///
/// # Errors
/// There is no such scenario, or what they need cannot be had. A scenario that fails is no error
/// here, but in its report.
pub(crate) fn run(wanted: Option<&str>, sources: &Sources) -> Result<Vec<Report>> {
    let chosen: Vec<&Scenario> = SCENARIOS
        .iter()
        .filter(|scenario| wanted.is_none_or(|name| name == scenario.name))
        .collect();
    if let (Some(name), []) = (wanted, chosen.as_slice()) {
        let known: Vec<&str> = SCENARIOS.iter().map(|scenario| scenario.name).collect();
        let (name, known) = (name.to_owned(), known.join(", "));
        return Err(Error::Unknown { kind: "scenario", name, known });
    }
    let scripts: Vec<_> = SCENARIOS.iter().map(|each| (each.name, each.script)).collect();
    let tools = Tools::prepare(sources, &scripts)?;
    let reports: Vec<Report> = chosen.into_iter().map(|each| one(each, &tools)).collect();
    println!();
    show(&reports);
    Ok(reports)
}

fn one(scenario: &Scenario, tools: &Tools) -> Report {
    let step = Step::begin(format_args!("guest {}: {}", scenario.name, scenario.about));
    let began = Instant::now();
    let dir = build::target().join("guest").join(scenario.name);
    let outcome = match play(scenario, tools, &dir) {
        Ok(remark) => {
            step.done(format_args!("ok {remark}"));
            Outcome::Passed(remark)
        }
        Err(error) => {
            step.done("FAILED");
            println!("    {error}");
            show_logs(&dir);
            Outcome::Failed(error.to_string())
        }
    };
    let (guest, time) = (tools.kernel.title(), began.elapsed());
    Report { scenario: scenario.name, guest, outcome, time }
}

fn play(scenario: &Scenario, tools: &Tools, dir: &Path) -> Result<String> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(Error::file("empty", dir))?;
    }
    fs::create_dir_all(dir).map_err(Error::file("make", dir))?;
    let mut stage = Stage::open(scenario.name, &scenario.set, tools, dir, scenario.limit)?;
    (scenario.play)(&mut stage)
}

fn show_logs(dir: &Path) {
    for log in ["talk", "guest", "qemu", "daemon", "disk", "engine"] {
        let path = dir.join(format!("{log}.log"));
        let Ok(bytes) = fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        println!("    -- {}:{}", path.display(), command::tail(&text, LOG_LINES));
    }
}

fn show(reports: &[Report]) {
    let rows: Vec<[String; 5]> = reports
        .iter()
        .map(|report| {
            let (verdict, remark) = match &report.outcome {
                Outcome::Passed(remark) => ("ok", remark),
                Outcome::Failed(why) => ("FAILED", why),
            };
            let remark = remark.lines().next().unwrap_or_default().to_owned();
            let (scenario, guest) = (report.scenario.to_owned(), report.guest.clone());
            [scenario, guest, verdict.to_owned(), seconds(report.time), remark]
        })
        .collect();
    table(["scenario", "guest", "verdict", "time", ""], &rows);
}

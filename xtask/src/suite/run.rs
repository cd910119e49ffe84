//! Running scenarios and telling how they went.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::set::Iommu;
use super::stage::{Place, Stage};
use super::tools::{Sources, Tools};
use super::{Arch, SCENARIOS, Scenario};
use crate::command;
use crate::error::{Error, Result};
use crate::setup::build;
use crate::setup::guest_kernel::Row;
use crate::ui::{Step, note, seconds, table};

/// Lines of each log that are shown when a scenario fails.
const LOG_LINES: usize = 12;

/// Attempts at a scenario in which the VMM may end itself by a known fault of its own: where that
/// happens every other time, one run of the scenario in 256 fails of it.
const TRIES: u32 = 8;

/// How one scenario went.
#[derive(Debug)]
pub(crate) struct Report {
    /// The scenario.
    pub(crate) scenario: &'static str,
    /// The guest that it ran in.
    pub(crate) guest: String,
    /// The structures that the daemon kept.
    pub(crate) arch: Arch,
    /// What came of it.
    pub(crate) outcome: Outcome,
    /// How long it took, without what is made once for all.
    pub(crate) time: Duration,
}

impl Report {
    fn skipped((scenario, row, arch): Boot, why: &str) -> Self {
        let (guest, outcome) = (row.name.to_owned(), Outcome::Skipped(why.to_owned()));
        Self { scenario: scenario.name, guest, arch, outcome, time: Duration::ZERO }
    }
}

/// What came of a scenario.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// All held; what is worth knowing besides.
    Passed(String),
    /// Something did not.
    Failed(String),
    /// This machine cannot boot that guest.
    Skipped(String),
}

impl Outcome {
    /// Whether all held.
    pub(crate) fn passed(&self) -> bool {
        matches!(self, Self::Passed(_))
    }
}

/// Which scenarios are to run, in which guests.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    /// Only this one.
    pub(crate) scenario: Option<String>,
    /// In this guest only.
    pub(crate) guest: Option<String>,
    /// With these structures only.
    pub(crate) arch: Option<Arch>,
    /// In all guests, with all structures; else in the first of each scenario.
    pub(crate) full: bool,
}

/// One scenario in one guest, with one kind of structures.
type Boot = (&'static Scenario, &'static Row, Arch);

impl Selection {
    /// The boots that it stands for.
    ///
    /// # Errors
    /// There is no such scenario or guest.
    fn boots(&self) -> Result<Vec<Boot>> {
        let wanted = |scenario: &&Scenario| {
            self.scenario.as_deref().is_none_or(|name| name == scenario.name)
        };
        let mut boots = Vec::new();
        for scenario in SCENARIOS.iter().filter(wanted) {
            let guests: Vec<&str> = match (&self.guest, self.full) {
                (Some(guest), _) => vec![guest.as_str()],
                (None, true) => scenario.guests.to_vec(),
                (None, false) => scenario.guests.iter().take(1).copied().collect(),
            };
            let archs = match (self.arch, self.full) {
                (Some(arch), _) => vec![arch],
                (None, true) if scenario.set.iommu == Iommu::Ours => vec![Arch::Vtd, Arch::SmmuV3],
                (None, _) => vec![scenario.arch],
            };
            for guest in guests {
                let row = Row::named(guest)?;
                boots.extend(archs.iter().map(|arch| (scenario, row, *arch)));
            }
        }
        match &self.scenario {
            Some(name) if boots.is_empty() => Err(Error::Unknown {
                kind: "scenario",
                name: name.clone(),
                known: SCENARIOS.iter().map(|each| each.name).collect::<Vec<_>>().join(", "),
            }),
            _ => Ok(boots),
        }
    }

    /// How many boots it stands for; none if it is no good.
    pub(crate) fn count(&self) -> u64 {
        self.boots().map_or(0, |boots| u64::try_from(boots.len()).unwrap_or(u64::MAX))
    }
}

/// Runs what is selected; prints a line for each boot and a table at the end.
///
/// # Errors
/// The selection is no good, or what it needs cannot be had. A scenario that fails is no error here,
/// but in its report.
pub(crate) fn run(selection: &Selection, sources: &Sources) -> Result<Vec<Report>> {
    let boots = selection.boots()?;
    let mut rows: Vec<&Row> = boots.iter().map(|(_, row, _)| *row).collect();
    rows.sort_by_key(|row| row.name);
    rows.dedup_by_key(|row| row.name);
    let scripts: Vec<_> = SCENARIOS.iter().map(|each| (each.name, each.script)).collect();
    let tools = Tools::prepare(sources, &rows, &scripts)?;
    let reports: Vec<Report> = boots.into_iter().map(|boot| one(boot, &tools)).collect();
    println!();
    show(&reports);
    Ok(reports)
}

fn one(boot: Boot, tools: &Tools) -> Report {
    let (scenario, row, arch) = boot;
    let guest = match tools.guest(row.name) {
        Ok(kit) => kit.kernel.title(),
        Err(why) => return Report::skipped(boot, why),
    };
    let step = Step::begin(format_args!("{} in {guest}, {}", scenario.name, arch.option()));
    let began = Instant::now();
    let dir = build::target().join("guest").join(format!(
        "{}.{}.{}",
        scenario.name,
        row.name,
        arch.option()
    ));
    let outcome = match play(boot, tools, &dir) {
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
    Report { scenario: scenario.name, guest, arch, outcome, time: began.elapsed() }
}

/// Plays the scenario, again where the VMM fell by a known fault of its own; one that falls each time
/// is a failure.
fn play(boot: Boot, tools: &Tools, dir: &Path) -> Result<String> {
    for _ in 1..TRIES {
        match attempt(boot, tools, dir) {
            Err(Error::VmmFell(why)) => {
                note(format_args!("once more: the VMM ended itself: {why}"))
            }
            done => return done,
        }
    }
    attempt(boot, tools, dir)
}

fn attempt((scenario, row, arch): Boot, tools: &Tools, dir: &Path) -> Result<String> {
    fresh(dir)?;
    let kit = tools.guest(row.name).map_err(|why| Error::Wrong(why.to_owned()))?;
    let place = Place { tools, kit, arch, dir };
    let mut stage = Stage::open(scenario.name, &scenario.set, &place, scenario.limit)?;
    (scenario.play)(&mut stage)
}

/// Makes the folder, empty.
///
/// # Errors
/// What was in it cannot be removed, or it cannot be made.
pub(crate) fn fresh(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).map_err(Error::file("empty", dir))?;
    }
    fs::create_dir_all(dir).map_err(Error::file("make", dir))
}

fn show_logs(dir: &Path) {
    for log in ["talk", "guest", "qemu", "daemon", "disk", "second", "engine", "other"] {
        let path = dir.join(format!("{log}.log"));
        let Ok(bytes) = fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        println!("    -- {}:{}", path.display(), command::tail(&text, LOG_LINES));
    }
}

fn show(reports: &[Report]) {
    let rows: Vec<[String; 6]> = reports
        .iter()
        .map(|report| {
            let (verdict, remark) = match &report.outcome {
                Outcome::Passed(remark) => ("ok", remark),
                Outcome::Failed(why) => ("FAILED", why),
                Outcome::Skipped(why) => ("skipped", why),
            };
            let remark = remark.lines().next().unwrap_or_default().to_owned();
            let (scenario, guest) = (report.scenario.to_owned(), report.guest.clone());
            let arch = report.arch.option().to_owned();
            [scenario, guest, arch, verdict.to_owned(), seconds(report.time), remark]
        })
        .collect();
    table(["scenario", "guest", "arch", "verdict", "time", ""], &rows);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::setup::guest_kernel::ROWS;

    fn boots(selection: &Selection) -> Vec<(&'static str, &'static str, &'static str)> {
        let boots = selection.boots().unwrap();
        boots.iter().map(|(each, row, arch)| (each.name, row.name, arch.option())).collect()
    }

    #[test]
    fn once_is_each_scenario_in_one_guest_and_all_guests_and_structures_have_their_turn() {
        let once = boots(&Selection::default());
        let names: BTreeSet<_> = once.iter().map(|(name, ..)| *name).collect();
        assert_eq!((names.len(), once.len()), (SCENARIOS.len(), SCENARIOS.len()));
        let guests: BTreeSet<_> = once.iter().map(|(_, guest, _)| *guest).collect();
        assert_eq!(guests, ROWS.iter().map(|row| row.name).collect());
        let archs: BTreeSet<_> = once.iter().map(|(.., arch)| *arch).collect();
        assert_eq!(archs, BTreeSet::from(["smmuv3", "vtd"]));
    }

    #[test]
    fn full_is_each_scenario_in_each_of_its_guests_with_both_structures() {
        let full = boots(&Selection { full: true, ..Selection::default() });
        for scenario in SCENARIOS {
            let archs = if scenario.set.iommu == Iommu::Ours { 2 } else { 1 };
            let count = full.iter().filter(|(name, ..)| *name == scenario.name).count();
            assert_eq!(count, archs * scenario.guests.len(), "{}", scenario.name);
        }
        assert_eq!(full.iter().collect::<BTreeSet<_>>().len(), full.len(), "none twice");
    }

    #[test]
    fn a_structure_that_is_named_is_the_only_one() {
        let arch = Some(Arch::SmmuV3);
        let smmu = boots(&Selection { arch, ..Selection::default() });
        assert_eq!(smmu.len(), SCENARIOS.len());
        assert!(smmu.iter().all(|(.., arch)| *arch == "smmuv3"));
    }

    #[test]
    fn a_scenario_or_a_guest_that_does_not_exist_is_an_error_that_names_those_there_are() {
        let named = |scenario: Option<&str>, guest: Option<&str>| {
            let (scenario, guest) = (scenario.map(str::to_owned), guest.map(str::to_owned));
            Selection { scenario, guest, ..Selection::default() }.boots().unwrap_err().to_string()
        };
        assert!(named(Some("no"), None).contains("groups"), "scenario");
        assert!(named(None, Some("no")).contains("arm64"), "guest");
    }
}

//! Running scenarios and telling how they went.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::board::{FUNCTIONS, Iommu};
use super::inner::Inner;
use super::scenarios::SCENARIOS;
use super::{INNER_LIMIT, Kernel, LIMIT, Scenario, twice, unplug};
use crate::command;
use crate::error::{Error, Result};
use crate::initramfs::{self, Program};
use crate::setup::build;
use crate::setup::cache::Cache;
use crate::setup::emulator::Emulator;
use crate::setup::guest_kernel::{ARM64, Architecture, GuestKernel, NEWEST, Row};
use crate::setup::linux;
use crate::suite::fresh;
use crate::suite::tools::{BootKit, Sources};
use crate::ui::{Step, note, seconds, table};
use crate::vm::machine::{Function, Machine};
use crate::vm::process::Deadline;

/// The guest's script: it hands over to the program, which says what it finds and may wait for the host.
const SCRIPT: (&str, &str) = ("host", "host-suite $(option play) <&3 >&3\n");

/// Lines of each log that are shown when a scenario fails.
const LOG_LINES: usize = 30;

/// The guest's memory. QEMU inside it needs some, too.
const MEMORY_MIB: &[u32] = &[1024];

/// How one scenario went.
#[derive(Debug)]
pub(crate) struct Report {
    scenario: &'static Scenario,
    /// What it has to say, or why it failed.
    outcome: std::result::Result<String, String>,
    time: Duration,
}

impl Report {
    /// Whether all held.
    pub(crate) fn passed(&self) -> bool {
        self.outcome.is_ok()
    }
}

/// How many scenarios there are.
pub(crate) const fn count() -> u64 {
    SCENARIOS.len() as u64
}

/// Prints the scenarios.
pub(crate) fn list() {
    let row = |scenario: &Scenario| {
        let (iommu, kernel) = (scenario.iommu.name().to_owned(), scenario.kernel.name().to_owned());
        [scenario.name.to_owned(), iommu, kernel, scenario.about.to_owned()]
    };
    let rows: Vec<[String; 4]> = SCENARIOS.iter().map(row).collect();
    table(["scenario", "iommu", "kernel", "shows"], &rows);
}

/// Runs the scenario of that name, or all; prints a line for each and a table at the end.
///
/// # Errors
/// There is no such scenario, or what it needs cannot be had. A scenario that fails is no error here,
/// but in its report.
pub(crate) fn run(name: Option<&str>, sources: &Sources) -> Result<Vec<Report>> {
    let wanted = |scenario: &&Scenario| name.is_none_or(|name| name == scenario.name);
    let selected: Vec<&'static Scenario> = SCENARIOS.iter().filter(wanted).collect();
    if let (Some(name), true) = (name, selected.is_empty()) {
        let known = SCENARIOS.iter().map(|each| each.name).collect::<Vec<_>>().join(", ");
        return Err(Error::Unknown { kind: "scenario", name: name.to_owned(), known });
    }
    let lab = Lab::prepare(&selected, sources)?;
    let reports = lab.all(&selected);
    println!();
    show(&reports);
    Ok(reports)
}

/// What all scenarios run with.
struct Lab {
    emulator: Emulator,
    kits: Vec<(Kernel, Architecture, BootKit)>,
    /// What a guest inside takes, where a scenario has one.
    inner: Option<Inner>,
}

impl Lab {
    /// Fetches what is missing and builds the rest.
    fn prepare(scenarios: &[&'static Scenario], sources: &Sources) -> Result<Self> {
        let Fetched { emulator, kernels, mut packages } = fetch(scenarios, sources)?;
        let (mut kits, mut inner) = (Vec::new(), None);
        for (kernel, chosen) in kernels {
            let architecture = chosen.architecture;
            let programs = build::host_programs(architecture)?;
            if (kernel, architecture) == INNER
                && let Some(packages) = packages.take()
            {
                let boot = build::target().join("host").join("inner");
                inner = Some(Inner::prepare(packages, &chosen, &programs, &boot)?);
            }
            kits.push((kernel, architecture, kit(kernel, chosen, &programs)?));
        }
        Ok(Self { emulator, kits, inner })
    }

    /// Plays all, in their order. One with a guest inside takes about as long as the others together, so it
    /// begins with the first and is told of in its turn.
    fn all(&self, scenarios: &[&'static Scenario]) -> Vec<Report> {
        thread::scope(|scope| {
            let long = scenarios.iter().filter(|scenario| scenario.inner);
            let mut beside: BTreeMap<_, _> = long
                .map(|scenario| (scenario.name, scope.spawn(move || self.timed(scenario))))
                .collect();
            let mut reports = Vec::new();
            for scenario in scenarios {
                let step = Step::begin(format_args!("{}: {}", scenario.name, scenario.about));
                let played = match beside.remove(scenario.name) {
                    Some(played) => played.join().unwrap_or_else(|_| panicked()),
                    None => self.timed(scenario),
                };
                reports.push(told(scenario, step, played));
            }
            reports
        })
    }

    fn timed(&self, scenario: &Scenario) -> Played {
        let began = Instant::now();
        let outcome = self.play(scenario, &folder(scenario));
        (outcome, began.elapsed())
    }

    fn play(&self, scenario: &Scenario, dir: &Path) -> Result<String> {
        fresh(dir)?;
        let wanted = (scenario.kernel, scenario.iommu.architecture());
        let kit = self.kits.iter().find(|(kernel, arch, _)| (*kernel, *arch) == wanted);
        let (_, _, kit) =
            kit.ok_or_else(|| Error::Wrong("a kernel was not prepared".to_owned()))?;
        let inner = self.inner.as_ref().filter(|_| scenario.inner);
        let mut machine = machine(scenario, kit, inner);
        if scenario.iommu == Iommu::SmmuV3Twice {
            machine.topology = Some(twice::device_tree(&machine, &self.emulator, dir)?);
        }
        let deadline = Deadline::after(if scenario.inner { INNER_LIMIT } else { LIMIT });
        let mut guest = machine.boot(&self.emulator, dir)?;
        if scenario.unplugs {
            unplug::when_ready(&mut guest, dir, deadline)?;
        }
        guest.until_off(deadline)?;
        let mut remark = "";
        for check in scenario.checks {
            remark = guest.talk.check(check)?;
        }
        Ok(remark.to_owned())
    }
}

/// What came of a scenario, and how long it took.
type Played = (Result<String>, Duration);

fn panicked() -> Played {
    (Err(Error::Wrong("the thread that played it panicked".to_owned())), Duration::ZERO)
}

/// Where a scenario's logs are.
fn folder(scenario: &Scenario) -> PathBuf {
    build::target().join("host").join(scenario.name)
}

/// Ends the step of a scenario that was played.
fn told(scenario: &'static Scenario, step: Step, (outcome, time): Played) -> Report {
    let outcome = match outcome {
        Ok(remark) => {
            step.done(format_args!("ok {remark}"));
            Ok(remark)
        }
        Err(error) => {
            step.done("FAILED");
            println!("    {error}");
            show_logs(&folder(scenario));
            Err(error.to_string())
        }
    };
    Report { scenario, outcome, time }
}

/// The kernel of a guest that has a guest, which boots the same one.
const INNER: (Kernel, Architecture) = (Kernel::Built, Architecture::Amd64);

/// What is not ours.
struct Fetched {
    emulator: Emulator,
    kernels: Vec<(Kernel, GuestKernel)>,
    /// QEMU's packages, where a scenario has a guest inside.
    packages: Option<PathBuf>,
}

/// QEMU and the kernels of these scenarios. The cache is held for no longer than that.
fn fetch(scenarios: &[&'static Scenario], sources: &Sources) -> Result<Fetched> {
    let cache = Cache::open()?;
    let mirror = sources.mirror.as_deref();
    let emulator = Emulator::bring(sources.qemu.as_deref(), &cache, mirror)?;
    note(emulator.version()?);
    let mut kernels: Vec<(Kernel, GuestKernel)> = Vec::new();
    for scenario in scenarios {
        let (kernel, architecture) = (scenario.kernel, scenario.iommu.architecture());
        let is_it = |(there, known): &(Kernel, GuestKernel)| {
            (*there, known.architecture) == (kernel, architecture)
        };
        if kernels.iter().any(is_it) {
            continue;
        }
        let stock = match architecture {
            Architecture::Amd64 => NEWEST,
            Architecture::Arm64 => ARM64,
        };
        let stock = GuestKernel::bring(Row::named(stock)?, &cache, mirror)?;
        let chosen = match kernel {
            Kernel::Stock => stock,
            Kernel::Built => linux::bring(architecture, &stock.busybox, &cache, mirror)?,
        };
        note(format_args!("{} kernel {}", kernel.name(), chosen.title()));
        kernels.push((kernel, chosen));
    }
    let inner = scenarios.iter().any(|scenario| scenario.inner);
    let packages = inner.then(|| Emulator::for_a_guest(&cache, mirror)).transpose()?;
    Ok(Fetched { emulator, kernels, packages })
}

/// What a kernel is booted with.
fn kit(kernel: Kernel, chosen: GuestKernel, programs: &[Program]) -> Result<BootKit> {
    let packed = initramfs::pack(&chosen, programs, &[SCRIPT])?;
    let dir = build::target().join("host");
    fs::create_dir_all(&dir).map_err(Error::file("make", &dir))?;
    let name = format!("initrd-{}-{}.img", kernel.name(), chosen.architecture.debian());
    let initrd = dir.join(name);
    fs::write(&initrd, packed).map_err(Error::file("write", &initrd))?;
    Ok(BootKit { kernel: chosen, initrd })
}

/// Registers of a function that a driver has are reached through sysfs: the stock kernel wants that
/// allowed with `iomem=relaxed`.
fn machine<'a>(scenario: &Scenario, kit: &'a BootKit, inner: Option<&Inner>) -> Machine<'a> {
    let append = format!(
        "quiet iomem=relaxed viommu.scenario={} viommu.play={} {}",
        SCRIPT.0,
        scenario.play,
        scenario.iommu.append()
    );
    let mut functions = vec![Function::Own(scenario.iommu.arguments()), Function::Own(FUNCTIONS)];
    if scenario.unplugs {
        functions.push(Function::Own(unplug::FUNCTIONS));
    }
    functions.extend(inner.map(Inner::functions).into_iter().flatten());
    Machine {
        kernel: &kit.kernel,
        initrd: &kit.initrd,
        append,
        memory_mib: MEMORY_MIB,
        cpus: 1,
        topology: None,
        functions,
        reboots: false,
        firmware_reads: false,
    }
}

fn show_logs(dir: &Path) {
    for log in ["talk", "guest", "qemu"] {
        let path: PathBuf = dir.join(format!("{log}.log"));
        let Ok(bytes) = fs::read(&path) else { continue };
        let text = String::from_utf8_lossy(&bytes).into_owned();
        println!("    -- {}:{}", path.display(), command::tail(&text, LOG_LINES));
    }
}

fn show(reports: &[Report]) {
    let row = |report: &Report| {
        let (verdict, remark) = match &report.outcome {
            Ok(remark) => ("ok", remark),
            Err(why) => ("FAILED", why),
        };
        let remark = remark.lines().next().unwrap_or_default().to_owned();
        let scenario = report.scenario;
        let (iommu, kernel) = (scenario.iommu.name().to_owned(), scenario.kernel.name().to_owned());
        [scenario.name.to_owned(), iommu, kernel, verdict.to_owned(), seconds(report.time), remark]
    };
    let rows: Vec<[String; 6]> = reports.iter().map(row).collect();
    table(["scenario", "iommu", "kernel", "verdict", "time", ""], &rows);
}

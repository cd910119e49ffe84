//! The demo: a stock guest runs its disk behind our IOMMU, and a DMA that it did not map is blocked.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::command;
use crate::error::{Error, Result};
use crate::setup::build;
use crate::setup::guest_kernel::{NEWEST, Row};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::{Place, Stage};
use crate::suite::tools::{Sources, Tools};
use crate::suite::{Arch, compare, fresh};
use crate::ui::{Step, seconds};

const NAME: &str = "demo";

const SCRIPT: &str = include_str!("../../guest/scenarios/demo.sh");

const DISK_MIB: u64 = 64;

const SET: Set = Set { disks: &[DISK_MIB], engines: 1, ..BARE };

/// Several times what the slowest machine took.
const LIMIT: Duration = Duration::from_secs(180);

/// Sets everything up, boots the guest and shows what it says.
///
/// # Errors
/// Something is missing, or the guest did not see what it should.
pub(crate) fn run(sources: &Sources) -> Result<()> {
    let tools = Tools::prepare(sources, &[Row::named(NEWEST)?], &[(NAME, SCRIPT)])?;
    let dir = build::target().join("guest").join(NAME);
    fresh(&dir)?;
    let began = Instant::now();
    let shown = show(&tools, &dir);
    let logs = dir.display();
    match &shown {
        Ok(()) => println!("\n  all as it should be, {}; logs in {logs}", seconds(began.elapsed())),
        Err(_) => println!("\n  not as it should be; logs in {logs}"),
    }
    shown
}

fn show(tools: &Tools, dir: &Path) -> Result<()> {
    let step = Step::begin("a guest with a disk and a DMA engine behind the IOMMU");
    let place = Place {
        tools,
        kit: tools.guest(NEWEST).map_err(|why| Error::Wrong(why.to_owned()))?,
        arch: Arch::Vtd,
        dir,
    };
    let mut stage = Stage::open(NAME, &SET, &place, LIMIT)?;
    let image = stage.image();
    stage.until_ready("go")?;
    let before = sha256(&image)?;
    stage.guest.talk.answer("go")?;
    stage.close()?;
    step.done("booted, ran, powered off");
    println!();
    let talk = &stage.guest.talk;
    say("guest", &format!("Linux {}; {}", talk.fact("kernel")?, talk.fact("iommu")?));
    for group in talk.facts("group") {
        say("guest", group);
    }
    say(
        "guest",
        &format!("disk of {DISK_MIB} MiB read:           sha256 {}", talk.fact("sha256")?),
    );
    say("outside", &format!("its image before:                sha256 {before}"));
    compare::equal("the checksum", talk.fact("sha256")?, &before)?;
    let after = sha256(&image)?;
    say(
        "guest",
        &format!("disk written and read again:     sha256 {}", talk.fact("sha256-after")?),
    );
    say("outside", &format!("its image after:                 sha256 {after}"));
    compare::equal("the checksum", talk.fact("sha256-after")?, &after)?;
    say("guest", &format!("DMA engine, mapped: {}", talk.check("copy")?));
    say("guest", &format!("DMA engine, unmapped: {}", talk.check("unmapped")?));
    let faults = talk.facts("fault");
    let first = faults.first().ok_or_else(|| Error::Wrong("the guest saw no fault".to_owned()))?;
    say("guest", &format!("its kernel's log: {first}"));
    say("daemon", &stage.counters()?.line(&["attach", "map", "unmap", "faults", "drains"])?);
    Ok(())
}

fn say(who: &str, what: &str) {
    println!("  {who:8} {what}");
}

fn sha256(path: &Path) -> Result<String> {
    let text = command::text(Command::new("sha256sum").arg(path))?;
    Ok(text.split_whitespace().next().unwrap_or_default().to_owned())
}

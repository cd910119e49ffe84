//! The machine is stopped and goes on, again and again, in the middle of disk I/O.

use std::time::Duration;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::suite::set::{BARE, Set};
use crate::suite::stage::Stage;
use crate::suite::{Arch, OLDER_FIRST, Scenario, compare};
use crate::vm::qmp::Qmp;

/// How often the machine is stopped; the script counts as far.
const PAUSES: usize = 10;

pub(crate) const SCENARIO: Scenario = Scenario {
    name: "pause",
    about: "stop and cont in the middle of disk I/O",
    script: include_str!("../../../../guest/scenarios/pause.sh"),
    guests: OLDER_FIRST,
    arch: Arch::Vtd,
    set: Set { disks: &[128], ..BARE },
    limit: Duration::from_secs(400),
    play,
};

fn play(stage: &mut Stage<'_>) -> Result<String> {
    let mut monitor = stage.monitor()?;
    for _ in 0..PAUSES {
        stage.until_ready("pause")?;
        monitor.execute("stop")?;
        expect_status(&mut monitor, "paused")?;
        monitor.execute("cont")?;
        expect_status(&mut monitor, "running")?;
        stage.guest.talk.answer("go")?;
    }
    stage.close()?;
    let starts = stage.daemon_log().matches("a driver starts").count();
    if starts != 1 {
        return Err(Error::Wrong(format!("the driver started {starts} times, not once")));
    }
    compare::equal("faults", "0", &stage.counters()?.get("faults")?.to_string())?;
    let sum = compare::checksum(stage.guest.talk.check("sum")?, &stage.image())?;
    Ok(format!("{PAUSES} pauses, checksum {sum} on both sides"))
}

fn expect_status(monitor: &mut Qmp, wanted: &str) -> Result<()> {
    let answer = monitor.execute("query-status")?;
    match answer.get("status").and_then(Value::as_str) {
        Some(status) if status == wanted => Ok(()),
        _ => Err(Error::Wrong(format!("the machine is not {wanted}: {answer}"))),
    }
}

//! Hot-unplug: the machine takes a function away when the guest is ready for it.

use std::path::Path;

use serde_json::{Value, json};

use crate::error::Result;
use crate::vm::machine::{Guest, QMP_SOCKET};
use crate::vm::process::Deadline;
use crate::vm::qmp::Qmp;

/// The name that QEMU has for the function.
const NAME: &str = "plugged";

/// One more device for testing IOMMUs, behind a port that it can be pulled out of; it is 01:00.0.
pub(super) const FUNCTIONS: &[&str] = &[
    "-device",
    "pcie-root-port,id=hole,bus=pcie.0,addr=7,chassis=1",
    "-device",
    "iommu-testdev,id=plugged,bus=hole",
];

/// Waits until the guest is ready, pulls the function out, and tells the guest when QEMU has done with it.
///
/// # Errors
/// The guest or QEMU failed, or the guest did not let the function go in time.
pub(super) fn when_ready(guest: &mut Guest, dir: &Path, deadline: Deadline) -> Result<()> {
    guest.talk.until_ready("unplug", deadline)?;
    let mut monitor = Qmp::connect(&dir.join(QMP_SOCKET))?;
    monitor.execute_with("device_del", &json!({ "id": NAME }))?;
    let is_it = |data: &Value| data.get("device").is_some_and(|device| device == NAME);
    monitor.until_event("DEVICE_DELETED", is_it, deadline)?;
    guest.talk.answer("unplugged")
}

//! Our tables against QEMU's emulated IOMMUs: the crate `viommu-oracle`, with the QEMU of the guests.

use std::process::Command;

use crate::error::Result;
use crate::setup::build;
use crate::setup::cache::Cache;
use crate::setup::emulator::Emulator;
use crate::suite::tools::Sources;

/// The call that compares, QEMU fetched first; `more` are options of the oracle's own.
///
/// # Errors
/// QEMU cannot be had.
pub(crate) fn command(sources: &Sources, more: &[String]) -> Result<Command> {
    let cache = Cache::open()?;
    let emulator = Emulator::bring(sources.qemu.as_deref(), &cache, sources.mirror.as_deref())?;
    let mut oracle = build::cargo();
    oracle.args(["run", "--release", "--quiet", "--package", "viommu-oracle", "--"]);
    match emulator.root() {
        Some(root) => oracle.arg("--qemu-root").arg(root),
        None => oracle.arg("--qemu").args(&sources.qemu),
    };
    oracle.args(more);
    Ok(oracle)
}

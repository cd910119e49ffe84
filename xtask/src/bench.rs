//! Our costs beside the peers', in one run: the tables of `docs/performance.md`.

use std::fs;
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};
use crate::setup::build;
use crate::setup::cache::Cache;
use crate::setup::emulator::Emulator;
use crate::succeeds;
use crate::suite::tools::Sources;

/// Prints the machine, then MAP and UNMAP beside QEMU's own virtio-iommu, then translation beside
/// vm-memory's `Iotlb`. All in Markdown but the last, which is as its bench prints it. With `quick`
/// fewer rounds.
///
/// # Errors
/// QEMU cannot be had, or a bench fails.
pub(crate) fn run(sources: &Sources, quick: bool) -> Result<bool> {
    let cache = Cache::open()?;
    let qemu = Emulator::bring(sources.qemu.as_deref(), &cache, sources.mirror.as_deref())?;
    println!("{}; beside it {}.", machine()?, qemu.version()?);
    Ok(succeeds(requests(&qemu, sources, quick))? && succeeds(translate())?)
}

/// MAP and UNMAP: ours and QEMU's.
fn requests(qemu: &Emulator, sources: &Sources, quick: bool) -> Command {
    let mut bench = bench("viommu", "requests");
    match qemu.root() {
        Some(root) => bench.arg("--qemu-root").arg(root),
        None => bench.arg("--qemu").args(&sources.qemu),
    };
    if quick {
        bench.arg("--quick");
    }
    bench
}

/// Translation in device processes.
fn translate() -> Command {
    bench("viommu-iotlb", "translate")
}

/// The call of one bench; options of its own follow.
fn bench(package: &str, name: &str) -> Command {
    let mut cargo = build::cargo();
    cargo.args(["bench", "--quiet", "--package", package, "--bench", name, "--"]);
    cargo
}

/// `Intel(R) Xeon(R) Processor, 2 CPUs, Linux 6.18.44`
fn machine() -> Result<String> {
    let path = "/proc/cpuinfo";
    let text = fs::read_to_string(path).map_err(Error::file("read", path))?;
    let model = text.lines().filter_map(|line| line.split_once(':')).find_map(|(key, value)| {
        // Arm's kernels name no model
        ["model name", "CPU part"].contains(&key.trim()).then(|| value.trim().to_owned())
    });
    let count = text.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = command::text(Command::new("uname").arg("-sr"))?;
    let model = model.unwrap_or_else(|| "a processor without a name".to_owned());
    Ok(format!("{model}, {count} CPUs, {}", kernel.trim()))
}

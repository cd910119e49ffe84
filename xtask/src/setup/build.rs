//! Our own programs: what runs beside a guest and what runs inside.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::guest_kernel::Architecture;
use crate::command;
use crate::error::{Error, Result};
use crate::initramfs::Program;
use crate::ui::Step;

/// The programs inside a guest, by the names they have there.
const GUEST_PROGRAMS: [&str; 4] = ["aux", "disk-bench", "disk-check", "vfio-dma"];

/// What runs in the guests of the host suite, by the names that it has there.
const HOST_PROGRAMS: [&str; 2] = ["vhost-user-iommu", "host-suite"];

/// What runs beside a guest.
#[derive(Debug)]
pub(crate) struct Programs {
    /// The IOMMU.
    pub(crate) daemon: PathBuf,
    /// The vfio-user disk.
    pub(crate) disk: PathBuf,
    /// The vfio-user DMA engine.
    pub(crate) engine: PathBuf,
}

/// The root of the workspace.
pub(crate) fn workspace() -> &'static Path {
    // this crate lies right below it
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The folder that cargo builds into.
pub(crate) fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| workspace().join("target"), |dir| workspace().join(dir))
}

/// cargo in the workspace, as the one that started us.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(workspace());
    cargo
}

/// Builds the daemon and the devices, optimised.
///
/// # Errors
/// They do not compile.
pub(crate) fn programs() -> Result<Programs> {
    let step = Step::begin("the daemon, the disk and the DMA engine");
    let mut build = cargo();
    build.args(["build", "--release", "--quiet", "--bin", "vhost-user-iommu"]);
    build.args(["--example", "vfio-user-blk", "--example", "dma-engine"]);
    command::output(&mut build)?;
    step.done("built");
    let release = target().join("release");
    let example = |name: &str| release.join("examples").join(name);
    Ok(Programs {
        daemon: release.join("vhost-user-iommu"),
        disk: example("vfio-user-blk"),
        engine: example("dma-engine"),
    })
}

/// Builds what runs inside a guest.
///
/// # Errors
/// They do not compile.
pub(crate) fn guest_programs(guest: Architecture) -> Result<Vec<Program>> {
    let step = Step::begin(format_args!("the guest's programs, {}", guest.debian()));
    let built = static_programs(guest, &["viommu-guest"], &GUEST_PROGRAMS)?;
    step.done("built");
    Ok(built)
}

/// Builds what runs inside a guest of the host suite: the daemon is there, too.
///
/// # Errors
/// They do not compile.
pub(crate) fn host_programs(guest: Architecture) -> Result<Vec<Program>> {
    let step = Step::begin(format_args!("the host suite's programs, {}", guest.debian()));
    let built = static_programs(guest, &["viommu", "viommu-host-suite"], &HOST_PROGRAMS)?;
    step.done("built");
    Ok(built)
}

/// Builds the programs of these packages, linked statically, because a guest has no libraries. They go
/// into a folder of their own, so that the other flags do not make cargo build everything anew.
fn static_programs(
    guest: Architecture,
    packages: &[&str],
    names: &[&'static str],
) -> Result<Vec<Program>> {
    let dir = target().join("guest-programs");
    let (triple, flags) = match guest {
        Architecture::Amd64 => ("x86_64-unknown-linux-gnu", "-C target-feature=+crt-static"),
        // musl and the linker that come with Rust: no cross compiler is needed
        Architecture::Arm64 => ("aarch64-unknown-linux-musl", "-C linker=rust-lld"),
    };
    need_target(triple)?;
    let mut build = cargo();
    build.args(["build", "--release", "--quiet", "--bins"]);
    build.args(packages.iter().flat_map(|package| ["--package", package]));
    build.args(["--target", triple, "--target-dir"]).arg(&dir);
    build.env("RUSTFLAGS", format!("{flags} -C strip=symbols"));
    command::output(&mut build)?;
    let release = dir.join(triple).join("release");
    names.iter().map(|name| packed(&release, name)).collect()
}

/// Sees to it that Rust's library for `triple` is there; rustup brings it where it is not.
fn need_target(triple: &str) -> Result<()> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut ask = Command::new(rustc);
    ask.args(["--print", "target-libdir", "--target", triple]).current_dir(workspace());
    if Path::new(command::text(&mut ask)?.trim()).is_dir() {
        return Ok(());
    }
    let lacking = || Error::Lacking {
        missing: format!("Rust's library for {triple}"),
        install: format!("rustup target add {triple}"),
    };
    if !command::exists("rustup") {
        return Err(lacking());
    }
    let step = Step::begin(format_args!("Rust's library for {triple}"));
    let mut add = Command::new("rustup");
    add.args(["target", "add", triple]).current_dir(workspace());
    command::output(&mut add).map_err(|_| lacking())?;
    step.done("fetched");
    Ok(())
}

fn packed(dir: &Path, name: &'static str) -> Result<Program> {
    let path = dir.join(name);
    let bytes = std::fs::read(&path).map_err(Error::file("read", &path))?;
    Ok(Program { name, bytes })
}

//! The kernel of the host suite's guests, built from Debian's source: the stock one has no iommufd.
//!
//! The sources are cached as packages are; what is built of them is cached by the source's version, the
//! configuration and the architecture, and built again only when one of these changes.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::apt::{self, Archive, Need};
use super::bundle::{Bundle, Contents};
use super::cache::Cache;
use super::guest_kernel::{Architecture, GuestKernel};
use crate::command;
use crate::error::{Error, Result};
use crate::ui::Step;

/// Debian's package of the source. It is the same for all architectures.
const SOURCE: Bundle = Bundle {
    name: "linux-source",
    lead: "linux-source-7.3",
    archive: Archive {
        suites: &["trixie", "trixie-backports"],
        prefer: Some("trixie-backports"),
        architecture: "amd64",
    },
    contents: Contents::Only(&["linux-source-7.3"]),
};

/// Where the package has its archive.
const ARCHIVE: &str = "usr/src/linux-source-7.3.tar.xz";

/// What both configurations begin with; the rest of tinyconfig stays.
const COMMON: &str = include_str!("../../../tests/host/kernel/common.config");

/// What both end with: what makes dma-bufs of BARs.
const DMABUF: &str = include_str!("../../../tests/host/kernel/dmabuf.config");

/// What is built for one architecture, and with what.
struct Recipe {
    /// `ARCH` of the kernel's build.
    arch: &'static str,
    /// `CROSS_COMPILE`, where the machine's own compiler does not do.
    cross: &'static str,
    /// What stands between [`COMMON`] and [`DMABUF`].
    own: &'static str,
    /// The target, and where the image is then.
    target: &'static str,
    image: &'static str,
    /// Where it is before it is packed, if anything boots that: an ELF file without symbols.
    unpacked: Option<&'static str>,
}

impl Recipe {
    const fn of(architecture: Architecture) -> Self {
        match architecture {
            Architecture::Amd64 => Self {
                arch: "x86",
                cross: "x86_64-linux-gnu-",
                own: include_str!("../../../tests/host/kernel/amd64.config"),
                target: "bzImage",
                image: "arch/x86/boot/bzImage",
                unpacked: Some("arch/x86/boot/compressed/vmlinux.bin"),
            },
            Architecture::Arm64 => Self {
                arch: "arm64",
                cross: "aarch64-linux-gnu-",
                own: include_str!("../../../tests/host/kernel/arm64.config"),
                target: "Image",
                image: "arch/arm64/boot/Image",
                unpacked: None,
            },
        }
    }

    /// The configuration, and nothing that only people read.
    fn configuration(&self) -> String {
        let lines = [COMMON, self.own, DMABUF].into_iter().flat_map(str::lines);
        lines.filter(|line| line.starts_with("CONFIG_")).flat_map(|line| [line, "\n"]).collect()
    }
}

/// The kernel for `architecture`, built if the cache lacks it; `busybox` is one for its guests.
///
/// # Errors
/// The source or a tool cannot be had, or it does not compile.
pub(crate) fn bring(
    architecture: Architecture,
    busybox: &Path,
    cache: &Cache,
    mirror: Option<&str>,
) -> Result<GuestKernel> {
    let source = SOURCE.bring(cache, mirror)?;
    let recipe = Recipe::of(architecture);
    let configuration = recipe.configuration();
    let name = format!("linux-{}", architecture.debian());
    let version = version(&source, &name, &configuration);
    let mut dir = cache.root().join(&version);
    if !dir.is_dir() {
        need_tools(&recipe)?;
        let scratch = cache.scratch(&name)?;
        let step = Step::begin(format_args!("{version}, to be built once"));
        build(&recipe, &configuration, &source.join(ARCHIVE), &scratch, &step)?;
        dir = cache.keep(&name, &version, &scratch)?;
        step.done("built");
    }
    GuestKernel::built(architecture, &dir, busybox)
}

/// `linux-amd64_7.3.4-1-bpo13+1_DIGEST`: the source's version, and a digest of the configuration.
fn version(source: &Path, name: &str, configuration: &str) -> String {
    let folder = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let version = folder.split('_').nth(1).unwrap_or("unknown").to_owned();
    format!("{name}_{version}_{:08x}", super::bundle::fnv1a(configuration.bytes()))
}

/// Builds below `scratch` and leaves there what a guest needs: the image, packed and for some unpacked, the
/// list of what is built in, the configuration.
fn build(
    recipe: &Recipe,
    configuration: &str,
    archive: &Path,
    scratch: &Path,
    step: &Step,
) -> Result<()> {
    let (tree, out) = (scratch.join("source"), scratch.join("build"));
    for dir in [&tree, &out] {
        fs::create_dir(dir).map_err(Error::file("make", dir))?;
    }
    step.progress("unpacking");
    let mut unpack = Command::new("tar");
    unpack.args(["--strip-components=1", "-xf"]).arg(archive).arg("-C").arg(&tree);
    command::output(&mut unpack)?;
    step.progress("configuring");
    configure(recipe, configuration, &tree, &out)?;
    step.progress("compiling, which takes minutes");
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let mut compile = make(recipe, &tree, &out);
    command::output(compile.arg(format!("-j{jobs}")).arg(recipe.target))?;
    keep(&out.join(recipe.image), &scratch.join(IMAGE))?;
    if let Some(unpacked) = recipe.unpacked {
        keep(&out.join(unpacked), &scratch.join(UNPACKED))?;
    }
    keep(&out.join(BUILT_IN), &scratch.join(BUILT_IN))?;
    keep(&out.join(".config"), &scratch.join("config"))?;
    for dir in [&tree, &out] {
        fs::remove_dir_all(dir).map_err(Error::file("remove", dir))?;
    }
    Ok(())
}

/// The names in the cache of the image, of the same unpacked, and of the list of what is built into it.
pub(super) const IMAGE: &str = "vmlinuz";
pub(super) const UNPACKED: &str = "vmlinux";
const BUILT_IN: &str = "modules.builtin";

/// tinyconfig with ours merged into it; every line of ours must have come through.
fn configure(recipe: &Recipe, configuration: &str, tree: &Path, out: &Path) -> Result<()> {
    let ours = out.join("ours.config");
    fs::write(&ours, configuration).map_err(Error::file("write", &ours))?;
    command::output(make(recipe, tree, out).arg("tinyconfig"))?;
    let mut merge = Command::new(tree.join("scripts/kconfig/merge_config.sh"));
    merge.args(["-m", "-O"]).arg(out).arg(out.join(".config")).arg(&ours).current_dir(tree);
    command::output(&mut merge)?;
    command::output(make(recipe, tree, out).arg("olddefconfig"))?;
    let made = out.join(".config");
    let made = fs::read_to_string(&made).map_err(Error::file("read", &made))?;
    let lost = lost(configuration, &made);
    if lost.is_empty() {
        return Ok(());
    }
    Err(Error::Wrong(format!("the kernel's configuration lacks {}", lost.join(", "))))
}

/// What was asked for and did not come: an option that depends on one that is off is dropped in silence.
fn lost<'a>(configuration: &'a str, made: &str) -> Vec<&'a str> {
    let asked = configuration.lines().filter(|line| line.ends_with("=y"));
    asked.filter(|line| !made.lines().any(|there| there == *line)).collect()
}

fn make(recipe: &Recipe, tree: &Path, out: &Path) -> Command {
    let mut make = Command::new("make");
    make.arg("-s").arg("-C").arg(tree).arg(format!("O={}", out.display()));
    make.arg(format!("ARCH={}", recipe.arch)).arg(format!("CROSS_COMPILE={}", recipe.cross));
    make
}

fn keep(from: &Path, to: &Path) -> Result<()> {
    fs::copy(from, to).map(drop).map_err(Error::file("copy", from))
}

/// What the kernel's build calls (Documentation/process/changes.rst in Linux).
fn need_tools(recipe: &Recipe) -> Result<()> {
    let header = |name: &str| {
        ["/usr/include", "/usr/include/x86_64-linux-gnu"]
            .iter()
            .any(|dir| Path::new(dir).join(name).is_file())
    };
    let program = |name: &'static str, package| Need::program(name, package);
    let compiler = format!("{}gcc", recipe.cross);
    let package = match recipe.arch {
        "arm64" => "gcc-aarch64-linux-gnu",
        _ => "gcc-x86-64-linux-gnu",
    };
    apt::need(&[
        Need { there: command::exists(&compiler), name: &compiler, package },
        // the kernel's own tools are made with the machine's compiler
        program("gcc", "gcc"),
        program("make", "make"),
        program("flex", "flex"),
        program("bison", "bison"),
        program("bc", "bc"),
        program("xz", "xz-utils"),
        Need { there: header("libelf.h"), name: "libelf.h", package: "libelf-dev" },
        Need { there: header("openssl/ssl.h"), name: "openssl/ssl.h", package: "libssl-dev" },
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_that_was_dropped_is_told_and_one_that_is_off_is_not() {
        let asked = "CONFIG_A=y\nCONFIG_B=y\nCONFIG_C=n\n";
        let made = "CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_BB=y\n";
        assert_eq!(lost(asked, made), ["CONFIG_B=y"]);
    }

    #[test]
    fn another_configuration_or_source_is_another_place_in_the_cache() {
        let source = Path::new("/cache/linux-source_7.3.4-1_01234567");
        let one = version(source, "linux-amd64", "CONFIG_A=y\n");
        assert!(one.starts_with("linux-amd64_7.3.4-1_"), "{one}");
        assert_ne!(one, version(source, "linux-amd64", "CONFIG_B=y\n"));
        let newer = Path::new("/cache/linux-source_7.3.5-1_01234567");
        assert_ne!(one, version(newer, "linux-amd64", "CONFIG_A=y\n"));
    }

    #[test]
    fn comments_do_not_count() {
        let recipe = Recipe::of(Architecture::Amd64);
        assert!(recipe.configuration().lines().all(|line| line.starts_with("CONFIG_")));
    }
}

//! Debian's packages without installing them: apt with a configuration and folders of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::command;
use crate::error::{Error, Result};
use crate::ui::{Step, megabytes};

/// The keyring that the archive's signatures are checked against.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Suites to take packages from, for one architecture.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Archive {
    /// The suites, the base one first.
    pub(crate) suites: &'static [&'static str],
    /// The suite whose versions win although it is not the base one.
    pub(crate) prefer: Option<&'static str>,
    /// The architecture, in Debian's words.
    pub(crate) architecture: &'static str,
}

/// One package in one version, as the mirror serves it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Package {
    /// The package's name.
    pub(crate) name: String,
    /// Its version, epoch included.
    pub(crate) version: String,
    /// The size of the package file.
    pub(crate) bytes: u64,
}

/// apt, set up for one [`Archive`].
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
}

impl Apt {
    /// Writes the configuration below `cache`.
    ///
    /// # Errors
    /// Its folders cannot be made, apt's tools are missing, or no mirror is known.
    pub(crate) fn open(cache: &Path, archive: &Archive, mirror: Option<&str>) -> Result<Self> {
        need_tools()?;
        let mirror = mirror.map_or_else(machine_mirror, |mirror| Ok(mirror.to_owned()))?;
        let name = format!("{}.{}", archive.suites.join("+"), archive.architecture);
        let dir = cache.join("apt").join(name);
        for part in ["lists/partial", "archives/partial"] {
            let path = dir.join(part);
            fs::create_dir_all(&path).map_err(Error::file("make", &path))?;
        }
        let apt = Self { dir };
        apt.write("sources.list", &sources(archive, &mirror))?;
        apt.write("preferences", &preferences(archive))?;
        apt.write("status", "")?;
        apt.write("apt.conf", &apt.configuration(archive))?;
        Ok(apt)
    }

    /// Fetches the mirror's lists where they changed.
    ///
    /// # Errors
    /// The mirror cannot be reached, or its signature is not good.
    pub(crate) fn update(&self) -> Result<()> {
        let mut update = self.apt("apt-get");
        update.args(["update", "-qq", "-o", "APT::Update::Error-Mode=any"]);
        command::output(&mut update).map(drop)
    }

    /// The packages named, with all that they depend on.
    ///
    /// # Errors
    /// A package does not exist.
    pub(crate) fn closure(&self, packages: &[&str]) -> Result<Vec<Package>> {
        let mut install = self.apt("apt-get");
        install.args(["install", "-y", "-qq", "--print-uris"]).args(packages);
        parse_uris(&command::text(&mut install)?)
    }

    /// Only the packages named.
    ///
    /// # Errors
    /// A package does not exist.
    pub(crate) fn only(&self, packages: &[String]) -> Result<Vec<Package>> {
        let mut download = self.apt("apt-get");
        download.args(["download", "-qq", "--print-uris"]).args(packages);
        parse_uris(&command::text(&mut download)?)
    }

    /// The names of the packages that `name` depends on directly, alternatives included.
    ///
    /// # Errors
    /// There is no such package.
    pub(crate) fn depends(&self, name: &str) -> Result<Vec<String>> {
        let mut show = self.apt("apt-cache");
        show.args(["show", "--no-all-versions", name]);
        Ok(parse_depends(&command::text(&mut show)?))
    }

    /// Downloads the packages, checks them, and unpacks them into `into`.
    ///
    /// # Errors
    /// The mirror, a hash sum or the disk fails; `into` is then half filled.
    pub(crate) fn unpack(&self, packages: &[Package], into: &Path, step: &Step) -> Result<()> {
        let debs = into.join("debs");
        fs::create_dir_all(&debs).map_err(Error::file("make", &debs))?;
        self.download(packages, &debs, step)?;
        for (done, deb) in fs::read_dir(&debs).map_err(Error::file("list", &debs))?.enumerate() {
            let deb = deb.map_err(Error::file("list", &debs))?.path();
            step.progress(format_args!("unpacking {}/{}", done + 1, packages.len()));
            command::output(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(into))?;
        }
        fs::remove_dir_all(&debs).map_err(Error::file("remove", &debs))
    }

    /// One call for each package: a call for all would leave nothing to show meanwhile.
    fn download(&self, packages: &[Package], debs: &Path, step: &Step) -> Result<()> {
        let all: u64 = packages.iter().map(|package| package.bytes).sum();
        let mut fetched = 0;
        for chunk in packages.chunks(DOWNLOAD_CHUNK) {
            step.progress(format_args!("{} of {}", megabytes(fetched), megabytes(all)));
            let exact = chunk.iter().map(|package| format!("{}={}", package.name, package.version));
            let mut download = self.apt("apt-get");
            command::output(download.args(["download", "-qq"]).args(exact).current_dir(debs))?;
            fetched += chunk.iter().map(|package| package.bytes).sum::<u64>();
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let mut apt = Command::new(program);
        apt.arg("-c").arg(self.dir.join("apt.conf")).env("LC_ALL", "C");
        apt
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        let path = self.dir.join(name);
        fs::write(&path, text).map_err(Error::file("write", &path))
    }

    /// The machine's own settings stay in force (its proxies are there); only what would install,
    /// clean up or read the machine's package state is turned away.
    fn configuration(&self, archive: &Archive) -> String {
        let dir = self.dir.display();
        let architecture = archive.architecture;
        format!(
            r#"#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear APT::Architectures;
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "{dir}/preferences";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::State::extended_states "{dir}/extended";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives";
APT::Architecture "{architecture}";
APT::Architectures {{ "{architecture}"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "root";
Acquire::Languages "none";
Acquire::Retries "3";
Acquire::http::Timeout "20";
Acquire::https::Timeout "20";
"#
        )
    }
}

/// Packages fetched by one call of apt: few enough to show progress, enough to keep its
/// connection open.
const DOWNLOAD_CHUNK: usize = 8;

fn sources(archive: &Archive, mirror: &str) -> String {
    let line = |suite: &&str| format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
    archive.suites.iter().map(line).collect()
}

fn preferences(archive: &Archive) -> String {
    archive.prefer.map_or_else(String::new, |suite| {
        format!("Package: *\nPin: release n={suite}\nPin-Priority: 600\n")
    })
}

/// The Debian mirror that the machine itself uses, whether or not its lists were ever fetched.
fn machine_mirror() -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--no-release-info", "--format", "$(REPO_URI)"]);
    targets.arg("Identifier: Packages");
    let told = command::text(&mut targets)?;
    pick_mirror(&told).map(str::to_owned).ok_or(Error::NoMirror)
}

/// Debian's main archive ends in `/debian` on every mirror; security updates and other archives
/// do not.
fn pick_mirror(uris: &str) -> Option<&str> {
    uris.lines().map(|uri| uri.trim().trim_end_matches('/')).find(|uri| uri.ends_with("/debian"))
}

/// Reads `'URI' NAME_VERSION_ARCH.deb BYTES HASH` lines.
fn parse_uris(text: &str) -> Result<Vec<Package>> {
    let lines = text.lines().filter(|line| line.starts_with('\''));
    let mut packages: Vec<Package> = lines
        .map(|line| {
            parse_uri(line)
                .ok_or_else(|| Error::Answer { program: "apt-get", what: line.to_owned() })
        })
        .collect::<Result<_>>()?;
    packages.sort();
    Ok(packages)
}

fn parse_uri(line: &str) -> Option<Package> {
    let mut words = line.split_whitespace().skip(1);
    let file = words.next()?;
    let bytes = words.next()?.parse().ok()?;
    let mut parts = file.strip_suffix(".deb")?.split('_');
    let name = parts.next()?.to_owned();
    let version = parts.next()?.replace("%3a", ":");
    Some(Package { name, version, bytes })
}

/// Reads the `Depends:` line of a package's description.
fn parse_depends(description: &str) -> Vec<String> {
    description
        .lines()
        .filter_map(|line| line.strip_prefix("Depends: "))
        .flat_map(|depends| depends.split([',', '|']))
        .filter_map(|depend| depend.split_whitespace().next())
        .map(str::to_owned)
        .collect()
}

/// Something of the machine's that is called or read.
#[derive(Debug)]
pub(crate) struct Need<'a> {
    /// Whether it is there.
    pub(crate) there: bool,
    /// What it is, for messages.
    pub(crate) name: &'a str,
    /// The package that has it.
    pub(crate) package: &'a str,
}

impl<'a> Need<'a> {
    /// A program on the PATH.
    pub(crate) fn program(name: &'a str, package: &'a str) -> Self {
        Self { there: command::exists(name), name, package }
    }
}

/// Checks for what this file calls.
fn need_tools() -> Result<()> {
    let needs = [
        Need::program("apt-get", "apt"),
        Need::program("dpkg-deb", "dpkg"),
        Need {
            there: Path::new(KEYRING).is_file(),
            name: KEYRING,
            package: "debian-archive-keyring",
        },
    ];
    need(&needs).map_err(|error| match error {
        Error::Lacking { missing, install } => Error::Lacking {
            missing,
            install: format!("{install} (or give --qemu, --kernel and --busybox)"),
        },
        other => other,
    })
}

/// Sees to it that all of it is there. As root the packages are installed.
///
/// # Errors
/// Something is missing and cannot be installed from here; the error says how it can.
pub(crate) fn need(needs: &[Need<'_>]) -> Result<()> {
    let missing: Vec<&Need<'_>> = needs.iter().filter(|need| !need.there).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    if rustix::process::geteuid().is_root() && command::exists("apt-get") {
        return install(&packages);
    }
    let names: Vec<&str> = missing.iter().map(|need| need.name).collect();
    Err(Error::Lacking {
        missing: names.join(", "),
        install: format!("apt-get install {}", packages.join(" ")),
    })
}

fn install(packages: &[&str]) -> Result<()> {
    let step = Step::begin(format_args!("installing {}", packages.join(", ")));
    command::output(Command::new("apt-get").args(["update", "-qq"]))?;
    command::output(Command::new("apt-get").args(["install", "-y", "-qq"]).args(packages))?;
    step.done("installed");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_print_uris_names_package_version_and_size() {
        let line = "'http://m/debian/pool/main/q/qemu/qemu-system-x86_11.1.3%2bds-1_amd64.deb' \
                    qemu-system-x86_1%3a11.1.3+ds-1_amd64.deb 12345 SHA256:00";
        let package = Package {
            name: "qemu-system-x86".to_owned(),
            version: "1:11.1.3+ds-1".to_owned(),
            bytes: 12345,
        };
        assert_eq!(parse_uris(line).unwrap(), [package]);
    }

    #[test]
    fn a_line_that_is_no_package_is_an_error() {
        assert!(parse_uris("'http://m/x' nonsense").is_err());
    }

    #[test]
    fn dependencies_lose_their_versions_and_alternatives_count() {
        let text = "Package: p\nDepends: a (= 1), b | c (>= 2)\nPre-Depends: d\n";
        assert_eq!(parse_depends(text), ["a", "b", "c"]);
    }

    #[test]
    fn the_mirror_is_the_main_archive_not_the_security_one() {
        let uris = "http://m/debian-security/\nhttp://packages/apt\nhttp://m/debian/\n";
        assert_eq!(pick_mirror(uris), Some("http://m/debian"));
        assert_eq!(pick_mirror("http://packages/apt\n"), None);
    }

    #[test]
    fn only_the_preferred_suite_is_pinned() {
        let base = Archive { suites: &["trixie"], prefer: None, architecture: "amd64" };
        assert_eq!(preferences(&base), "");
        let pinned = Archive { prefer: Some("trixie-backports"), ..base };
        assert_eq!(
            preferences(&pinned),
            "Package: *\nPin: release n=trixie-backports\nPin-Priority: 600\n"
        );
    }
}

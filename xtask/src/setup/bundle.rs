//! A set of packages that is unpacked together, and how it gets into the cache.

use std::path::PathBuf;

use super::apt::{Apt, Archive, Package};
use super::cache::Cache;
use crate::error::{Error, Result};
use crate::ui::{Step, megabytes, note};

/// Which packages a bundle consists of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Contents {
    /// These and all that they depend on: programs that are to run.
    Closure(&'static [&'static str]),
    /// These alone: files that nothing else is needed for.
    Only(&'static [&'static str]),
    /// The kernel that a meta package stands for, and these, without what they depend on: files
    /// for a guest.
    Kernel {
        /// The package that depends on the newest kernel.
        meta: &'static str,
        /// What comes along.
        with: &'static [&'static str],
    },
}

/// Packages that are unpacked into one folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bundle {
    /// Its name in the cache.
    pub(crate) name: &'static str,
    /// The package whose version stands for the whole.
    pub(crate) lead: &'static str,
    /// Where the packages come from.
    pub(crate) archive: Archive,
    /// Which they are.
    pub(crate) contents: Contents,
}

impl Bundle {
    /// The folder with the newest version that the mirror serves, fetched where the cache lacks it.
    ///
    /// A mirror that cannot be reached is told of; a version in the cache then serves.
    ///
    /// # Errors
    /// Neither the mirror nor the cache has the packages.
    pub(crate) fn bring(&self, cache: &Cache, mirror: Option<&str>) -> Result<PathBuf> {
        let latest = cache.latest(self.name);
        if let Some((dir, true)) = latest {
            note(format_args!("{} (cached)", shown(&dir)));
            return Ok(dir);
        }
        match (self.newest(cache, mirror), latest) {
            (Ok(dir), _) => Ok(dir),
            (Err(error), Some((dir, _))) => {
                note(format_args!("cannot ask for a newer {}: {error}", self.name));
                note(format_args!("{} (cached) serves", shown(&dir)));
                Ok(dir)
            }
            (Err(error @ Error::Lacking { .. }), None) => Err(error),
            (Err(error), None) => Err(Error::Mirror(Box::new(error))),
        }
    }

    fn newest(&self, cache: &Cache, mirror: Option<&str>) -> Result<PathBuf> {
        let apt = Apt::open(cache.root(), &self.archive, mirror)?;
        let step = Step::begin(format_args!("asking for the newest {}", self.name));
        apt.update()?;
        let packages = self.packages(&apt)?;
        let version = self.version(&packages);
        let dir = cache.root().join(&version);
        step.done(shown(&dir));
        if dir.is_dir() {
            cache.note_latest(self.name, &version)?;
            return Ok(dir);
        }
        let bytes = packages.iter().map(|package| package.bytes).sum();
        let step = Step::begin(format_args!("{}, {} packages", shown(&dir), packages.len()));
        let scratch = cache.scratch(self.name)?;
        apt.unpack(&packages, &scratch, &step)?;
        let kept = cache.keep(self.name, &version, &scratch)?;
        step.done(format_args!("{} fetched and unpacked", megabytes(bytes)));
        Ok(kept)
    }

    fn packages(&self, apt: &Apt) -> Result<Vec<Package>> {
        match self.contents {
            Contents::Closure(names) => apt.closure(names),
            Contents::Only(names) => {
                apt.only(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
            }
            Contents::Kernel { meta, with } => {
                let mut names = kernel(apt, meta)?;
                names.extend(with.iter().map(|name| (*name).to_owned()));
                apt.only(&names)
            }
        }
    }

    /// `NAME_VERSION_DIGEST`: the lead package's version for people, the digest because the
    /// others' versions count as well.
    fn version(&self, packages: &[Package]) -> String {
        let lead = packages.iter().find(|package| package.name.starts_with(self.lead));
        let version = lead.map_or("unknown", |package| without_epoch(&package.version));
        let plain = |c: char| if c.is_ascii_alphanumeric() || ".+-".contains(c) { c } else { '-' };
        let version: String = version.chars().map(plain).collect();
        format!("{}_{version}_{:08x}", self.name, digest(packages))
    }
}

/// The packages of the newest kernel: the image that `meta` depends on and, where image and
/// modules are packages of their own, those with the same release in their name.
fn kernel(apt: &Apt, meta: &str) -> Result<Vec<String>> {
    let image = apt.depends(meta)?.into_iter().find(|name| name.starts_with(IMAGE));
    let image = image.ok_or_else(|| Error::Answer {
        program: "apt-cache",
        what: format!("{meta}: no kernel"),
    })?;
    let release = image.strip_prefix(IMAGE).unwrap_or_default().to_owned();
    let parts = apt.depends(&image)?.into_iter().filter(|name| name.ends_with(&release));
    Ok(std::iter::once(image).chain(parts).collect())
}

/// How the names of kernel packages begin.
const IMAGE: &str = "linux-image-";

fn without_epoch(version: &str) -> &str {
    version.split_once(':').map_or(version, |(_, rest)| rest)
}

/// A digest of names and versions.
fn digest(packages: &[Package]) -> u32 {
    let text = packages.iter().flat_map(|package| [&package.name, " ", &package.version, "\n"]);
    fnv1a(text.flat_map(str::bytes))
}

/// FNV-1a; it only has to tell sets apart.
pub(super) fn fnv1a(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// `qemu 11.1.3+ds-1-bpo13+1` for a folder of the cache.
fn shown(dir: &std::path::Path) -> String {
    let name = dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
    match name.rsplit_once('_') {
        Some((version, _)) => version.replace('_', " "),
        None => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn package(name: &str, version: &str) -> Package {
        Package { name: name.to_owned(), version: version.to_owned(), bytes: 1 }
    }

    const BUNDLE: Bundle = Bundle {
        name: "qemu",
        lead: "qemu-system-x86",
        archive: Archive { suites: &[], prefer: None, architecture: "amd64" },
        contents: Contents::Closure(&[]),
    };

    #[test]
    fn the_cache_key_carries_the_version_and_has_no_separator_of_paths_in_it() {
        let key = BUNDLE.version(&[package("qemu-system-x86", "1:11.1.3+ds-1~bpo13+1")]);
        assert!(key.starts_with("qemu_11.1.3+ds-1-bpo13+1_"), "{key}");
        assert!(!key.contains(':') && !key.contains('/'), "{key}");
    }

    #[test]
    fn another_version_of_any_package_is_another_key() {
        let lead = package("qemu-system-x86", "1");
        let one = BUNDLE.version(&[lead.clone(), package("seabios", "1")]);
        let two = BUNDLE.version(&[lead, package("seabios", "2")]);
        assert_ne!(one, two);
    }
}

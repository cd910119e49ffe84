//! Where unpacked packages are kept between runs.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, Result};

/// The mirror is asked for newer versions at most this often; within it the last answer holds,
/// so that a row of runs does not wait for the network each time.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(3600);

/// How many versions of one bundle stay; the one before is kept for a run that still uses it.
const VERSIONS_KEPT: usize = 2;

/// The cache folder, locked against other runs of this program while it is open.
#[derive(Debug)]
pub(crate) struct Cache {
    root: PathBuf,
    _lock: File,
}

impl Cache {
    /// Opens the folder, waiting until no other run fills it.
    ///
    /// `VIOMMU_CACHE` names it; else it is `vhost-user-iommu` in `XDG_CACHE_HOME` or `~/.cache`.
    ///
    /// # Errors
    /// The folder cannot be made or locked.
    pub(crate) fn open() -> Result<Self> {
        let root = folder()?;
        fs::create_dir_all(&root).map_err(Error::file("make", &root))?;
        let path = root.join("lock");
        let lock = File::create(&path).map_err(Error::file("make", &path))?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|errno| Error::file("lock", &path)(errno.into()))?;
        let cache = Self { root, _lock: lock };
        cache.sweep()?;
        Ok(cache)
    }

    /// The folder itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The version of a bundle that was used last, and whether the mirror was asked just now.
    pub(crate) fn latest(&self, bundle: &str) -> Option<(PathBuf, bool)> {
        let pointer = self.pointer(bundle);
        let dir = self.root.join(fs::read_to_string(&pointer).ok()?.trim());
        let asked = fs::metadata(&pointer).and_then(|meta| meta.modified()).ok()?;
        let age = SystemTime::now().duration_since(asked).unwrap_or(Duration::MAX);
        dir.is_dir().then_some((dir, age < ASK_AGAIN_AFTER))
    }

    /// An empty folder to fill; it becomes visible only through [`Cache::keep`].
    ///
    /// # Errors
    /// The folder cannot be made.
    pub(crate) fn scratch(&self, bundle: &str) -> Result<PathBuf> {
        let path = self.root.join(format!("{SCRATCH}{bundle}"));
        fs::create_dir(&path).map_err(Error::file("make", &path))?;
        Ok(path)
    }

    /// Makes a filled folder the bundle's latest version, in one step.
    ///
    /// # Errors
    /// Renaming or noting it fails; the version that was latest stays so.
    pub(crate) fn keep(&self, bundle: &str, version: &str, scratch: &Path) -> Result<PathBuf> {
        let path = self.root.join(version);
        fs::rename(scratch, &path).map_err(Error::file("make", &path))?;
        self.note_latest(bundle, version)?;
        self.forget_old(bundle, version)?;
        Ok(path)
    }

    /// Notes that the mirror was asked and that this version is the newest.
    ///
    /// # Errors
    /// The note cannot be written.
    pub(crate) fn note_latest(&self, bundle: &str, version: &str) -> Result<()> {
        let pointer = self.pointer(bundle);
        fs::write(&pointer, version).map_err(Error::file("write", &pointer))
    }

    fn pointer(&self, bundle: &str) -> PathBuf {
        self.root.join(format!("latest.{bundle}"))
    }

    /// Removes what an interrupted run left half filled; nobody else fills while we hold the lock.
    fn sweep(&self) -> Result<()> {
        for (name, path) in entries(&self.root)? {
            if name.starts_with(SCRATCH) {
                fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
            }
        }
        Ok(())
    }

    fn forget_old(&self, bundle: &str, newest: &str) -> Result<()> {
        let prefix = format!("{bundle}_");
        let mut old: Vec<(SystemTime, PathBuf)> = entries(&self.root)?
            .into_iter()
            .filter(|(name, _)| name.starts_with(&prefix) && name != newest)
            .filter_map(|(_, path)| Some((fs::metadata(&path).ok()?.modified().ok()?, path)))
            .collect();
        old.sort();
        old.reverse();
        for (_, path) in old.into_iter().skip(VERSIONS_KEPT - 1) {
            fs::remove_dir_all(&path).map_err(Error::file("remove", &path))?;
        }
        Ok(())
    }
}

/// How the folders begin that are being filled.
const SCRATCH: &str = "filling.";

fn folder() -> Result<PathBuf> {
    let named = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if let Some(own) = named("VIOMMU_CACHE") {
        return std::path::absolute(own).map_err(Error::file("find", "VIOMMU_CACHE"));
    }
    let base = named("XDG_CACHE_HOME").map(PathBuf::from).or_else(|| {
        let home = named("HOME")?;
        Some(Path::new(&home).join(".cache"))
    });
    base.map(|base| base.join("vhost-user-iommu"))
        .ok_or_else(|| Error::Wrong("no cache folder: set VIOMMU_CACHE or HOME".to_owned()))
}

fn entries(dir: &Path) -> Result<Vec<(String, PathBuf)>> {
    let listed = fs::read_dir(dir).map_err(Error::file("list", dir))?;
    Ok(listed
        .filter_map(|entry| entry.ok())
        .map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path()))
        .collect())
}

//! The image file: sectors in, sectors out.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use log::warn;

/// Unit of capacity and addresses in virtio-blk, whatever the block size (virtio 1.4, 5.2.4).
pub(crate) const SECTOR_BYTES: u32 = 512;
const SECTOR: u64 = SECTOR_BYTES as u64;

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    /// It cannot be opened or measured.
    #[error("cannot open {path}: {source}")]
    Open {
        /// Its name.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Its size is not a number of sectors.
    #[error("{path} has {bytes} bytes: not a positive multiple of {SECTOR_BYTES}")]
    Size {
        /// Its name.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
}

/// An image file as a disk.
#[derive(Debug)]
pub(crate) struct Disk {
    file: File,
    sectors: u64,
    read_only: bool,
    /// Failures of the host's, not the guest's.
    failures: AtomicU64,
}

/// Whole sectors that lie on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    byte_offset: u64,
}

impl Disk {
    /// Opens the image `path`.
    ///
    /// # Errors
    /// [`DiskError`].
    pub(crate) fn open(path: &Path, read_only: bool) -> Result<Self, DiskError> {
        let refused = |source| DiskError::Open { path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).write(!read_only).open(path).map_err(refused)?;
        // seeking, because a block device's metadata says 0
        let bytes = io::Seek::seek(&mut &file, io::SeekFrom::End(0)).map_err(refused)?;
        if bytes == 0 || !bytes.is_multiple_of(SECTOR) {
            return Err(DiskError::Size { path: path.to_owned(), bytes });
        }
        Ok(Self { file, sectors: bytes / SECTOR, read_only, failures: AtomicU64::new(0) })
    }

    /// Size in sectors.
    pub(crate) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// True if it cannot be written.
    pub(crate) fn read_only(&self) -> bool {
        self.read_only
    }

    /// `bytes` bytes from `sector` on; `None` if that is not whole sectors or past the end.
    pub(crate) fn extent(&self, sector: u64, bytes: u64) -> Option<Extent> {
        let end = sector.checked_add(bytes / SECTOR)?;
        let inside = bytes.is_multiple_of(SECTOR) && end <= self.sectors;
        inside.then_some(Extent { byte_offset: sector * SECTOR })
    }

    /// Fills `data` from `extent`, which was made for its length.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn read(&self, extent: Extent, data: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(data, extent.byte_offset)
    }

    /// Writes `data` to `extent`, which was made for its length.
    ///
    /// # Errors
    /// What the kernel says; a read-only image refuses.
    pub(crate) fn write(&self, extent: Extent, data: &[u8]) -> io::Result<()> {
        self.file.write_all_at(data, extent.byte_offset)
    }

    /// Returns when all that was written is on stable storage.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    /// Logs that the image failed: the first time and then ever more rarely, since a guest can
    /// make it fail as often as it likes.
    pub(crate) fn report(&self, error: &io::Error) {
        // Relaxed: a counter that orders nothing
        let failures = self.failures.fetch_add(1, Ordering::Relaxed) + 1;
        if failures.is_power_of_two() {
            warn!("the image failed ({failures} times so far): {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(bytes: u64) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(bytes).unwrap();
        file
    }

    #[test]
    fn extents_end_at_the_last_sector() {
        let image = image(4 * 512);
        let disk = Disk::open(image.path(), true).unwrap();
        assert_eq!(disk.sectors(), 4);
        assert_eq!(disk.extent(3, 512), Some(Extent { byte_offset: 3 * 512 }));
        let bad = [(3, 1024), (4, 512), (0, 100), (u64::MAX, 512), (u64::MAX - 1, u64::MAX - 511)];
        for (sector, bytes) in bad {
            assert_eq!(disk.extent(sector, bytes), None, "{sector} {bytes}");
        }
    }

    #[test]
    fn what_is_written_is_read_again_and_a_read_only_disk_refuses() {
        let image = image(8 * 512);
        let disk = Disk::open(image.path(), false).unwrap();
        let extent = disk.extent(2, 1024).unwrap();
        disk.write(extent, &[0x5a; 1024]).unwrap();
        disk.flush().unwrap();
        let read_only = Disk::open(image.path(), true).unwrap();
        let mut data = [0; 1024];
        read_only.read(extent, &mut data).unwrap();
        assert_eq!(data, [0x5a; 1024]);
        assert!(read_only.write(extent, &data).is_err());
    }

    #[test]
    fn files_that_are_no_disk_are_refused() {
        for bytes in [0, 511, 513] {
            let image = image(bytes);
            assert!(matches!(Disk::open(image.path(), true), Err(DiskError::Size { .. })));
        }
        let missing = Disk::open(Path::new("/nonexistent/image"), true);
        assert!(matches!(missing, Err(DiskError::Open { .. })));
    }
}

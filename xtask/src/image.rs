//! Disk images whose every word tells where it belongs.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use viommu_guest::sum::{self, Sum};
use viommu_guest::{PIECE_BYTES, pattern};

use crate::error::{Error, Result};

/// Makes an image of `bytes` bytes filled with the pattern of `seed`.
///
/// # Errors
/// The file cannot be written.
pub(crate) fn make(path: &Path, seed: u64, bytes: u64) -> Result<()> {
    let write = || -> std::io::Result<()> {
        let mut file = File::create(path)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut at = 0;
        while at < bytes {
            let length = usize::try_from(bytes - at).unwrap_or(PIECE_BYTES).min(PIECE_BYTES);
            piece.truncate(length);
            pattern::fill(seed, at, &mut piece);
            file.write_all(&piece)?;
            at += length as u64;
        }
        Ok(())
    };
    write().map_err(Error::file("write", path))
}

/// The checksum of a whole image, and its size.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn checksum(path: &Path) -> Result<(Sum, u64)> {
    let file = File::open(path).map_err(Error::file("open", path))?;
    sum::of_stream(file).map_err(Error::file("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_the_pattern_of_its_seed_to_its_last_byte() {
        let path = std::env::temp_dir().join(format!("image-{}", std::process::id()));
        make(&path, 5, PIECE_BYTES as u64 + 4096).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(bytes.len(), PIECE_BYTES + 4096);
        assert_eq!(pattern::first_difference(5, 0, &bytes), None);
    }
}

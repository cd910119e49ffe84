//! What a scenario's host half compares.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use viommu_guest::{PIECE_BYTES, pattern};

use crate::error::{Error, Result};
use crate::image;

/// Fails unless the guest's `CHECKSUM BYTES` is that of the image.
///
/// # Errors
/// It is another, or the image cannot be read.
pub(crate) fn checksum(inside: &str, image: &Path) -> Result<String> {
    let (sum, bytes) = image::checksum(image)?;
    equal("the checksum", inside, &format!("{sum} {bytes}"))?;
    Ok(sum.to_string())
}

/// Fails unless what the guest says is what is known outside.
///
/// # Errors
/// It is not; the error shows both.
pub(crate) fn equal(what: &str, inside: &str, outside: &str) -> Result<()> {
    if inside == outside {
        return Ok(());
    }
    Err(Error::Wrong(format!("{what} is {inside:?} in the guest, {outside:?} outside")))
}

/// Fails unless these bytes of an image are the pattern of `seed`.
///
/// # Errors
/// They are not, or the image cannot be read.
pub(crate) fn content(image: &Path, seed: u64, bytes: Range<u64>) -> Result<()> {
    let look = || -> std::io::Result<Option<u64>> {
        let mut file = File::open(image)?;
        file.seek(SeekFrom::Start(bytes.start))?;
        let mut piece = vec![0; PIECE_BYTES];
        for at in bytes.step_by(PIECE_BYTES) {
            file.read_exact(&mut piece)?;
            if let Some(wrong) = pattern::first_difference(seed, at, &piece) {
                return Ok(Some(wrong));
            }
        }
        Ok(None)
    };
    match look().map_err(Error::file("read", image))? {
        None => Ok(()),
        Some(at) => {
            let image = image.display();
            Err(Error::Wrong(format!("{image} has other content at byte {at:#x}")))
        }
    }
}

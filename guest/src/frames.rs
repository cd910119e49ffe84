//! Which physical memory a buffer lies in, as the kernel tells root (Linux,
//! Documentation/admin-guide/mm/pagemap.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a page; the guests' kernels are built for that size.
const PAGE_BYTES: u64 = 4096;
/// Bytes of an entry of the map: one for each page of the process.
const ENTRY_BYTES: u64 = size_of::<u64>() as u64;
/// The page is in memory.
const PRESENT: u64 = 1 << 63;
/// Bits of an entry that hold the frame's number; zeros for whom it is not to be told.
const FRAME: u64 = (1 << 55) - 1;
/// The first frame above 4 GiB.
const HIGH_FRAME: u64 = (1 << 32) / PAGE_BYTES;

/// How many of the buffer's pages lie above 4 GiB, and how many it has.
///
/// # Errors
/// A page is not in memory, or its place is not told to this process.
pub fn high(buffer: &[u8]) -> io::Result<(usize, usize)> {
    let map = File::open("/proc/self/pagemap")?;
    let (first, bytes) = (buffer.as_ptr().addr() as u64, buffer.len() as u64);
    let pages = first / PAGE_BYTES..(first + bytes).div_ceil(PAGE_BYTES);
    let (mut high, mut all) = (0, 0);
    for page in pages {
        let mut entry = [0; size_of::<u64>()];
        map.read_exact_at(&mut entry, page * ENTRY_BYTES)?;
        let entry = u64::from_ne_bytes(entry);
        if entry & PRESENT == 0 || entry & FRAME == 0 {
            return Err(io::Error::other(format!("the frame of page {page:#x} is not told")));
        }
        high += usize::from(entry & FRAME >= HIGH_FRAME);
        all += 1;
    }
    Ok((high, all))
}

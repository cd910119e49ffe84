//! What a block is read into: memory in pages that lie anywhere, or in huge ones.
#![expect(unsafe_code, reason = "the kernel is asked for huge pages under memory of our own")]

use std::fs;
use std::io;

use rustix::mm::{Advice, madvise};

/// Direct I/O wants buffers that begin at such an address.
pub(crate) const PAGE_BYTES: usize = 4096;

/// A huge page, on x86 and on Arm with pages of 4 KiB.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Which pages a buffer lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Of 4 KiB: as a rule each lies elsewhere, and is a segment of the transfer by itself.
    Small,
    /// Of 2 MiB, as databases and storage applications take: a block is one segment.
    Huge,
}

/// Memory that a block is read into or written from.
#[derive(Debug)]
pub(crate) struct Buffer {
    memory: Vec<u8>,
    skip: usize,
    bytes: usize,
}

impl Buffer {
    /// A buffer of that many bytes, each written once.
    ///
    /// # Errors
    /// The kernel has no huge pages, or has none left: then a measurement would be of something else.
    pub(crate) fn new(bytes: usize, pages: Pages) -> io::Result<Self> {
        let (alignment, whole) = match pages {
            Pages::Small => (PAGE_BYTES, bytes),
            Pages::Huge => (HUGE_PAGE_BYTES, bytes.next_multiple_of(HUGE_PAGE_BYTES)),
        };
        let mut memory: Vec<u8> = Vec::with_capacity(whole + alignment);
        let skip = memory.as_ptr().align_offset(alignment).min(alignment);
        if pages == Pages::Huge {
            let start = memory.as_mut_ptr();
            let start = start.wrapping_add(skip);
            // SAFETY: 1. `whole` bytes from the first aligned one on are inside what `memory` owns; 2. the
            // advice changes which pages are under them, never what they hold.
            unsafe { madvise(start.cast(), whole, Advice::LinuxHugepage) }?;
        }
        memory.resize(whole + alignment, 1);
        if pages == Pages::Huge && huge_bytes()? < whole {
            return Err(io::Error::other("the kernel gave no huge page"));
        }
        Ok(Self { memory, skip, bytes })
    }

    /// Its bytes.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        let (_, rest) = self.memory.split_at_mut(self.skip);
        rest.split_at_mut(self.bytes).0
    }
}

/// Bytes of this process that lie in huge pages now.
fn huge_bytes() -> io::Result<usize> {
    let told = fs::read_to_string("/proc/self/smaps_rollup")?;
    let kib = told.lines().find_map(|line| line.strip_prefix("AnonHugePages:")).and_then(|rest| {
        let number = rest.trim().strip_suffix("kB")?;
        number.trim_end().parse::<usize>().ok()
    });
    kib.map(|kib| kib << 10).ok_or_else(|| io::Error::other("smaps_rollup tells no AnonHugePages"))
}

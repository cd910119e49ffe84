//! Reads, writes and compares a disk from within a guest.
//!
//! ```text
//! disk-check sum      PATH buffered|direct
//! disk-check sum-high PATH buffered|direct
//! disk-check verify   PATH buffered|direct SEED FIRST_BYTE BYTES
//! disk-check write    PATH buffered|direct SEED FIRST_BYTE BYTES
//! ```
//! `sum` prints checksum and bytes; `sum-high` does so too, with a buffer that lies above 4 GiB for the
//! most part, or fails. `verify` compares with the pattern of the seed. `write` writes
//! that pattern and flushes the disk. Numbers are multiples of 4096. The exit status is 0 when all is
//! as it should be, 1 when it is not, 2 for a wrong command line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::process::ExitCode;

use viommu_guest::{PIECE_BYTES, frames, pattern, sum};

/// Direct I/O wants buffers that begin at such an address.
const ALIGNMENT: usize = 4096;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(order) = Order::parse(&words) else {
        eprintln!(
            "usage: disk-check sum|sum-high|verify|write PATH buffered|direct [SEED FIRST BYTES]"
        );
        return ExitCode::from(2);
    };
    match order.run() {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}: {error}", order.path);
            ExitCode::FAILURE
        }
    }
}

/// What is to be done, on which disk, how.
#[derive(Debug)]
struct Order<'a> {
    path: &'a str,
    direct: bool,
    work: Work,
}

#[derive(Debug, Clone, Copy)]
enum Work {
    Sum,
    SumHigh,
    Verify(Stretch),
    Write(Stretch),
}

/// Content of one seed on part of a disk; `end` is exclusive.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    seed: u64,
    first: u64,
    end: u64,
}

impl<'a> Order<'a> {
    fn parse(words: &[&'a str]) -> Option<Self> {
        let (&work, &path, &mode, rest) = match words {
            [work, path, mode, rest @ ..] => (work, path, mode, rest),
            _ => return None,
        };
        let direct = match mode {
            "direct" => true,
            "buffered" => false,
            _ => return None,
        };
        let work = match work {
            "sum" if rest.is_empty() => Work::Sum,
            "sum-high" if rest.is_empty() => Work::SumHigh,
            "verify" => Work::Verify(Stretch::parse(rest)?),
            "write" => Work::Write(Stretch::parse(rest)?),
            _ => return None,
        };
        Some(Self { path, direct, work })
    }

    fn run(&self) -> io::Result<String> {
        // not zeros: pages of those would be there only once they are written
        let mut memory = vec![1; PIECE_BYTES + ALIGNMENT];
        let buffer = aligned(&mut memory);
        let mut disk = self.open()?;
        match self.work {
            Work::Sum => {
                let (sum, bytes) = sum::of(disk, buffer)?;
                Ok(format!("{sum} {bytes}"))
            }
            Work::SumHigh => {
                let (high, all) = frames::high(buffer)?;
                if high * 2 < all {
                    return Err(io::Error::other(format!("{high} of {all} pages above 4 GiB")));
                }
                let (sum, bytes) = sum::of(disk, buffer)?;
                Ok(format!("{sum} {bytes}"))
            }
            Work::Verify(stretch) => stretch.verify(&mut disk, buffer),
            Work::Write(stretch) => stretch.write(&mut disk, buffer),
        }
    }

    fn open(&self) -> io::Result<File> {
        let flags = if self.direct { libc::O_DIRECT } else { 0 };
        let write = matches!(self.work, Work::Write(_));
        OpenOptions::new().read(true).write(write).custom_flags(flags).open(self.path)
    }
}

impl Stretch {
    fn parse(words: &[&str]) -> Option<Self> {
        let [seed, first, bytes] = words else { return None };
        let (first, bytes): (u64, u64) = (first.parse().ok()?, bytes.parse().ok()?);
        let end = first.checked_add(bytes)?;
        let whole = |number: u64| number.is_multiple_of(ALIGNMENT as u64);
        (whole(first) && whole(end)).then_some(Self { seed: seed.parse().ok()?, first, end })
    }

    fn verify(self, disk: &mut File, buffer: &mut [u8]) -> io::Result<String> {
        disk.seek(SeekFrom::Start(self.first))?;
        self.pieces(buffer, |at, piece| {
            disk.read_exact(piece)?;
            match pattern::first_difference(self.seed, at, piece) {
                None => Ok(()),
                Some(place) => Err(io::Error::other(format!("other content at byte {place:#x}"))),
            }
        })
    }

    fn write(self, disk: &mut File, buffer: &mut [u8]) -> io::Result<String> {
        disk.seek(SeekFrom::Start(self.first))?;
        let said = self.pieces(buffer, |at, piece| {
            pattern::fill(self.seed, at, piece);
            disk.write_all(piece)
        })?;
        disk.sync_all()?;
        Ok(said)
    }

    /// Does the work for each piece, of which `at` is the place on the disk.
    fn pieces(
        self,
        buffer: &mut [u8],
        mut work: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<String> {
        let mut at = self.first;
        while at < self.end {
            let left = usize::try_from(self.end - at).unwrap_or(usize::MAX);
            let length = left.min(buffer.len());
            let (piece, _) = buffer.split_at_mut(length);
            work(at, piece).map_err(|error| {
                io::Error::new(error.kind(), format!("at {at:#x}, {length} bytes: {error}"))
            })?;
            at += length as u64;
        }
        Ok(format!("{} bytes from {:#x}, seed {}", self.end - self.first, self.first, self.seed))
    }
}

/// The part of `memory` that begins at a multiple of [`ALIGNMENT`], `PIECE_BYTES` long.
fn aligned(memory: &mut [u8]) -> &mut [u8] {
    let skip = memory.as_ptr().align_offset(ALIGNMENT);
    let (_, rest) = memory.split_at_mut(skip.min(memory.len()));
    let length = rest.len().min(PIECE_BYTES);
    rest.split_at_mut(length).0
}

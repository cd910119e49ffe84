//! How many blocks of a disk are read or written in a given time, past the guest's cache.
//!
//! ```text
//! disk-bench PATH read|write BLOCK_BYTES small|huge THREADS SECONDS
//! ```
//! Each thread does one block after the other, at places that a fixed series of numbers gives, with a buffer
//! in pages of 4 KiB or in huge ones. Prints the blocks that were done and the nanoseconds that they took.
//! The exit status is 0 when all went well, 1 when not, 2 for a wrong command line.

mod buffer;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use viommu_guest::pattern;

use buffer::{Buffer, PAGE_BYTES, Pages};

/// What is measured.
#[derive(Debug, Clone, Copy)]
struct Order<'a> {
    path: &'a str,
    write: bool,
    block_bytes: usize,
    pages: Pages,
    threads: u64,
    time: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let Some(order) = Order::parse(&words) else {
        eprintln!("usage: disk-bench PATH read|write BLOCK_BYTES small|huge THREADS SECONDS");
        return ExitCode::from(2);
    };
    match order.run() {
        Ok((blocks, took)) => {
            println!("{blocks} {}", took.as_nanos());
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("{}: {error}", order.path);
            ExitCode::FAILURE
        }
    }
}

impl<'a> Order<'a> {
    fn parse(words: &[&'a str]) -> Option<Self> {
        let [path, direction, block, pages, threads, seconds] = words else { return None };
        let write = match *direction {
            "read" => false,
            "write" => true,
            _ => return None,
        };
        let block_bytes: usize = block.parse().ok()?;
        let whole = block_bytes > 0 && block_bytes.is_multiple_of(PAGE_BYTES);
        let pages = match *pages {
            "small" => Pages::Small,
            "huge" => Pages::Huge,
            _ => return None,
        };
        let time = Duration::from_secs(seconds.parse().ok()?);
        let threads = threads.parse().ok()?;
        whole.then_some(Self { path, write, block_bytes, pages, threads, time })
    }

    /// The blocks of all threads, and how long the slowest of them took.
    fn run(&self) -> io::Result<(u64, Duration)> {
        let began = Instant::now();
        let each: io::Result<Vec<u64>> = thread::scope(|scope| {
            let threads: Vec<_> =
                (0..self.threads).map(|seed| scope.spawn(move || self.work(seed, began))).collect();
            let joined = threads.into_iter().map(|thread| {
                thread.join().unwrap_or_else(|_| Err(io::Error::other("a thread panicked")))
            });
            joined.collect()
        });
        Ok((each?.into_iter().sum(), began.elapsed()))
    }

    /// One block after the other until the time is over.
    fn work(&self, seed: u64, began: Instant) -> io::Result<u64> {
        let mut disk = self.open()?;
        let places = disk.seek(SeekFrom::End(0))? / self.block_bytes as u64;
        if places == 0 {
            return Err(io::Error::other("the disk is shorter than a block"));
        }
        let mut buffer = Buffer::new(self.block_bytes, self.pages)?;
        let block = buffer.bytes();
        let mut blocks = 0;
        while began.elapsed() < self.time {
            let at = pattern::word(seed, blocks) % places * self.block_bytes as u64;
            if self.write {
                disk.write_all_at(block, at)?;
            } else {
                disk.read_exact_at(block, at)?;
            }
            blocks += 1;
        }
        Ok(blocks)
    }

    fn open(&self) -> io::Result<File> {
        let direct = libc::O_DIRECT;
        OpenOptions::new().read(true).write(self.write).custom_flags(direct).open(self.path)
    }
}

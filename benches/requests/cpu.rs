//! Who runs where, and how much of it.

use rustix::process::Pid;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Processors for the two sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Places {
    /// The driver's.
    pub(crate) driver: usize,
    /// The daemon's.
    pub(crate) daemon: usize,
}

impl Places {
    /// Whether both sides share a processor.
    pub(crate) const fn is_one(self) -> bool {
        self.driver == self.daemon
    }

    /// One processor for both, and two where this process may use two.
    pub(crate) fn all() -> Vec<Self> {
        let allowed = sched_getaffinity(None).unwrap();
        let usable: Vec<_> = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu)).collect();
        let first = usable[0];
        let one = Self { driver: first, daemon: first };
        let two = usable.get(1).map(|second| Self { driver: first, daemon: *second });
        std::iter::once(one).chain(two).collect()
    }
}

/// Lets a process, this one for `None`, run on one processor only.
pub(crate) fn pin(process: Option<u32>, cpu: usize) {
    let process = process.map(|id| Pid::from_raw(id.cast_signed()).unwrap());
    let mut one = CpuSet::new();
    one.set(cpu);
    sched_setaffinity(process, &one).unwrap();
}

/// Processor time that the only thread of a process has used, nanoseconds: exact while it sleeps.
pub(crate) fn used_ns(process: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/schedstat")).unwrap();
    text.split_whitespace().next().unwrap().parse().unwrap()
}

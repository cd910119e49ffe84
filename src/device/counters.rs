//! What the device did, for one line at the end.

use std::fmt;

use crate::protocol::{RequestKind, Status};

/// Statuses that exist, by their number on the wire.
const STATUSES: [Status; 9] = [
    Status::OK,
    Status::IOERR,
    Status::UNSUPP,
    Status::DEVERR,
    Status::INVAL,
    Status::RANGE,
    Status::NOENT,
    Status::FAULT,
    Status::NOMEM,
];

/// Requests that each driver can send, by their place among the kinds.
const STANDARD: [&str; 5] = ["attach", "detach", "map", "unmap", "probe"];
/// Those of the extension, in the places after.
const EXTENSION: [&str; 8] = [
    "aux_enable",
    "aux_disable",
    "aux_attach",
    "aux_detach",
    "get_attr",
    "bind_table",
    "unbind_table",
    "invalidate",
];

/// Counts since the daemon's start. They wrap only after more requests than fit into a lifetime.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    /// Requests by kind, whatever came of them: the standard's, then the extension's.
    kinds: [u64; STANDARD.len() + EXTENSION.len()],
    /// Answers by status.
    statuses: [u64; STATUSES.len()],
    /// Buffers that are no request: untouched, used length 0.
    pub unknown: u64,
    /// Chains that lead nowhere or outside memory: the same.
    pub bad_chains: u64,
    /// Rings that were given up until their next set-up.
    pub broken_rings: u64,
    /// Faults that the guest was told.
    pub faults: u64,
    /// Faults that found no room among those waiting, or ended with a reset.
    pub faults_dropped: u64,
}

impl Counters {
    /// Counts a well-formed request and its answer.
    pub fn request(&mut self, kind: RequestKind, status: Status) {
        if let Some(count) = self.kinds.get_mut(place(kind)) {
            *count += 1;
        }
        if let Some(count) = self.statuses.get_mut(usize::from(status.raw())) {
            *count += 1;
        }
    }

    /// Buffers that were given back, requests or not.
    #[must_use]
    pub fn all(&self) -> u64 {
        self.kinds.iter().sum::<u64>() + self.unknown + self.bad_chains
    }
}

/// Where a kind is counted.
const fn place(kind: RequestKind) -> usize {
    match kind {
        RequestKind::Attach => 0,
        RequestKind::Detach => 1,
        RequestKind::Map => 2,
        RequestKind::Unmap => 3,
        RequestKind::Probe => 4,
        RequestKind::AuxEnable => 5,
        RequestKind::AuxDisable => 6,
        RequestKind::AuxAttach => 7,
        RequestKind::AuxDetach => 8,
        RequestKind::GetAttr => 9,
        RequestKind::BindTable => 10,
        RequestKind::UnbindTable => 11,
        RequestKind::Invalidate => 12,
    }
}

/// `counters: requests=7 attach=1 ... broken_rings=0`; requests of the extension, and statuses other
/// than OK, only where there was one.
impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counters: requests={}", self.all())?;
        for (place, (name, count)) in STANDARD.iter().chain(&EXTENSION).zip(self.kinds).enumerate()
        {
            if count > 0 || place < STANDARD.len() {
                write!(f, " {name}={count}")?;
            }
        }
        write!(f, " unknown={} bad={}", self.unknown, self.bad_chains)?;
        for (status, count) in STATUSES.iter().zip(self.statuses) {
            if count > 0 || status.is_ok() {
                write!(f, " {}={count}", status.name().to_ascii_lowercase())?;
            }
        }
        write!(f, " faults={} faults_dropped={}", self.faults, self.faults_dropped)?;
        write!(f, " broken_rings={}", self.broken_rings)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_everything_that_was_counted() {
        let mut counters = Counters { unknown: 1, faults: 2, ..Counters::default() };
        counters.request(RequestKind::Map, Status::OK);
        counters.request(RequestKind::Map, Status::INVAL);
        counters.request(RequestKind::Probe, Status::OK);
        counters.request(RequestKind::Invalidate, Status::OK);
        assert_eq!(
            counters.to_string(),
            "counters: requests=5 attach=0 detach=0 map=2 unmap=0 probe=1 invalidate=1 unknown=1 bad=0 \
             ok=3 inval=1 faults=2 faults_dropped=0 broken_rings=0"
        );
    }
}

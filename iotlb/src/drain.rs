//! The drain: when it returns, no device process uses what was withdrawn before.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::Signal;

use crate::abi::State;
use crate::config::StuckPolicy;
use crate::conn::Connection;
use crate::hub::Hub;
use crate::message::Message;

/// A section is a batch of translations and copies: most end while we look.
const SPIN: Duration = Duration::from_micros(20);

/// First sleep after spinning; doubles up to [`LONGEST_NAP`].
const FIRST_NAP: Duration = Duration::from_micros(20);

/// Longest time between two looks.
const LONGEST_NAP: Duration = Duration::from_millis(1);

/// How long a killed process may take to be gone: it may be writing a core or waiting for a disk.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What a drain did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DrainReport {
    /// The epoch that it began; 0 if there was nothing to drain.
    pub epoch: u64,
    /// How long it took.
    pub took: Duration,
    /// Device processes that were killed.
    pub killed: u32,
    /// Device processes that were cut off while perhaps using what was withdrawn.
    pub cut_off: u32,
}

impl Hub {
    /// Waits until no device process uses what was withdrawn since the last drain; then table pages
    /// that were freed are used again, and devices that asked something get their answers.
    ///
    /// Does nothing but answer if nothing was withdrawn, freed, or told to readers. Waits for a
    /// device process at most [`HubConfig::stuck`](crate::HubConfig::stuck), and for the end of one
    /// that it kills a few seconds more.
    pub fn drain(&mut self) -> DrainReport {
        let something =
            !self.withdrawn.is_empty() || self.states_changed || self.region.has_limbo();
        let report = if something { self.drain_now() } else { DrainReport::default() };
        self.answer_all();
        report
    }

    fn drain_now(&mut self) -> DrainReport {
        let start = Instant::now();
        let mut report = DrainReport { epoch: self.region.next_epoch(), ..DrainReport::default() };
        self.states_changed = false;
        if !self.spin(report.epoch, start) {
            self.counters.waits += 1;
            self.wait(start, &mut report);
        }
        if self.states_changed {
            // Somebody was cut off after this drain's epoch began: from here on no section of the
            // endpoint begins. Those of it that may still be inside are waited for by the next
            // drain, but for the stuck, which are counted.
            self.region.next_epoch();
        }
        self.region.reclaim();
        self.withdrawn.clear();
        self.drop_refused();
        report.took = start.elapsed();
        let counters = &mut self.counters;
        counters.drains += 1;
        counters.longest_drain = counters.longest_drain.max(report.took);
        counters.killed += u64::from(report.killed);
        counters.cut_off += u64::from(report.cut_off);
        report
    }

    fn is_clear(&self, connection: &Connection, epoch: u64) -> bool {
        connection.is_clear(epoch, &self.withdrawn)
    }

    /// True if all are out within [`SPIN`].
    fn spin(&self, epoch: u64, start: Instant) -> bool {
        loop {
            if self.connections.values().all(|connection| self.is_clear(connection, epoch)) {
                return true;
            }
            if start.elapsed() >= SPIN {
                return false;
            }
            std::hint::spin_loop();
        }
    }

    fn wait(&mut self, start: Instant, report: &mut DrainReport) {
        let mut nap = FIRST_NAP;
        loop {
            let late = self.late(report.epoch);
            if late.is_empty() {
                return;
            }
            let left = self.stuck.saturating_sub(start.elapsed());
            if left.is_zero() {
                return self.give_up(&late, report);
            }
            if left <= self.stuck / 2 {
                self.revoke(&late);
            }
            for id in self.nap(&late, nap.min(left)) {
                self.remove(id);
            }
            nap = (nap * 2).min(LONGEST_NAP);
        }
    }

    /// The connections that are not out yet.
    fn late(&mut self, epoch: u64) -> Vec<u64> {
        let mut late = Vec::new();
        for (id, connection) in &mut self.connections {
            if connection.is_clear(epoch, &self.withdrawn) {
                connection.revoked = false;
            } else {
                late.push(*id);
            }
        }
        late
    }

    /// Sleeps, and wakes early if one of `late` hangs up. Returns those that did.
    fn nap(&self, late: &[u64], nap: Duration) -> Vec<u64> {
        let late: Vec<_> =
            late.iter().filter_map(|id| Some((*id, self.connections.get(id)?))).collect();
        let mut fds: Vec<_> =
            late.iter().map(|(_, c)| PollFd::new(&c.socket, PollFlags::RDHUP)).collect();
        // an interrupted sleep is a short one; nothing is set in `fds` then
        let _woken = rustix::event::poll(&mut fds, Some(&timespec(nap)));
        let left = PollFlags::HUP | PollFlags::RDHUP | PollFlags::ERR;
        let gone = late.iter().zip(&fds).filter(|(_, fd)| fd.revents().intersects(left));
        gone.map(|((id, _), _)| *id).collect()
    }

    /// Tells those that keep us waiting, once.
    fn revoke(&mut self, late: &[u64]) {
        for id in late {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if !std::mem::replace(&mut connection.revoked, true) {
                log::debug!("device of {} keeps a drain waiting", connection.endpoint());
                // one that does not read will not be helped by it
                let _unheard = Message::Revoke.send(&connection.socket, &[]);
            }
        }
    }

    /// Ends connections whose readers do not come out. Processes are killed together, so that
    /// waiting for their ends takes no longer than for one.
    fn give_up(&mut self, late: &[u64], report: &mut DrainReport) {
        let hung_up = self.nap(late, Duration::ZERO);
        let stuck: Vec<u64> = late.iter().copied().filter(|id| !hung_up.contains(id)).collect();
        let is_killed = |id: &u64| self.connections.get(id).is_some_and(signal);
        let killed: Vec<u64> = match self.policy {
            StuckPolicy::Kill => stuck.iter().copied().filter(is_killed).collect(),
            StuckPolicy::Disconnect => Vec::new(),
        };
        let until = Instant::now() + KILL_WAIT;
        for id in stuck {
            let Some(connection) = self.connections.get(&id) else { continue };
            let endpoint = connection.endpoint();
            if killed.contains(&id) && ends(connection, until) {
                log::warn!("device of {endpoint} was stuck for {:?}: killed", self.stuck);
                report.killed += 1;
            } else {
                log::error!(
                    "device of {endpoint} is stuck: cut off, may still use what was withdrawn"
                );
                report.cut_off += 1;
                self.set_state(endpoint, State::CutOff);
                self.hang_up(id);
            }
        }
        late.iter().for_each(|id| self.remove(*id));
    }

    /// Ends a connection's socket, for both sides.
    fn hang_up(&self, id: u64) {
        if let Some(connection) = self.connections.get(&id) {
            // what matters is that its readers hear of it; a socket without a peer is fine
            let _gone = rustix::net::shutdown(&connection.socket, rustix::net::Shutdown::Both);
        }
    }

    /// Ends connections that were refused before this drain: nobody is inside any more. One with
    /// pins stays, and is waited for like others, until it has given them back or is gone.
    fn drop_refused(&mut self) {
        if self.states_changed {
            // refused during this drain: their readers learn it from the epoch that follows
            return;
        }
        let is_over = |c: &Connection| c.state() == State::CutOff && !c.has_pins();
        let refused = self.connections.iter().filter(|(_, c)| is_over(c));
        let refused: Vec<u64> = refused.map(|(id, _)| *id).collect();
        for id in refused {
            self.remove(id);
        }
    }
}

/// Kills the process behind a connection. False if it is our own, or we have no handle of it.
fn signal(connection: &Connection) -> bool {
    let peer = &connection.peer;
    let Some(pidfd) = peer.pidfd.as_ref().filter(|_| peer.pid != Some(rustix::process::getpid()))
    else {
        return false;
    };
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        // one that has just ended
        Ok(()) | Err(rustix::io::Errno::SRCH) => true,
        Err(error) => {
            log::error!("device of {} cannot be killed: {error}", connection.endpoint());
            false
        }
    }
}

/// Waits until the process behind a connection is gone. False if it is not by `until`.
fn ends(connection: &Connection, until: Instant) -> bool {
    let Some(pidfd) = &connection.peer.pidfd else { return false };
    loop {
        let left = until.saturating_duration_since(Instant::now());
        // readable when the process has ended, all threads of it
        let mut fds = [PollFd::new(pidfd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, Some(&timespec(left))) {
            Ok(0) => return false,
            Err(_) if left.is_zero() => return false,
            Ok(_) => return true,
            Err(_) => {}
        }
    }
}

fn timespec(duration: Duration) -> Timespec {
    let tv_sec = i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    Timespec { tv_sec, tv_nsec: duration.subsec_nanos().into() }
}

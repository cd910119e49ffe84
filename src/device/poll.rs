//! One epoll and what it watches.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

/// Events taken from the kernel at one wake-up; the others come at the next, at once.
const EVENTS_PER_WAIT: usize = 16;

/// What woke the loop: a small number chosen by whoever watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token(pub u64);

/// When a source is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// As long as there is something to read.
    Level,
    /// When something new came, room to write included: whoever handles it either takes all or comes
    /// back by itself.
    Edge,
}

/// An epoll; shared by all that watch something with it.
#[derive(Debug)]
pub struct Poll {
    fd: OwnedFd,
}

impl Poll {
    /// A new one that watches nothing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Self { fd: epoll::create(CreateFlags::CLOEXEC)? }))
    }

    /// Waits until something is ready or `timeout` is over (`None`: no limit), and calls `on` for each.
    /// A signal ends the wait early, with nothing.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait(&self, timeout: Option<Duration>, mut on: impl FnMut(Token)) -> io::Result<()> {
        let limit = timeout.map(timespec);
        let mut events =
            [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; EVENTS_PER_WAIT];
        let ready = match epoll::wait(&self.fd, &mut events, limit.as_ref()) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in events.iter().take(ready) {
            let data = event.data;
            on(Token(data.u64()));
        }
        Ok(())
    }
}

/// A duration as the kernel takes it; more than it can hold is as good as its largest.
fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::from(i32::MAX)),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

/// A descriptor that is watched as long as this lives.
///
/// The registration is taken back before the descriptor is closed. Without that it would stay: an
/// eventfd that came from the front-end is still open over there, and epoll forgets a file only when its
/// last descriptor is gone.
#[derive(Debug)]
pub struct Watched<F: AsFd> {
    source: F,
    poll: Arc<Poll>,
}

impl<F: AsFd> Watched<F> {
    /// Starts to watch `source`; `poll` reports it as `token`.
    ///
    /// # Errors
    /// What the kernel says: a regular file cannot be watched, for one.
    pub fn new(poll: &Arc<Poll>, source: F, token: Token, trigger: Trigger) -> io::Result<Self> {
        let flags = match trigger {
            Trigger::Level => EventFlags::IN,
            Trigger::Edge => EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET,
        };
        epoll::add(&poll.fd, &source, EventData::new_u64(token.0), flags)?;
        Ok(Self { source, poll: Arc::clone(poll) })
    }

    /// What is watched.
    pub fn get(&self) -> &F {
        &self.source
    }
}

impl<F: AsFd> Drop for Watched<F> {
    fn drop(&mut self) {
        // Fails only if the source was never added, and then there is nothing to take back.
        let _ = epoll::delete(&self.poll.fd, &self.source);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{EventfdFlags, eventfd};

    fn ready(poll: &Poll) -> Vec<Token> {
        let mut seen = Vec::new();
        poll.wait(Some(Duration::ZERO), |token| seen.push(token)).unwrap();
        seen
    }

    #[test]
    fn a_dropped_watch_is_silent_though_the_file_is_open_elsewhere() {
        let poll = Poll::new().unwrap();
        let theirs = eventfd(1, EventfdFlags::NONBLOCK).unwrap();
        let ours = theirs.try_clone().unwrap();
        let watched = Watched::new(&poll, ours, Token(7), Trigger::Level).unwrap();
        assert_eq!(ready(&poll), [Token(7)]);
        drop(watched);
        assert_eq!(ready(&poll), []);
    }

    #[test]
    fn an_edge_is_reported_once_for_each_write() {
        let poll = Poll::new().unwrap();
        let fd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let watched = Watched::new(&poll, fd, Token(1), Trigger::Edge).unwrap();
        assert_eq!(ready(&poll), [Token(1)], "room to write is news");
        assert_eq!(ready(&poll), []);
        rustix::io::write(watched.get(), &1_u64.to_ne_bytes()).unwrap();
        assert_eq!(ready(&poll), [Token(1)]);
        assert_eq!(ready(&poll), []);
    }

    #[test]
    fn a_regular_file_is_refused() {
        let poll = Poll::new().unwrap();
        let file = tempfile::tempfile().unwrap();
        assert!(Watched::new(&poll, file, Token(1), Trigger::Level).is_err());
    }
}

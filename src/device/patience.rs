//! How long the request queue is looked at after work before the daemon sleeps.
//!
//! To sleep costs nothing until the next request: its kick is an exit of the guest, and the daemon has to
//! be woken, which takes many times as long as the answer. To look again at once costs a processor. A
//! driver that waits for each answer before it asks again, and does so page after page, is worth that;
//! one that asks now and then is not. [`Polling::Adaptive`] tells them apart by the distance of
//! requests, and is wrong ever more rarely where it was wrong before.

use std::time::{Duration, Instant};

/// When the request queue is looked at without a kick.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polling {
    /// For so long after work; not at all if zero.
    Fixed(Duration),
    /// For [`POLL_WINDOW`] after work, once batches have come closer together than that several times in a row.
    Adaptive,
}

/// What [`Polling::Adaptive`] spends on waiting for one batch: two to four times what it takes to be woken
/// across processors where that was measured (`docs/performance.md`).
pub const POLL_WINDOW: Duration = Duration::from_micros(100);

/// Batches close together that it takes at first.
const CONVINCED_BY: u32 = 4;

/// The same at most: each window in vain doubles it, each that finds something halves it.
const CONVINCED_BY_AT_MOST: u32 = 256;

/// Decides, after each look at the queue, whether to look again at once.
#[derive(Debug)]
pub(super) struct Patience {
    polling: Polling,
    /// While this is in the future, the queue is looked at.
    until: Option<Instant>,
    /// When the last batch was over.
    last: Option<Instant>,
    /// Batches in a row that came within a window.
    close: u32,
    /// How many it takes.
    convinced_by: u32,
}

impl Patience {
    pub(super) const fn new(polling: Polling) -> Self {
        Self { polling, until: None, last: None, close: 0, convinced_by: CONVINCED_BY }
    }

    /// Whether to look again now, without asking for a kick. `worked`: the last look found requests.
    pub(super) fn goes_on(&mut self, worked: bool, now: Instant) -> bool {
        match (self.polling, worked) {
            (Polling::Fixed(time), true) => self.until = now.checked_add(time),
            (Polling::Fixed(_), false) => {}
            (Polling::Adaptive, true) => self.worked(now),
            (Polling::Adaptive, false) => self.in_vain(now),
        }
        self.until.is_some_and(|until| now < until)
    }

    /// A batch was answered: was it one of a series?
    fn worked(&mut self, now: Instant) {
        let near = self.last.is_some_and(|last| now.saturating_duration_since(last) < POLL_WINDOW);
        self.close = if near { self.close.saturating_add(1) } else { 0 };
        self.last = Some(now);
        if self.until.is_some() {
            // it came while the queue was looked at
            self.convinced_by = (self.convinced_by / 2).max(CONVINCED_BY);
        }
        let convinced = self.until.is_some() || self.close >= self.convinced_by;
        self.until = if convinced { now.checked_add(POLL_WINDOW) } else { None };
    }

    /// There was nothing: if the window is over, the next one is harder to get.
    fn in_vain(&mut self, now: Instant) {
        if self.until.is_some_and(|until| now >= until) {
            self.until = None;
            self.close = 0;
            self.convinced_by = (self.convinced_by * 2).min(CONVINCED_BY_AT_MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that is moved by hand.
    struct Bench {
        patience: Patience,
        now: Instant,
    }

    impl Bench {
        fn new(polling: Polling) -> Self {
            Self { patience: Patience::new(polling), now: Instant::now() }
        }

        fn after(&mut self, micros: u64, worked: bool) -> bool {
            self.now += Duration::from_micros(micros);
            self.patience.goes_on(worked, self.now)
        }

        /// Batches so far apart until it polls; how many it took.
        fn convince(&mut self, micros: u64) -> u32 {
            (1..).find(|_| self.after(micros, true)).unwrap()
        }
    }

    const FIXED: Polling = Polling::Fixed(Duration::from_micros(50));

    #[test]
    fn a_fixed_time_is_waited_after_work_and_not_before() {
        let mut bench = Bench::new(FIXED);
        assert!(!bench.after(0, false));
        assert!(bench.after(1000, true));
        assert!(bench.after(49, false));
        assert!(!bench.after(1, false));
    }

    #[test]
    fn no_time_is_no_wait() {
        assert!(!Bench::new(Polling::Fixed(Duration::ZERO)).after(0, true));
    }

    #[test]
    fn requests_far_apart_are_slept_between() {
        let mut bench = Bench::new(Polling::Adaptive);
        assert!((0..1000).all(|_| !bench.after(101, true)));
    }

    #[test]
    fn a_series_of_close_requests_is_waited_for_until_it_ends() {
        let mut bench = Bench::new(Polling::Adaptive);
        assert_eq!(bench.convince(30), CONVINCED_BY + 1);
        assert!((0..1000).all(|_| bench.after(50, false) && bench.after(49, true)));
        assert!(bench.after(99, false));
        assert!(!bench.after(1, false), "the series is over");
    }

    #[test]
    fn one_pause_begins_the_series_anew() {
        let mut bench = Bench::new(Polling::Adaptive);
        for _ in 0..100 {
            assert!((1..CONVINCED_BY).all(|_| !bench.after(30, true)));
            bench.after(1000, true);
        }
    }

    #[test]
    fn a_wait_in_vain_makes_the_next_rarer_and_a_good_one_less_rare() {
        let mut bench = Bench::new(Polling::Adaptive);
        let mut took = Vec::new();
        for _ in 0..8 {
            took.push(bench.convince(30));
            assert!(!bench.after(100, false), "in vain");
        }
        // each time the first is close to nothing
        assert_eq!(took, [5, 9, 17, 33, 65, 129, 257, 257]);
        bench.convince(30);
        assert!(bench.after(10, true), "not in vain");
        assert!(!bench.after(100, false));
        assert_eq!(bench.convince(30), 257);
    }
}

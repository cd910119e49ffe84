//! Two readers beside each other, compared with each of them alone.

use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Subject, batch_times, median};

/// Turns for each round of the other measurements: a turn is short, and their quotients vary more than
/// times do.
const TURNS: usize = 5;

/// Length of an access, bytes.
const LEN: u64 = 1500;

/// Where the two wait for each other.
struct Meeting {
    /// Sleeps: who waits here while the other works takes nothing from it.
    asleep: Barrier,
    /// How often somebody came to wait awake, so that both begin at once.
    awake: AtomicUsize,
}

/// How much more two readers do than one: what each does beside the other, of what it does alone, added up
/// turn by turn; the lower quartile, the median and the upper quartile. In a turn the first works alone, then
/// the second, then both, a millisecond or so each: whatever else the machine does, or its neighbours on the
/// same processor, falls on all three.
pub(super) fn two_to_one(subject: &dyn Subject, accesses: &[u64], rounds: usize) -> [f64; 3] {
    let meeting = Meeting { asleep: Barrier::new(2), awake: AtomicUsize::new(0) };
    let turns = |me| one_side(subject, accesses, (me, rounds * TURNS), &meeting);
    let [first, second] = std::thread::scope(|scope| {
        let sides = [0, 1].map(|me| scope.spawn(move || turns(me)));
        sides.map(|side| side.join().unwrap())
    });
    let mut sums: Vec<f64> = first.iter().zip(&second).map(|(one, other)| one + other).collect();
    sums.sort_by(f64::total_cmp);
    [1, 2, 3].map(|quarter| sums.get(sums.len() * quarter / 4).copied().unwrap_or(f64::NAN))
}

/// What reader `me` of the two does beside the other, of what it does alone, turn by turn.
fn one_side(
    subject: &dyn Subject,
    accesses: &[u64],
    (me, turns): (usize, usize),
    meeting: &Meeting,
) -> Vec<f64> {
    let mut reader = subject.reader();
    let mut time = || median(batch_times(&mut reader, accesses, LEN));
    time();
    let turn = |number| {
        let mut alone = f64::NAN;
        for worker in 0..2 {
            meeting.asleep.wait();
            if worker == me {
                alone = time();
            }
        }
        meeting.asleep.wait();
        meeting.be_awake(number);
        alone / time()
    };
    (0..turns).map(turn).collect()
}

impl Meeting {
    /// Waits until both are awake for turn `number`.
    fn be_awake(&self, number: usize) {
        // Relaxed: nothing but the number passes from one to the other
        self.awake.fetch_add(1, Ordering::Relaxed);
        while self.awake.load(Ordering::Relaxed) < 2 * (number + 1) {
            std::thread::yield_now();
        }
    }
}

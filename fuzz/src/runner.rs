//! Runs a target: its corpus, then what becomes of it, until something fails or time is over.

use std::fmt;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::mutate::{Random, mutate};
use crate::{Target, Trace};

/// An input that takes longer hangs: all of them are meant to take microseconds.
pub const LONGEST: Duration = Duration::from_secs(20);

/// Inputs that are kept; beyond, new ones replace old ones.
const MOST_KEPT: usize = 4096;

/// Tries to make a failing input smaller.
const SHRINK_TRIES: usize = 2000;

/// How a run is made.
#[derive(Debug, Clone)]
pub struct Plan {
    /// What its inputs follow from.
    pub seed: u64,
    /// For how long.
    pub time: Duration,
    /// Where the corpus is: a folder of it for each target.
    pub corpus: PathBuf,
    /// Where failing inputs go.
    pub failures: PathBuf,
}

/// A run that found nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Passed {
    /// Inputs that were run.
    pub inputs: u64,
    /// The corpus, and the inputs that reached something new.
    pub kept: Vec<Vec<u8>>,
    /// Different things that were reached.
    pub reached: usize,
}

/// A run that found something.
#[derive(Debug)]
pub struct Failed {
    /// The target.
    pub target: &'static str,
    /// The seed of the run.
    pub seed: u64,
    /// Which input it was, counted from 0.
    pub number: u64,
    /// Where the input is saved, or why it could not be.
    pub saved: io::Result<PathBuf>,
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { target, seed, number, saved } = self;
        writeln!(f, "{target} failed at input {number} of seed {seed}")?;
        match saved {
            Ok(path) => {
                let path = path.display();
                writeln!(f, "    saved as {path}")?;
                write!(f, "    again: cargo xtask fuzz {target} --input {path}")
            }
            Err(error) => {
                write!(f, "    not saved ({error}); again: cargo xtask fuzz {target} --seed {seed}")
            }
        }
    }
}

/// Runs `target` as `plan` says.
///
/// # Errors
/// What failed. An input that does not end ends the process, after it was saved.
pub fn run(target: &Target, plan: &Plan) -> Result<Passed, Box<Failed>> {
    let watch = Watch::new(target, plan);
    let mut random = Random::new(plan.seed);
    let mut kept = corpus(target, &plan.corpus);
    let (mut reached, mut inputs) = (Trace::default(), 0);
    let mut one = |bytes: &[u8]| {
        watch.begin(bytes);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let mut trace = Trace::default();
            (target.run)(bytes, &mut trace);
            trace
        }));
        watch.end();
        inputs += 1;
        match outcome {
            Ok(trace) => Ok(reached.absorb(trace)),
            Err(_) => Err(Box::new(failed(target, plan, inputs - 1, bytes))),
        }
    };
    for bytes in &kept {
        one(bytes)?;
    }
    let until = Instant::now() + plan.time;
    while Instant::now() < until {
        let parent = &kept[random.below(kept.len())];
        let other = &kept[random.below(kept.len())];
        let bytes = mutate(parent, other, target.longest, &mut random);
        if one(&bytes)? {
            keep(&mut kept, bytes, &mut random);
        }
    }
    Ok(Passed { inputs, kept, reached: reached.len() })
}

fn keep(kept: &mut Vec<Vec<u8>>, bytes: Vec<u8>, random: &mut Random) {
    if kept.len() < MOST_KEPT {
        kept.push(bytes);
    } else {
        let place = random.below(kept.len());
        kept[place] = bytes;
    }
}

/// The inputs of `target` in `folder`, in the order of their names; at least one, if an empty one.
#[must_use]
pub fn corpus(target: &Target, folder: &Path) -> Vec<Vec<u8>> {
    let entries = fs::read_dir(folder.join(target.name)).into_iter().flatten().flatten();
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    let inputs = paths.iter().filter_map(|path| fs::read(path).ok());
    std::iter::once(Vec::new()).chain(inputs).collect()
}

/// Makes the input smaller while it still fails, and saves it.
fn failed(target: &Target, plan: &Plan, number: u64, bytes: &[u8]) -> Failed {
    let hook = std::panic::take_hook();
    // said once; a shrinking input fails thousands of times
    std::panic::set_hook(Box::new(|_| {}));
    let small = shrink(target, bytes);
    std::panic::set_hook(hook);
    let saved = save(target, &plan.failures, &small);
    Failed { target: target.name, seed: plan.seed, number, saved }
}

fn fails(target: &Target, bytes: &[u8]) -> bool {
    catch_unwind(|| (target.run)(bytes, &mut Trace::default())).is_err()
}

/// Cuts pieces out, large ones first, as long as it fails.
fn shrink(target: &Target, bytes: &[u8]) -> Vec<u8> {
    let mut small = bytes.to_vec();
    let mut piece = small.len().next_power_of_two();
    let (mut tries, until) = (0, Instant::now() + LONGEST);
    while piece > 0 && tries < SHRINK_TRIES && Instant::now() < until {
        let mut at = 0;
        while at < small.len() && tries < SHRINK_TRIES {
            let mut less = small.clone();
            drop(less.drain(at..(at + piece).min(small.len())));
            tries += 1;
            if fails(target, &less) {
                small = less;
            } else {
                at += piece;
            }
        }
        piece /= 2;
    }
    small
}

/// Writes an input into the folder of its target, under a name made of its bytes.
///
/// # Errors
/// What the file system says.
pub fn save(target: &Target, folder: &Path, bytes: &[u8]) -> io::Result<PathBuf> {
    let folder = folder.join(target.name);
    fs::create_dir_all(&folder)?;
    // the same input has the same name
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
    });
    let path = folder.join(format!("{hash:016x}"));
    fs::write(&path, bytes)?;
    Ok(path)
}

/// Looks at the input that runs, from another thread, and ends the process if it does not end.
#[derive(Debug)]
struct Watch {
    running: Arc<Mutex<Running>>,
}

#[derive(Debug, Default)]
struct Running {
    number: u64,
    since: Option<Instant>,
    bytes: Vec<u8>,
}

/// Nothing can be half-changed by a panic in here.
fn lock(running: &Mutex<Running>) -> std::sync::MutexGuard<'_, Running> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    fn new(target: &Target, plan: &Plan) -> Self {
        let running = Arc::new(Mutex::new(Running::default()));
        let (theirs, target, plan) = (Arc::downgrade(&running), *target, plan.clone());
        std::thread::spawn(move || {
            while let Some(running) = theirs.upgrade() {
                {
                    let running = lock(&running);
                    if running.since.is_some_and(|since| since.elapsed() > LONGEST) {
                        let saved = save(&target, &plan.failures, &running.bytes);
                        let (target, seed) = (target.name, plan.seed);
                        let failed = Failed { target, seed, number: running.number, saved };
                        eprintln!("it does not end: {failed}");
                        std::process::abort();
                    }
                }
                std::thread::sleep(LONGEST / 20);
            }
        });
        Self { running }
    }

    fn begin(&self, bytes: &[u8]) {
        let mut running = lock(&self.running);
        running.since = Some(Instant::now());
        running.bytes.clear();
        running.bytes.extend_from_slice(bytes);
    }

    fn end(&self) {
        let mut running = lock(&self.running);
        running.since = None;
        running.number += 1;
    }
}

//! The comparison: random tables, one change at a time, one access after each change.

use std::collections::BTreeMap;

use viommu_pgtable::PhysAddr;

use crate::error::{Error, Result};
use crate::random::Random;
use crate::subject::{Exception, Judgement, Marks, Probe, Subject, Words, judge};

/// Accesses to one table before it is replaced.
const PROBES_PER_TABLE: u64 = 24;
/// Accesses that are drawn anew because what they do could not be seen, in a row.
const MAX_REDRAWS: u32 = 64;
/// Disagreements that are kept in full; more of them are counted.
const MAX_SHOWN: usize = 10;

/// What came of comparing one subject.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The emulated IOMMU.
    pub emulated: &'static str,
    /// Its mode.
    pub mode: String,
    /// Accesses made.
    pub cases: u64,
    /// Accesses that went through on both sides: part of `agreements`.
    pub translated: u64,
    /// Accesses on which both sides say the same.
    pub agreements: u64,
    /// Accesses on which they differ as an exception predicts.
    pub exceptions: BTreeMap<&'static Exception, u64>,
    /// Accesses on which they differ otherwise.
    pub disagreements: u64,
    /// The first of those.
    pub shown: Vec<String>,
}

/// Compares `cases` accesses to random tables that `seed` names.
///
/// # Errors
/// If tables cannot be built or the emulator is gone.
pub fn compare<S: Subject>(subject: &mut S, cases: u64, seed: u64) -> Result<Outcome> {
    let (emulated, mode) = subject.title();
    let mut outcome = Outcome { emulated, mode, ..Outcome::default() };
    let mut random = Random::new(seed);
    while outcome.cases < cases {
        subject.rebuild(&mut random)?;
        for _ in 0..PROBES_PER_TABLE.min(cases - outcome.cases) {
            one(subject, &mut random, &mut outcome)?;
        }
    }
    Ok(outcome)
}

/// One change, one access, and the change taken back.
fn one<S: Subject>(subject: &mut S, random: &mut Random, outcome: &mut Outcome) -> Result<()> {
    let (probe, change) = draw(subject, random)?;
    if let Some(change) = change {
        subject.poke(change.at, change.new)?;
    }
    let Words { structures, entries } = subject.words(&probe);
    let words = structures.iter().chain(&entries);
    let before: Vec<_> = words.map(|at| (*at, subject.load(*at))).collect();
    let verdict = subject.expect(&probe);
    let observed = subject.observe(&probe, &verdict)?;
    let left = |marks: &Marks| {
        before.iter().all(|(at, old)| subject.load(*at) == *marks.get(at).unwrap_or(old))
    };
    outcome.cases += 1;
    match judge(subject, &probe, &verdict, &observed, left) {
        Judgement::Agree => {
            outcome.agreements += 1;
            outcome.translated += u64::from(verdict.end.is_ok());
        }
        Judgement::Excepted(exception) => {
            *outcome.exceptions.entry(exception).or_default() += 1;
        }
        Judgement::Disagree => {
            outcome.disagreements += 1;
            if outcome.shown.len() < MAX_SHOWN {
                let case = outcome.cases;
                outcome.shown.push(format!(
                    "case {case}: {probe:x?}\n  changed: {change:x?}\n  ours: {verdict:x?}\n  \
                     emulator: {observed:x?}\n  words: {before:x?}\n  then: {:x?}",
                    before.iter().map(|(at, _)| subject.load(*at)).collect::<Vec<_>>()
                ));
            }
        }
    }
    // flags that the walk set go back too, so that a case does not depend on those before it
    for (at, word) in before {
        subject.poke(at, word)?;
    }
    match change {
        Some(change) => subject.poke(change.at, change.old),
        None => Ok(()),
    }
}

/// One word of the tables, changed.
#[derive(Debug, Clone, Copy)]
struct Change {
    at: PhysAddr,
    old: u64,
    new: u64,
}

/// An access, and mostly a change to a word on its way, whose effect can be seen.
fn draw<S: Subject>(subject: &mut S, random: &mut Random) -> Result<(Probe, Option<Change>)> {
    for _ in 0..MAX_REDRAWS {
        let probe = subject.probe(random);
        if random.once_in(4) {
            if subject.can_observe(&probe, &subject.expect(&probe)) {
                return Ok((probe, None));
            }
            continue;
        }
        let Words { structures, entries } = subject.words(&probe);
        let words = if random.once_in(4) { structures } else { entries };
        let Some(at) = random.pick(&words) else { continue };
        let old = subject.load(at);
        let new = spoil(old, random);
        subject.poke(at, new)?;
        let seen = subject.can_observe(&probe, &subject.expect(&probe));
        subject.poke(at, old)?;
        if seen {
            return Ok((probe, Some(Change { at, old, new })));
        }
    }
    Err(Error::Build { reason: String::from("no access to this table can be observed") })
}

/// A word that differs from `old` in a way that manuals have something to say about.
fn spoil(old: u64, random: &mut Random) -> u64 {
    const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
    match random.below(16) {
        0 => 0,
        1 => old ^ (random.bits() & !ADDRESS),
        2 => (random.bits() & !ADDRESS) | (old & ADDRESS),
        3 => u64::MAX,
        4..=7 => old ^ (1 << random.below(12)),
        8 => old ^ (1 << (52 + random.below(12))),
        9 => old ^ (1 << (12 + random.below(18))),
        _ => old ^ (1 << random.below(64)),
    }
}

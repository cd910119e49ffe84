//! What is compared: one emulated IOMMU in one mode, and the words for what comes of an access.

use std::collections::BTreeMap;
use std::fmt;

use viommu_pgtable::{Iova, PhysAddr};

use crate::dma::Effect;
use crate::error::Result;
use crate::random::Random;

/// One access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Probe {
    /// Its address, a multiple of 4.
    pub iova: Iova,
    /// It writes; otherwise it reads.
    pub write: bool,
    /// What a read should find.
    pub token: u32,
}

impl Probe {
    /// An access to `iova`: mostly a write, for reads take longer.
    #[must_use]
    pub fn new(iova: Iova, random: &mut Random) -> Self {
        // odd, and so never what the writer writes
        let token = u32::try_from(random.bits() >> 32).unwrap_or(0) | 1;
        Self { iova, write: !random.once_in(4), token }
    }
}

/// The words of tables that lead an access, where there is memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// Of the structures that lead to page tables.
    pub structures: Vec<PhysAddr>,
    /// Of page tables.
    pub entries: Vec<PhysAddr>,
}

/// Where an access goes, or the reason that a fault record gives for it going nowhere.
pub type End<R> = std::result::Result<PhysAddr, R>;

/// What our code says about an access, before anybody else is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict<R> {
    /// What must come of it, after the manual.
    pub end: End<R>,
    /// The words of tables that the walk leaves different: accessed and dirty flags.
    pub marks: Marks,
    /// Fault records are switched off for this access: only the bytes tell.
    pub silent: bool,
    /// What comes of it in an emulator that differs as an exception says.
    pub excepted: Option<Excepted<R>>,
}

/// Words of tables, changed.
pub type Marks = BTreeMap<PhysAddr, u64>;

/// What an exception predicts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Excepted<R> {
    /// Which one.
    pub exception: &'static Exception,
    /// What comes of the access.
    pub end: End<R>,
    /// The words that the walk leaves different.
    pub marks: Marks,
}

impl<R> Verdict<R> {
    /// Where the bytes may be found afterwards.
    #[must_use]
    pub fn targets(&self) -> Vec<PhysAddr> {
        let excepted = self.excepted.as_ref().map(|excepted| &excepted.end);
        let ends = [Some(&self.end), excepted].into_iter().flatten();
        let mut targets: Vec<_> = ends.filter_map(|end| end.as_ref().ok()).copied().collect();
        targets.dedup();
        targets
    }
}

/// What the emulated IOMMU did with an access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Observed<R> {
    /// What became of the bytes.
    pub effect: Effect,
    /// The fault that it recorded.
    pub fault: Option<R>,
}

/// Where an emulated IOMMU is known not to follow its manual, or does what the manual leaves open.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exception {
    /// A short name.
    pub name: &'static str,
    /// What the manual says, and where.
    pub manual: &'static str,
    /// What the emulator does.
    pub emulator: &'static str,
}

/// How the two sides compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// They say the same.
    Agree,
    /// They differ exactly as this exception predicts.
    Excepted(&'static Exception),
    /// They differ.
    Disagree,
}

/// An emulated IOMMU in one mode, with tables in its memory.
pub trait Subject {
    /// Why an access goes nowhere, as a fault record gives it.
    type Reason: Copy + PartialEq + fmt::Debug;
    /// A fault record.
    type Record: Copy + PartialEq + fmt::Debug;

    /// The emulated IOMMU, and the mode.
    fn title(&self) -> (&'static str, String);

    /// Replaces the tables by new random ones.
    ///
    /// # Errors
    /// If they cannot be built or the emulator is gone.
    fn rebuild(&mut self, random: &mut Random) -> Result<()>;

    /// A random access, mostly to what is mapped.
    fn probe(&mut self, random: &mut Random) -> Probe;

    /// The words of all tables that lead this access.
    fn words(&self, probe: &Probe) -> Words;

    /// The word at `at`; 0 where there is none.
    fn load(&self, at: PhysAddr) -> u64;

    /// Overwrites the word at `at`, behind the mapper's back.
    ///
    /// # Errors
    /// If there is no memory.
    fn poke(&self, at: PhysAddr, word: u64) -> Result<()>;

    /// What our code says about the access.
    fn expect(&self, probe: &Probe) -> Verdict<Self::Reason>;

    /// True if the emulator can be let do what our code says, and we can see what it did.
    fn can_observe(&self, probe: &Probe, verdict: &Verdict<Self::Reason>) -> bool;

    /// Lets the emulator do the access, with nothing cached.
    ///
    /// # Errors
    /// If the emulator is gone.
    fn observe(
        &mut self,
        probe: &Probe,
        verdict: &Verdict<Self::Reason>,
    ) -> Result<Observed<Self::Record>>;

    /// The record of this access that ends for this reason, if there is one.
    fn record(&self, probe: &Probe, reason: Self::Reason) -> Option<Self::Record>;
}

/// Compares what should have come of an access with what has. `left` tells whether the words of
/// tables are now as a walk with these marks leaves them.
pub fn judge<S: Subject + ?Sized>(
    subject: &S,
    probe: &Probe,
    verdict: &Verdict<S::Reason>,
    observed: &Observed<S::Record>,
    left: impl Fn(&Marks) -> bool,
) -> Judgement {
    let same = |end: &End<S::Reason>| match end {
        Ok(at) => observed.effect == Effect::Moved(*at) && observed.fault.is_none(),
        Err(reason) => {
            let told = observed.fault == subject.record(probe, *reason);
            let untold = verdict.silent && observed.fault.is_none();
            // a reader cannot tell that it was refused
            let refused = observed.effect == Effect::Nothing
                || (observed.effect == Effect::Elsewhere && !probe.write);
            refused && (told || untold)
        }
    };
    if same(&verdict.end) && left(&verdict.marks) {
        return Judgement::Agree;
    }
    match &verdict.excepted {
        Some(excepted) if same(&excepted.end) && left(&excepted.marks) => {
            Judgement::Excepted(excepted.exception)
        }
        _ => Judgement::Disagree,
    }
}

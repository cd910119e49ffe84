//! The comparison itself, with a real QEMU: where Debian's packages are unpacked is said by
//! `VIOMMU_QEMU_ROOT`. Without it these tests say that they were skipped.

use std::io::{Write, stderr};
use std::path::Path;

use viommu_oracle::emulator::Program;
use viommu_oracle::random::Random;
use viommu_oracle::runner::{Outcome, compare};
use viommu_oracle::smmu::{self, Smmu};
use viommu_oracle::subject::{Observed, Probe, Subject, Verdict, Words};
use viommu_oracle::vtd::{self, Replacement, Vtd};
use viommu_oracle::{Result, report};
use viommu_pgtable::PhysAddr;

/// Few: this shows that it works. The program compares thousands.
const CASES: u64 = 240;

fn program(name: &str) -> Option<Program> {
    let root = std::env::var_os("VIOMMU_QEMU_ROOT");
    if root.is_none() {
        // not through the macro, whose output a passing test swallows
        let _ = writeln!(stderr(), "skipped: VIOMMU_QEMU_ROOT names no unpacked QEMU");
    }
    root.map(|root| Program::unpacked(Path::new(&root), name))
}

fn assert_agrees(outcome: &Outcome) {
    assert_eq!(
        outcome.disagreements,
        0,
        "{}",
        report::disagreements(std::slice::from_ref(outcome))
    );
    assert_eq!(outcome.cases, CASES);
    assert!(outcome.translated > 0 && outcome.agreements > outcome.translated);
}

#[test]
fn intel_iommu_agrees_in_every_mode() {
    let Some(program) = program("qemu-system-x86_64") else { return };
    for mode in vtd::Mode::ALL {
        assert_agrees(&compare(&mut Vtd::start(&program, mode).unwrap(), CASES, 2).unwrap());
    }
}

#[test]
fn a_write_after_a_replacement_goes_astray_only_as_is_known_of_scalable_mode() {
    let Some(program) = program("qemu-system-x86_64") else { return };
    for mode in vtd::Mode::ALL {
        let found = Vtd::start(&program, mode).unwrap().replace().unwrap();
        println!("{mode}: {found:?}");
        let known = mode.is_scalable() && found == Replacement::PRESENCE_OVERLOOKED;
        assert!(known || found == Replacement::MANUAL, "{mode}: {found:?}");
    }
}

#[test]
fn smmuv3_agrees_in_every_mode() {
    let Some(program) = program("qemu-system-aarch64") else { return };
    for mode in smmu::Mode::ALL {
        assert_agrees(&compare(&mut Smmu::start(&program, mode).unwrap(), CASES, 2).unwrap());
    }
}

#[test]
fn a_seed_makes_the_same_cases_again() {
    let Some(program) = program("qemu-system-x86_64") else { return };
    let run = || {
        let mut unit = Vtd::start(&program, vtd::Mode::Legacy(48)).unwrap();
        let outcome = compare(&mut unit, CASES, 3).unwrap();
        (outcome.translated, outcome.agreements, outcome.exceptions)
    };
    assert_eq!(run(), run());
}

/// A subject whose walker of ours is wrong: by a page, or about who may write.
struct Wrong<S> {
    right: S,
    how: fn(&mut Verdict<u8>),
}

impl<S: Subject<Reason = u8>> Subject for Wrong<S> {
    type Reason = u8;
    type Record = S::Record;

    fn title(&self) -> (&'static str, String) {
        self.right.title()
    }

    fn rebuild(&mut self, random: &mut Random) -> Result<()> {
        self.right.rebuild(random)
    }

    fn probe(&mut self, random: &mut Random) -> Probe {
        self.right.probe(random)
    }

    fn words(&self, probe: &Probe) -> Words {
        self.right.words(probe)
    }

    fn load(&self, at: PhysAddr) -> u64 {
        self.right.load(at)
    }

    fn poke(&self, at: PhysAddr, word: u64) -> Result<()> {
        self.right.poke(at, word)
    }

    fn expect(&self, probe: &Probe) -> Verdict<u8> {
        let mut verdict = self.right.expect(probe);
        (self.how)(&mut verdict);
        verdict
    }

    fn can_observe(&self, probe: &Probe, verdict: &Verdict<u8>) -> bool {
        self.right.can_observe(probe, verdict)
    }

    fn observe(&mut self, probe: &Probe, verdict: &Verdict<u8>) -> Result<Observed<S::Record>> {
        self.right.observe(probe, verdict)
    }

    fn record(&self, probe: &Probe, reason: u8) -> Option<S::Record> {
        self.right.record(probe, reason)
    }
}

#[test]
fn a_walker_that_is_wrong_is_found_out() {
    let Some(program) = program("qemu-system-x86_64") else { return };
    let a_page_off = |verdict: &mut Verdict<u8>| {
        verdict.end = verdict.end.map(|at| PhysAddr::new(at.raw() ^ 0x1000));
    };
    let another_reason = |verdict: &mut Verdict<u8>| {
        verdict.end = verdict.end.map_err(|reason| reason ^ 1);
        verdict.excepted = None;
    };
    let refusing = |verdict: &mut Verdict<u8>| {
        verdict.end = verdict.end.and(Err(5));
    };
    for how in [a_page_off, another_reason, refusing] {
        let right = Vtd::start(&program, vtd::Mode::Legacy(48)).unwrap();
        let outcome = compare(&mut Wrong { right, how }, CASES, 4).unwrap();
        assert!(outcome.disagreements > CASES / 8, "{outcome:?}");
        assert!(!outcome.shown.is_empty());
    }
}

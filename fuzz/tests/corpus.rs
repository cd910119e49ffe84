//! The corpus, and the runner itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use viommu_fuzz::mutate::{Random, mutate};
use viommu_fuzz::runner::{Plan, corpus, run};
use viommu_fuzz::{TARGETS, Target, Trace};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_input_of_the_corpus_passes() {
    for target in TARGETS {
        for bytes in corpus(target, &folder()) {
            (target.run)(&bytes, &mut Trace::default());
        }
    }
}

#[test]
fn every_folder_of_the_corpus_is_of_a_target_and_every_target_has_one() {
    let entries = fs::read_dir(folder()).unwrap();
    let mut folders: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    folders.sort();
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    names.sort();
    assert_eq!(folders, names);
}

/// Fails if three bytes have the right values: the first two are worth keeping on the way.
const LOCK: Target = Target {
    name: "lock",
    claim: "there is no key",
    longest: 16,
    run: |bytes, trace| {
        let turned = bytes.iter().zip(b"key").take_while(|(byte, key)| byte == key).count();
        trace.reached(turned);
        assert!(turned < 3, "open");
    },
};

fn plan(failures: &Path, seed: u64) -> Plan {
    let time = Duration::from_secs(60);
    Plan { seed, time, corpus: folder(), failures: failures.to_owned() }
}

#[test]
fn a_failure_behind_two_steps_is_found_made_small_saved_and_found_again() {
    let failures = tempfile::tempdir().unwrap();
    let failed = run(&LOCK, &plan(failures.path(), 3)).unwrap_err();
    let saved = failed.saved.as_ref().unwrap();
    assert_eq!(fs::read(saved).unwrap(), b"key");
    let said = failed.to_string();
    assert!(said.contains(&format!("lock --input {}", saved.display())), "{said}");
    let again = run(&LOCK, &plan(failures.path(), 3)).unwrap_err();
    assert_eq!((again.number, again.seed), (failed.number, 3));
}

#[test]
fn inputs_follow_from_the_seed_and_stay_below_the_longest() {
    let inputs = |seed| -> Vec<Vec<u8>> {
        let mut random = Random::new(seed);
        (0..1000).map(|_| mutate(b"some bytes to begin with", b"more", 20, &mut random)).collect()
    };
    assert_eq!(inputs(1), inputs(1));
    assert_ne!(inputs(1), inputs(2));
    assert!(inputs(1).iter().all(|bytes| bytes.len() <= 20));
}

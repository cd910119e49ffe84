//! Counting what passed, failed and was left out.

use std::fmt;
use std::iter::Sum;

/// How many tests, lanes without tests of their own, and scenarios went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// They did what they should.
    pub(crate) passed: u64,
    /// They did not.
    pub(crate) failed: u64,
    /// They could not run here, and said why.
    pub(crate) skipped: u64,
}

/// What a test writes to standard error when it cannot run here.
const SKIPPED: &str = "skipped: ";

impl Tally {
    /// One thing that went well or not.
    pub(crate) const fn one(passed: bool) -> Self {
        if passed {
            Self { passed: 1, failed: 0, skipped: 0 }
        } else {
            Self { passed: 0, failed: 1, skipped: 0 }
        }
    }

    /// Adds up the lines `test result: ...` in the output of `cargo test`. A test that says `skipped: ` and
    /// why, past the harness's capture, is one that cargo counts as passed and that did not run.
    pub(crate) fn of_cargo_test(output: &str) -> Self {
        let results = output.lines().filter_map(|line| line.trim().strip_prefix("test result: "));
        let Self { passed, failed, skipped } = results.map(line).sum();
        let said = u64::try_from(output.matches(SKIPPED).count()).unwrap_or(u64::MAX).min(passed);
        Self { passed: passed - said, failed, skipped: skipped + said }
    }
}

/// `ok. 5 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.01s`
fn line(result: &str) -> Tally {
    let count = |what: &str| {
        let words = result.split([';', '.']).find_map(|part| part.trim().strip_suffix(what));
        words.and_then(|number| number.trim().parse().ok()).unwrap_or(0)
    };
    Tally { passed: count("passed"), failed: count("failed"), skipped: count("ignored") }
}

impl Sum for Tally {
    fn sum<I: Iterator<Item = Self>>(tallies: I) -> Self {
        tallies.fold(Self::default(), |sum, tally| Self {
            passed: sum.passed + tally.passed,
            failed: sum.failed + tally.failed,
            skipped: sum.skipped + tally.skipped,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_of_all_binaries_add_up() {
        let output = "\
running 3 tests
test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 4 filtered out; finished in 0.01s
test result: FAILED. 10 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s
";
        let tally = Tally::of_cargo_test(output);
        assert_eq!(tally, Tally { passed: 12, failed: 3, skipped: 1 });
        assert_eq!(tally.to_string(), "12 passed, 3 failed, 1 skipped");
    }

    #[test]
    fn a_test_that_says_it_was_skipped_did_not_pass() {
        let output = "\
skipped: no iasl here
test a ... ok
test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.01s
";
        let tally = Tally::of_cargo_test(output);
        assert_eq!(tally, Tally { passed: 1, failed: 0, skipped: 1 });
    }

    #[test]
    fn output_without_results_counts_nothing() {
        assert_eq!(Tally::of_cargo_test("error: could not compile"), Tally::default());
    }
}

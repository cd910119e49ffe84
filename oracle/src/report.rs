//! What is printed.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::runner::Outcome;
use crate::subject::Exception;

/// The table of all outcomes: emulated IOMMU, mode, cases, agreements (how many of them
/// translated), listed exceptions, and what must be none.
#[must_use]
pub fn table(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    let width = outcomes.iter().map(|outcome| outcome.mode.len()).max().unwrap_or(0);
    // writing to a string does not fail
    let _ = writeln!(
        text,
        "{:<12} {:<width$} {:>7} {:>7} {:>11} {:>8} {:>9}",
        "IOMMU", "mode", "cases", "agree", "(translated", "excepted", "disagree"
    );
    for outcome in outcomes {
        let excepted: u64 = outcome.exceptions.values().sum();
        let _ = writeln!(
            text,
            "{:<12} {:<width$} {:>7} {:>7} {:>11} {:>8} {:>9}",
            outcome.emulated,
            outcome.mode,
            outcome.cases,
            outcome.agreements,
            format!("{})", outcome.translated),
            excepted,
            outcome.disagreements
        );
    }
    text
}

/// The exceptions that occurred, how often, and what the manual says.
#[must_use]
pub fn exceptions(outcomes: &[Outcome]) -> String {
    let mut counts: BTreeMap<&Exception, u64> = BTreeMap::new();
    for (exception, count) in outcomes.iter().flat_map(|outcome| &outcome.exceptions) {
        *counts.entry(exception).or_default() += count;
    }
    let mut text = String::new();
    for (Exception { name, manual, emulator }, count) in counts {
        let _ = writeln!(text, "{count:>7}  {name}\n         {manual}\n         QEMU {emulator}");
    }
    text
}

/// The disagreements that were kept.
#[must_use]
pub fn disagreements(outcomes: &[Outcome]) -> String {
    let mut text = String::new();
    for outcome in outcomes {
        for shown in &outcome.shown {
            let _ = writeln!(text, "{}, {}: {shown}", outcome.emulated, outcome.mode);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_is_a_line_and_every_exception_is_counted_over_all() {
        static ODD: Exception = Exception { name: "odd", manual: "1.2: even", emulator: "is odd" };
        let outcome = |mode: &str, excepted| Outcome {
            emulated: "intel-iommu",
            mode: mode.to_owned(),
            cases: 10,
            translated: 3,
            agreements: 8,
            exceptions: BTreeMap::from([(&ODD, excepted)]),
            disagreements: 0,
            shown: vec!["case 1".to_owned()],
        };
        let outcomes = [outcome("legacy", 2), outcome("scalable", 1)];
        let text = table(&outcomes);
        assert_eq!(text.lines().count(), 3);
        assert!(text.lines().any(|line| line.starts_with("intel-iommu  legacy ")), "{text}");
        let text = exceptions(&outcomes);
        assert_eq!(text, "      3  odd\n         1.2: even\n         QEMU is odd\n");
        assert_eq!(disagreements(&outcomes).lines().count(), 2);
    }
}

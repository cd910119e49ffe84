//! What the daemon counted, from the line that it writes when a front-end leaves and at its end.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// How the line begins, after the log's own prefix.
const MARK: &str = "counters: ";

/// The counters by name.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// Reads the last such line of a log.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn last_in(log: &str) -> Result<Self> {
        let line = log.lines().rev().find_map(|line| line.split_once(MARK));
        let (_, words) = line
            .ok_or_else(|| Error::Wrong("the daemon's log has no line of counters".to_owned()))?;
        let pair = |word: &str| {
            let (name, value) = word.split_once('=')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Ok(Self(words.split_whitespace().filter_map(pair).collect()))
    }

    /// How many such lines a log has.
    pub(crate) fn lines_in(log: &str) -> usize {
        log.matches(MARK).count()
    }

    /// A counter's value.
    ///
    /// # Errors
    /// The daemon counts no such thing.
    pub(crate) fn get(&self, name: &str) -> Result<u64> {
        let known = || self.0.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        self.0.get(name).copied().ok_or_else(|| Error::Unknown {
            kind: "counter",
            name: name.to_owned(),
            known: known(),
        })
    }

    /// `attach=2 map=7`: some of them, for people.
    ///
    /// # Errors
    /// The daemon counts no such thing.
    pub(crate) fn line(&self, names: &[&str]) -> Result<String> {
        let pair = |name: &&str| Ok(format!("{name}={}", self.get(name)?));
        Ok(names.iter().map(pair).collect::<Result<Vec<_>>>()?.join(" "))
    }

    /// Fails unless a counter is at least `least`.
    ///
    /// # Errors
    /// It is less, or unknown.
    pub(crate) fn at_least(&self, name: &str, least: u64) -> Result<()> {
        let value = self.get(name)?;
        if value >= least {
            return Ok(());
        }
        Err(Error::Wrong(format!("the daemon counted {name}={value}, expected {least} or more")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts_and_words_that_are_no_numbers_do_not() {
        let log = "x counters: map=1\n[INFO] counters: map=7 unmap=3 longest_drain=12us\nend\n";
        let counters = Counters::last_in(log).unwrap();
        assert_eq!((counters.get("map").unwrap(), counters.get("unmap").unwrap()), (7, 3));
        assert_eq!(counters.line(&["unmap", "map"]).unwrap(), "unmap=3 map=7");
        assert!(counters.get("longest_drain").is_err());
        assert!(counters.at_least("map", 7).is_ok() && counters.at_least("map", 8).is_err());
        assert!(Counters::last_in("nothing").is_err());
    }
}

//! The talk with a guest over its second serial line (`guest/init.sh` has the other end).

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

use super::process::Deadline;
use crate::error::{Error, Result};

/// One thing that a guest says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Said {
    /// A check, its outcome and what there is to say of it.
    Check { name: String, passed: bool, what: String },
    /// Something that the host compares.
    Fact { name: String, value: String },
    /// The guest waits for a line.
    Ready(String),
}

impl Said {
    /// Other lines are nothing: firmware and boot loaders may write to the line, too.
    fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end_matches('\r');
        let (kind, rest) = line.split_once(' ')?;
        match kind {
            "ready" => Some(Self::Ready(rest.to_owned())),
            "fact" => {
                let (name, value) = rest.split_once(": ")?;
                Some(Self::Fact { name: name.to_owned(), value: value.to_owned() })
            }
            "check" => {
                let (name, outcome) = rest.split_once(": ")?;
                let (verdict, what) = outcome.split_once(' ').unwrap_or((outcome, ""));
                let passed = verdict == "ok";
                Some(Self::Check { name: name.to_owned(), passed, what: what.trim().to_owned() })
            }
            _ => None,
        }
    }
}

/// The host's end of the line, and all that was said on it.
#[derive(Debug)]
pub(crate) struct Talk<W> {
    lines: Receiver<String>,
    answers: W,
    said: Vec<Said>,
}

impl<W: Write> Talk<W> {
    /// Listens on `from` and keeps a copy of all lines in `log`.
    ///
    /// # Errors
    /// The log cannot be made.
    pub(crate) fn new(from: impl Read + Send + 'static, answers: W, log: &Path) -> Result<Self> {
        let copy = File::create(log).map_err(Error::file("make", log))?;
        let (sender, lines) = channel();
        std::thread::spawn(move || listen(from, &sender, copy));
        Ok(Self { lines, answers, said: Vec::new() })
    }

    /// Listens until the guest says `ready NAME`.
    ///
    /// # Errors
    /// A check failed, the guest ended or the time is over.
    pub(crate) fn until_ready(&mut self, name: &str, deadline: Deadline) -> Result<()> {
        let wanted = Said::Ready(name.to_owned());
        loop {
            let line = match self.lines.recv_timeout(deadline.left()) {
                Ok(line) => line,
                Err(error) => {
                    self.failures()?;
                    return Err(silence(error, name, deadline));
                }
            };
            if let Some(said) = Said::parse(&line) {
                let found = said == wanted;
                self.said.push(said);
                if found {
                    return self.failures();
                }
            }
        }
    }

    /// Answers a guest that is ready; it goes on.
    ///
    /// # Errors
    /// The guest is gone.
    pub(crate) fn answer(&mut self, word: &str) -> Result<()> {
        writeln!(self.answers, "{word}")
            .and_then(|()| self.answers.flush())
            .map_err(|error| Error::Wrong(format!("cannot answer the guest: {error}")))
    }

    /// What a check that passed had to say.
    ///
    /// # Errors
    /// The check never came.
    pub(crate) fn check(&self, wanted: &str) -> Result<&str> {
        let found = self.said.iter().rev().find_map(|said| match said {
            Said::Check { name, passed: true, what } if name == wanted => Some(what.as_str()),
            _ => None,
        });
        found.ok_or_else(|| Error::Wrong(format!("the guest never said that {wanted} is ok")))
    }

    /// All values of a fact, in the order in which they came.
    pub(crate) fn facts(&self, wanted: &str) -> Vec<&str> {
        let mut found = Vec::new();
        for said in &self.said {
            if let Said::Fact { name, value } = said
                && name == wanted
            {
                found.push(value.as_str());
            }
        }
        found
    }

    /// The last value of a fact.
    ///
    /// # Errors
    /// It never came.
    pub(crate) fn fact(&self, wanted: &str) -> Result<&str> {
        let last = self.facts(wanted).last().copied();
        last.ok_or_else(|| Error::Wrong(format!("the guest never told {wanted}")))
    }

    fn failures(&self) -> Result<()> {
        let failed: Vec<String> = self
            .said
            .iter()
            .filter_map(|said| match said {
                Said::Check { name, passed: false, what } => Some(format!("{name}: {what}")),
                _ => None,
            })
            .collect();
        if failed.is_empty() {
            return Ok(());
        }
        Err(Error::Wrong(format!("failed in the guest: {}", failed.join("; "))))
    }
}

/// Why there is no further line.
fn silence(error: RecvTimeoutError, name: &str, deadline: Deadline) -> Error {
    match error {
        RecvTimeoutError::Timeout => deadline.missed(format!("\"ready {name}\" of the guest")),
        RecvTimeoutError::Disconnected => {
            Error::Wrong(format!("the guest ended before \"ready {name}\""))
        }
    }
}

/// Passes lines on until the other end is gone or nobody wants them any more.
fn listen(from: impl Read, lines: &Sender<String>, mut copy: File) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    while let Ok(1..) = from.read_until(b'\n', &mut line) {
        // the copy is for people; a full disk must not end the run
        let _ = copy.write_all(&line);
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        if lines.send(text).is_err() {
            return;
        }
        line.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn talk(text: &'static str, name: &str) -> Talk<Vec<u8>> {
        let log = std::env::temp_dir().join(format!("talk-{name}-{}", std::process::id()));
        let talk = Talk::new(text.as_bytes(), Vec::new(), &log).unwrap();
        std::fs::remove_file(log).unwrap();
        talk
    }

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(5))
    }

    #[test]
    fn checks_and_facts_are_found_by_name_and_noise_is_passed_over() {
        let text = "\x1b[2J\ncheck sum: ok 12 34\r\nfact g: a\nfact g: b\nnoise here\nready end\n";
        let mut talk = talk(text, "found");
        talk.until_ready("end", soon()).unwrap();
        assert_eq!(talk.check("sum").unwrap(), "12 34");
        assert_eq!(talk.facts("g"), ["a", "b"]);
        assert_eq!(talk.fact("g").unwrap(), "b");
        assert!(talk.check("other").is_err());
    }

    #[test]
    fn a_failed_check_fails_the_scenario_though_the_guest_went_on() {
        let mut talk = talk("check sum: FAIL bad byte\ncheck b: ok\nready end\n", "failed");
        let error = talk.until_ready("end", soon()).unwrap_err().to_string();
        assert_eq!(error, "failed in the guest: sum: bad byte");
    }

    #[test]
    fn a_guest_that_ends_early_is_an_error_and_not_a_wait() {
        let error =
            talk("check a: ok\n", "early").until_ready("end", soon()).unwrap_err().to_string();
        assert_eq!(error, "the guest ended before \"ready end\"");
    }

    #[test]
    fn ready_is_answered_with_one_line() {
        let mut talk = talk("ready kill\n", "ready");
        talk.until_ready("kill", soon()).unwrap();
        talk.answer("go").unwrap();
        assert_eq!(talk.answers, b"go\n");
    }
}

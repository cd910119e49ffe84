//! QEMU's monitor, as far as a start needs it (QEMU, "QMP specification").

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest line that is read, bytes; what is asked for here is answered with far less.
const LINE_BYTES: u64 = 1 << 20;

/// What went wrong with the monitor.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// It is gone, or silent.
    #[error("its monitor: {0}")]
    Io(#[from] io::Error),
    /// It has ended; its own message says why.
    #[error("it has ended before it was ready")]
    Ended,
    /// The guest may have run, with all of its memory in its devices' reach.
    #[error("the guest is in state `{0}` instead of `prelaunch`: launch has to start it")]
    State(String),
    /// It refused a command.
    #[error("{command}: {why}")]
    Refused {
        /// The command.
        command: &'static str,
        /// What it said.
        why: String,
    },
}

/// A monitor's connection.
#[derive(Debug)]
pub(super) struct Qmp {
    from: BufReader<UnixStream>,
    to: UnixStream,
    /// How long an answer is waited for.
    within: Duration,
}

impl Qmp {
    /// Over a connected socket; no answer is waited for longer than `within`.
    pub(super) fn new(socket: UnixStream, within: Duration) -> Result<Self, QmpError> {
        socket.set_read_timeout(Some(within))?;
        Ok(Self { from: BufReader::new(socket.try_clone()?), to: socket, within })
    }

    /// Fails unless the guest has not run yet (QEMU, "RunState"): whoever else has a monitor, or a state
    /// that comes in from elsewhere, may have let it.
    pub(super) fn expect_prelaunch(&mut self) -> Result<(), QmpError> {
        let status = self.execute("query-status")?;
        match status.get("status").and_then(Value::as_str) {
            Some("prelaunch") => Ok(()),
            other => Err(QmpError::State(other.unwrap_or_default().to_owned())),
        }
    }

    /// Executes a command without arguments; its result. Events and the greeting are passed over.
    pub(super) fn execute(&mut self, command: &'static str) -> Result<Value, QmpError> {
        self.to.write_all(format!("{}\n", json!({ "execute": command })).as_bytes())?;
        let until = Instant::now() + self.within;
        while Instant::now() < until {
            let mut line = String::new();
            if (&mut self.from).take(LINE_BYTES).read_line(&mut line)? == 0 {
                return Err(QmpError::Ended);
            }
            // What is no answer does not concern us, whatever it is.
            let Ok(mut answer) = serde_json::from_str::<Value>(&line) else { continue };
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(QmpError::Refused { command, why: error.to_string() });
            }
        }
        Err(io::Error::from(io::ErrorKind::TimedOut).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(lines: &str) -> Result<Value, QmpError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(lines.as_bytes()).unwrap();
        let mut qmp = Qmp::new(ours, Duration::from_secs(10)).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        qmp.execute("cont")
    }

    #[test]
    fn the_answer_is_found_behind_greeting_and_events() {
        let lines = "{\"QMP\": {}}\n{\"event\": \"RESUME\"}\n{\"return\": {\"a\": 1}}\n";
        assert_eq!(answered(lines).unwrap(), json!({ "a": 1 }));
    }

    #[test]
    fn a_refusal_says_what_the_monitor_said() {
        let refused = answered("{\"error\": {\"desc\": \"no\"}}\n").unwrap_err();
        assert_eq!(refused.to_string(), "cont: {\"desc\":\"no\"}");
    }

    #[test]
    fn a_guest_that_may_have_run_is_told_of() {
        let state = |name: &str| {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let line = json!({ "return": { "running": false, "status": name } });
            theirs.write_all(format!("{line}\n").as_bytes()).unwrap();
            Qmp::new(ours, Duration::from_secs(10)).unwrap().expect_prelaunch()
        };
        assert!(state("prelaunch").is_ok());
        for other in ["running", "paused", "inmigrate"] {
            assert!(matches!(state(other), Err(QmpError::State(told)) if told == other), "{other}");
        }
    }

    #[test]
    fn words_without_end_are_no_answer() {
        const TOO_LATE: [io::ErrorKind; 2] = [io::ErrorKind::TimedOut, io::ErrorKind::WouldBlock];
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let talker = std::thread::spawn(move || while theirs.write_all(b"{}\n").is_ok() {});
        let mut qmp = Qmp::new(ours, Duration::from_millis(1)).unwrap();
        let told = qmp.execute("cont").unwrap_err();
        assert!(matches!(&told, QmpError::Io(why) if TOO_LATE.contains(&why.kind())), "{told}");
        drop(qmp);
        talker.join().unwrap();
    }

    #[test]
    fn an_end_before_the_answer_is_no_answer() {
        assert!(matches!(answered("{\"event\": \"STOP\"}\n"), Err(QmpError::Ended)));
    }
}

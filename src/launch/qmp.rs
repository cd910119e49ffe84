//! QEMU's monitor, as far as a start needs it (QEMU, "QMP specification").

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

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
}

impl Qmp {
    /// Over a connected socket; no answer is waited for longer than `within`.
    pub(super) fn new(socket: UnixStream, within: Duration) -> Result<Self, QmpError> {
        socket.set_read_timeout(Some(within))?;
        Ok(Self { from: BufReader::new(socket.try_clone()?), to: socket })
    }

    /// Executes a command without arguments. Events and the greeting are passed over.
    pub(super) fn execute(&mut self, command: &'static str) -> Result<(), QmpError> {
        self.to.write_all(format!("{}\n", json!({ "execute": command })).as_bytes())?;
        loop {
            let mut line = String::new();
            if (&mut self.from).take(LINE_BYTES).read_line(&mut line)? == 0 {
                return Err(QmpError::Ended);
            }
            // What is no answer does not concern us, whatever it is.
            let Ok(answer) = serde_json::from_str::<Value>(&line) else { continue };
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                return Err(QmpError::Refused { command, why: error.to_string() });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(lines: &str) -> Result<(), QmpError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(lines.as_bytes()).unwrap();
        let mut qmp = Qmp::new(ours, Duration::from_secs(10)).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        qmp.execute("cont")
    }

    #[test]
    fn the_answer_is_found_behind_greeting_and_events() {
        let lines = "{\"QMP\": {}}\n{\"event\": \"RESUME\"}\n{\"return\": {}}\n";
        assert!(answered(lines).is_ok());
    }

    #[test]
    fn a_refusal_says_what_the_monitor_said() {
        let refused = answered("{\"error\": {\"desc\": \"no\"}}\n").unwrap_err();
        assert_eq!(refused.to_string(), "cont: {\"desc\":\"no\"}");
    }

    #[test]
    fn an_end_before_the_answer_is_no_answer() {
        assert!(matches!(answered("{\"event\": \"STOP\"}\n"), Err(QmpError::Ended)));
    }
}

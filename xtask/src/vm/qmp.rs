//! QEMU's monitor: one command, one answer, and what QEMU tells unasked.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::Deadline;
use crate::error::{Error, Result};

/// How long QEMU may take for an answer; it answers at once unless it hangs.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// A connection to the monitor of one QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    answers: BufReader<UnixStream>,
    commands: UnixStream,
}

impl Qmp {
    /// Connects and agrees on no capabilities.
    ///
    /// # Errors
    /// There is no QEMU at that socket.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).map_err(Error::file("connect to", path))?;
        let set_up = || {
            stream.set_read_timeout(Some(ANSWER_WITHIN))?;
            stream.try_clone()
        };
        let commands = set_up().map_err(Error::file("use", path))?;
        let mut qmp = Self { answers: BufReader::new(stream), commands };
        qmp.line()?;
        qmp.execute("qmp_capabilities")?;
        Ok(qmp)
    }

    /// Runs a command that has no arguments; its result.
    ///
    /// # Errors
    /// QEMU refuses it, does not answer in time or is gone.
    pub(crate) fn execute(&mut self, command: &str) -> Result<Value> {
        self.run(command, &json!({ "execute": command }))
    }

    /// Runs a command with arguments; its result.
    ///
    /// # Errors
    /// As [`Qmp::execute`].
    pub(crate) fn execute_with(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.run(command, &json!({ "execute": command, "arguments": arguments }))
    }

    /// Waits for an event of this name whose data is what is `wanted`, in what QEMU says from now on.
    ///
    /// # Errors
    /// It does not come in time, or QEMU is gone.
    pub(crate) fn until_event(
        &mut self,
        name: &str,
        wanted: impl Fn(&Value) -> bool,
        deadline: Deadline,
    ) -> Result<()> {
        loop {
            // no timeout at all is what a timeout of zero would be
            let left = Some(deadline.left()).filter(|left| !left.is_zero());
            let left = left.ok_or_else(|| deadline.missed(name))?;
            let bounded = self.commands.set_read_timeout(Some(left));
            bounded.map_err(|error| lost(name, &error))?;
            let said = self.line()?;
            let is_it = said.get("event").is_some_and(|event| event == name);
            if is_it && said.get("data").is_some_and(&wanted) {
                let usual = self.commands.set_read_timeout(Some(ANSWER_WITHIN));
                return usual.map_err(|error| lost(name, &error));
            }
        }
    }

    fn run(&mut self, command: &str, message: &Value) -> Result<Value> {
        writeln!(self.commands, "{message}").map_err(|error| lost(command, &error))?;
        loop {
            let mut answer = self.line()?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(Error::Wrong(format!("QEMU refuses {command}: {error}")));
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| lost("an answer", &error))?;
        serde_json::from_str(&line)
            .map_err(|error| Error::Answer { program: "QEMU", what: format!("{error}: {line}") })
    }
}

fn lost(what: &str, error: &std::io::Error) -> Error {
    Error::Wrong(format!("QEMU's monitor is lost at {what}: {error}"))
}

//! Running other programs to their end.

use std::process::{Command, Output, Stdio};

use crate::error::{Error, Result};

/// How much of a failed program's output goes into the error.
const TAIL_LINES: usize = 15;

/// Runs to the end with nothing on standard input; the output is returned.
///
/// # Errors
/// The program cannot be started, or ends with another status than 0.
pub(crate) fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| Error::Spawn { program: name(command), source })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    Err(Error::Failed {
        program: name(command),
        status: output.status,
        output: tail(&String::from_utf8_lossy(&said), TAIL_LINES),
    })
}

/// As [`output`], its standard output as text.
pub(crate) fn text(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?.stdout).into_owned())
}

/// Whether a program of that name is on the PATH.
pub(crate) fn exists(program: &str) -> bool {
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()))
}

/// The last `lines` lines, the first of them on a line of its own when there are several.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.trim_end().lines().collect();
    let kept = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
    match kept {
        [one] => (*one).to_owned(),
        many => format!("\n    {}", many.join("\n    ")),
    }
}

/// The program's file name, for messages.
pub(crate) fn name(command: &Command) -> String {
    std::path::Path::new(command.get_program())
        .file_name()
        .map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

//! What is shown while things run: a line for each step, with its time and size.

use std::fmt::Display;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// A step under way: its line stands on the screen, what it took is added when it is done.
#[derive(Debug)]
pub(crate) struct Step {
    what: String,
    began: Instant,
    live: bool,
}

impl Step {
    /// Announces a step. On a terminal its line is rewritten in place, elsewhere one line is
    /// printed at the start and one at the end.
    pub(crate) fn begin(what: impl Display) -> Self {
        let step = Self {
            what: what.to_string(),
            began: Instant::now(),
            live: std::io::stdout().is_terminal(),
        };
        if step.live {
            step.rewrite("...");
        } else {
            println!("  {} ...", step.what);
        }
        step
    }

    /// Shows how far the step is, on a terminal only.
    pub(crate) fn progress(&self, how_far: impl Display) {
        if self.live {
            self.rewrite(&format!("{how_far}, {}", seconds(self.began.elapsed())));
        }
    }

    /// Ends the step's line with its time and whatever else is worth knowing.
    pub(crate) fn done(self, result: impl Display) {
        let took = seconds(self.began.elapsed());
        if self.live {
            self.rewrite(&format!("{result} ({took})"));
            println!();
        } else {
            println!("  {}: {result} ({took})", self.what);
        }
    }

    fn rewrite(&self, end: &str) {
        print!("\r\x1b[K  {}: {end}", self.what);
        // a screen that cannot be written to is no reason to stop the work
        let _ = std::io::stdout().flush();
    }
}

/// A plain line under the steps.
pub(crate) fn note(what: impl Display) {
    println!("  {what}");
}

/// `12.3 s`
pub(crate) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// `54 MB`, decimal as package sizes are told.
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{} MB", bytes.div_ceil(1_000_000))
}

/// Prints rows under a header, each column as wide as its widest cell.
pub(crate) fn table<const N: usize>(header: [&str; N], rows: &[[String; N]]) {
    let width = |column: usize, name: &str| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(name.len())
    };
    let widths: Vec<usize> =
        header.iter().enumerate().map(|(column, name)| width(column, name)).collect();
    line(&widths, header.iter().map(|name| (*name).to_owned()));
    for row in rows {
        line(&widths, row.iter().cloned());
    }
}

fn line(widths: &[usize], cells: impl Iterator<Item = String>) {
    let padded: Vec<String> =
        widths.iter().zip(cells).map(|(&width, cell)| format!("{cell:width$}")).collect();
    println!("  {}", padded.join("  ").trim_end());
}

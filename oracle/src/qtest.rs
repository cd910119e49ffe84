//! The qtest protocol: reads and writes of a machine that runs no guest.
//!
//! One command a line, one answer a line, in order: `OK`, `OK 0x...` or `FAIL ...`. Commands of a
//! [`Batch`] go out together, so a whole DMA costs one round trip.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};

use crate::error::{Error, Result};

/// Bytes of commands that may wait for their answers: what a pipe holds, with room to spare. More
/// would let both sides wait for each other.
const MAX_BATCH_BYTES: usize = 32 << 10;

/// Commands that are sent together.
#[derive(Debug, Default)]
pub struct Batch {
    text: String,
    commands: usize,
}

impl Batch {
    /// No commands.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores 8 bits at a physical address.
    pub fn write8(&mut self, at: u64, value: u8) -> &mut Self {
        self.command(format_args!("writeb {at:#x} {value:#x}"))
    }

    /// Stores 16 bits at a physical address.
    pub fn write16(&mut self, at: u64, value: u16) -> &mut Self {
        self.command(format_args!("writew {at:#x} {value:#x}"))
    }

    /// Stores 32 bits at a physical address.
    pub fn write32(&mut self, at: u64, value: u32) -> &mut Self {
        self.command(format_args!("writel {at:#x} {value:#x}"))
    }

    /// Stores 64 bits at a physical address.
    pub fn write64(&mut self, at: u64, value: u64) -> &mut Self {
        self.command(format_args!("writeq {at:#x} {value:#x}"))
    }

    /// Loads 32 bits from a physical address.
    pub fn read32(&mut self, at: u64) -> &mut Self {
        self.command(format_args!("readl {at:#x}"))
    }

    /// Loads 64 bits from a physical address.
    pub fn read64(&mut self, at: u64) -> &mut Self {
        self.command(format_args!("readq {at:#x}"))
    }

    /// Writes 32 bits to an I/O port.
    pub fn out32(&mut self, port: u16, value: u32) -> &mut Self {
        self.command(format_args!("outl {port:#x} {value:#x}"))
    }

    /// Reads 32 bits from an I/O port.
    pub fn in32(&mut self, port: u16) -> &mut Self {
        self.command(format_args!("inl {port:#x}"))
    }

    /// Lets `ns` nanoseconds of the machine's time pass; timers that are due run.
    pub fn step_clock(&mut self, ns: u64) -> &mut Self {
        self.command(format_args!("clock_step {ns}"))
    }

    fn command(&mut self, command: std::fmt::Arguments<'_>) -> &mut Self {
        // writing to a string does not fail
        let _ = writeln!(self.text, "{command}");
        self.commands += 1;
        self
    }
}

/// The client's side of a qtest connection.
pub struct Qtest<R, W> {
    answers: BufReader<R>,
    commands: W,
}

impl<R, W> std::fmt::Debug for Qtest<R, W> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qtest").finish_non_exhaustive()
    }
}

impl<R: Read, W: Write> Qtest<R, W> {
    /// A client over the two directions of a connection.
    pub fn new(answers: R, commands: W) -> Self {
        Self { answers: BufReader::new(answers), commands }
    }

    /// Sends the commands and waits for all answers: one number a command, 0 where it has no
    /// result.
    ///
    /// # Errors
    /// If the batch is too long, the connection breaks, or a command fails.
    pub fn run(&mut self, batch: &Batch) -> Result<Vec<u64>> {
        if batch.text.len() > MAX_BATCH_BYTES {
            let answer = format!("nothing: {} bytes are too many commands", batch.text.len());
            return Err(Error::Answer { answer });
        }
        self.commands.write_all(batch.text.as_bytes()).map_err(Error::io("send a command"))?;
        self.commands.flush().map_err(Error::io("send a command"))?;
        (0..batch.commands).map(|_| self.answer()).collect()
    }

    fn answer(&mut self) -> Result<u64> {
        let mut line = String::new();
        let bytes = self.answers.read_line(&mut line).map_err(Error::io("read an answer"))?;
        if bytes == 0 {
            return Err(Error::Gone { said: String::new() });
        }
        parse(line.trim_end()).ok_or(Error::Answer { answer: line })
    }
}

fn parse(line: &str) -> Option<u64> {
    let value = line.strip_prefix("OK")?.trim_start();
    match value.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).ok(),
        None if value.is_empty() => Some(0),
        // clock_step answers in decimal, ports in hexadecimal without a prefix of their own
        None => value.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(answers: &str, batch: &Batch) -> (Result<Vec<u64>>, String) {
        let mut sent = Vec::new();
        let result = Qtest::new(answers.as_bytes(), &mut sent).run(batch);
        (result, String::from_utf8(sent).unwrap())
    }

    #[test]
    fn a_batch_is_one_line_a_command_and_one_number_an_answer() {
        let mut batch = Batch::new();
        batch.write32(0x10, 1).read64(0xfed9_0000).step_clock(100).in32(0xcfc);
        let (answers, sent) = run("OK\nOK 0xfff0\nOK 100\nOK 0x29c08086\n", &batch);
        assert_eq!(answers.unwrap(), [0, 0xfff0, 100, 0x29c0_8086]);
        assert_eq!(sent, "writel 0x10 0x1\nreadq 0xfed90000\nclock_step 100\ninl 0xcfc\n");
    }

    #[test]
    fn a_refusal_and_a_closed_connection_are_errors() {
        let mut batch = Batch::new();
        batch.read32(0);
        assert!(matches!(run("FAIL Unknown command\n", &batch).0, Err(Error::Answer { .. })));
        assert!(matches!(run("", &batch).0, Err(Error::Gone { .. })));
    }

    #[test]
    fn a_batch_that_could_block_both_sides_is_refused_unsent() {
        let mut batch = Batch::new();
        for _ in 0..MAX_BATCH_BYTES {
            batch.read32(0);
        }
        let (answers, sent) = run("", &batch);
        assert!(answers.is_err());
        assert_eq!(sent, "");
    }
}

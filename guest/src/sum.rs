//! A checksum that an emulated processor computes at memory speed.
//!
//! The guests run under emulation, where a cryptographic hash takes a minute for what is read in
//! seconds. This one takes four words a step in independent lanes. Each step is a bijection of its
//! lane, so a single wrong word always shows. It protects against errors, not against forgers.

use std::fmt;
use std::io::{self, Read};

use crate::PIECE_BYTES;

/// Bytes that one step takes.
const STEP_BYTES: usize = 32;

/// An odd multiplier with well-spread bits (the golden ratio, as in SplitMix64).
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// The checksum of a stream. Shown as 16 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sum(u64);

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Reads to the end; the checksum and the number of bytes.
///
/// # Errors
/// Reading fails.
pub fn of(mut from: impl Read, buffer: &mut [u8]) -> io::Result<(Sum, u64)> {
    let mut lanes = [1_u64, 2, 3, 4];
    let mut total: u64 = 0;
    loop {
        let filled = fill_buffer(&mut from, buffer)?;
        let (bytes, _) = buffer.split_at(filled.min(buffer.len()));
        step_all(&mut lanes, bytes);
        total += filled as u64;
        if filled < buffer.len() {
            return Ok((finish(lanes, total), total));
        }
    }
}

/// As [`of`], with a buffer of its own.
///
/// # Errors
/// Reading fails.
pub fn of_stream(from: impl Read) -> io::Result<(Sum, u64)> {
    of(from, &mut vec![0; PIECE_BYTES])
}

fn fill_buffer(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// A last step that is not full is filled up with zeroes; the length in the result tells it from
/// real ones.
fn step_all(lanes: &mut [u64; 4], bytes: &[u8]) {
    let mut steps = bytes.chunks_exact(STEP_BYTES);
    for step in &mut steps {
        take(lanes, step);
    }
    if !steps.remainder().is_empty() {
        let mut last = [0; STEP_BYTES];
        for (place, byte) in last.iter_mut().zip(steps.remainder()) {
            *place = *byte;
        }
        take(lanes, &last);
    }
}

fn take(lanes: &mut [u64; 4], step: &[u8]) {
    for (lane, bytes) in lanes.iter_mut().zip(step.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(bytes);
        *lane = (*lane ^ u64::from_le_bytes(word)).rotate_left(23).wrapping_mul(MULTIPLIER);
    }
}

fn finish(lanes: [u64; 4], total: u64) -> Sum {
    let join = |sum: u64, lane: u64| (sum ^ lane).rotate_left(31).wrapping_mul(MULTIPLIER);
    Sum(lanes.into_iter().fold(total, join))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_single_flipped_bit_shows() {
        let bytes = [0x5a; 96];
        let (good, total) = of_stream(bytes.as_slice()).unwrap();
        assert_eq!(total, 96);
        for bit in 0..96 * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(of_stream(flipped.as_slice()).unwrap().0, good, "bit {bit}");
        }
    }

    #[test]
    fn a_swap_and_a_shorter_stream_show() {
        let (ab, _) = of_stream([[1; 32], [2; 32]].concat().as_slice()).unwrap();
        let (ba, _) = of_stream([[2; 32], [1; 32]].concat().as_slice()).unwrap();
        assert_ne!(ab, ba);
        assert_ne!(of_stream([0; 64].as_slice()).unwrap(), of_stream([0; 63].as_slice()).unwrap());
    }

    #[test]
    fn the_buffer_does_not_matter() {
        let bytes: Vec<u8> = (0..=255).cycle().take(1000).collect();
        let small = of(bytes.as_slice(), &mut [0; 64]).unwrap();
        assert_eq!(small, of_stream(bytes.as_slice()).unwrap());
    }
}

//! Fuzz targets: what the project reads of guests, device processes and tables that are not its own.
//!
//! A [`Target`] is a plain function of bytes that panics if a promise is broken. The binary of this crate
//! runs targets on the stable toolchain; `fuzz/guided` hands the same functions to cargo-fuzz.
//!
//! ```text
//! cargo xtask fuzz                               every target, some seconds each
//! cargo xtask fuzz walk --seconds 600 --seed 7   one, for longer, another sequence
//! cargo xtask fuzz walk --input FILE             one input again
//! ```
//!
//! # What it guarantees
//!
//! - The inputs of a run follow from its seed alone, not from the clock: what was found is found again.
//! - An input that fails, or does not end within [`runner::LONGEST`], is saved, and the message says where
//!   and how to run it again. One that fails is made smaller before.
//! - Inputs that lead to something new stay, and others are made of them: targets tell their [`Trace`] what
//!   they came to, which is what guides the runner where a compiler would count branches.
//!
//! # What it leaves out
//!
//! Coverage by branches: `fuzz/guided` has it. Timing between processes: `cargo xtask stress`.
#![expect(clippy::unwrap_used, clippy::indexing_slicing, reason = "a target fails by panicking")]

mod input;
pub mod mutate;
pub mod runner;
mod targets;
mod trace;

pub use input::Input;
pub use trace::Trace;

/// Something to be fuzzed.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name, and that of its folder under `corpus/`.
    pub name: &'static str,
    /// What it shows, in a line.
    pub claim: &'static str,
    /// No input needs more bytes.
    pub longest: usize,
    /// Panics if the input shows a promise broken.
    pub run: fn(&[u8], &mut Trace),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    targets::requests::TARGET,
    targets::state_machine::TARGET,
    targets::entries::TARGET,
    targets::walk::TARGET,
    targets::lookup::TARGET,
    targets::guest_tables::TARGET,
    targets::device::TARGET,
];

/// The target called `name`.
#[must_use]
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

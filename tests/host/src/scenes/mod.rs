//! The scenarios, by the names that `cargo xtask host` has for them.

mod basic;
mod launch;
pub(crate) mod load;
mod memlock;
mod memory;
mod mixed;
mod mmio;
mod pairs;
mod plain;
mod restart;
mod two;
mod unplug;

use std::io;

use load::Replacement;

/// Plays one.
///
/// # Errors
/// There is no such scenario, or it could not go on.
pub(crate) fn play(name: &str) -> io::Result<()> {
    match name {
        "plain" => plain::play(),
        "basic" => basic::play(Replacement::Clean),
        "basic-kept" => basic::play(Replacement::Kept),
        "mixed" => mixed::play(),
        "mmio" => mmio::play(),
        "mmio-type1" => mmio::play_type1(),
        "memory" => memory::play(),
        "memory-type1" => memory::play_type1(),
        "restart" => restart::play(),
        "given-fsts" => restart::play_width(),
        "memlock" => memlock::play(),
        "two-iommus" => two::play(),
        "unplug" => unplug::play(),
        "pairs" => pairs::play(),
        "launch" => launch::play(),
        other => Err(io::Error::other(format!("no scenario {other:?}"))),
    }
}

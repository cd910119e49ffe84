//! The scenarios, by the names that `cargo xtask host` has for them.

mod basic;
mod load;
mod plain;

use std::io;

use load::Replacement;

/// Plays one.
///
/// # Errors
/// There is no such scenario, or it could not go on.
pub(crate) fn play(name: &str) -> io::Result<()> {
    match name {
        "plain" => plain::play(),
        "basic" => basic::play(Replacement::Atomic),
        "type1" => basic::play(Replacement::Gap),
        other => Err(io::Error::other(format!("no scenario {other:?}"))),
    }
}

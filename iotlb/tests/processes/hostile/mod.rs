//! A device process with hostile intent: it can harm itself, and delay requests once.
//!
//! In each test another endpoint's honest device looks on.

pub(crate) mod device;
pub(crate) mod reconnects;
pub(crate) mod tests;

//! The daemon as the VMM and the device processes see it: the real binary over its real sockets.
//!
//! `support` plays the others: a VMM with guest memory and a driver of its own (no code shared with the
//! device under test), and device processes by `viommu-iotlb`. Each test has a daemon to itself and a
//! watchdog: one that hangs is killed, and its test fails with the path of the log.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "tests: whatever goes wrong ends the test"
)]

mod aux;
mod command_line;
mod config_space;
mod conformance;
mod devices;
mod events;
mod hostile;
mod hostile_devices;
mod life;
mod memory;
mod negotiation;
mod requests;
mod rude;
mod sandbox;
mod sequences;
mod support;

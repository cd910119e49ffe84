//! The targets, one file each.

pub(crate) mod device;
pub(crate) mod entries;
mod formats;
mod guest_model;
pub(crate) mod guest_tables;
pub(crate) mod lookup;
mod memory;
mod raw_device;
pub(crate) mod requests;
pub(crate) mod state_machine;
pub(crate) mod walk;
mod world;

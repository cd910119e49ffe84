//! The targets, one file each.

pub(crate) mod entries;
mod formats;
pub(crate) mod guest_tables;
pub(crate) mod lookup;
mod memory;
pub(crate) mod requests;
pub(crate) mod walk;
mod world;

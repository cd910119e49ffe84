//! A hub and its devices, on threads of one process.
#![expect(clippy::unwrap_used, reason = "tests")]

#[path = "../support/mod.rs"]
mod support;

mod bound;
mod faults;
mod iova_memory;
mod lifecycle;
mod other_languages;
mod sections;
mod smmu;
mod translation;

//! The guest's IOMMU as a library: what the binary `vhost-user-iommu` is made of.
//!
//! A request goes through four steps with typed values between them: [`protocol`] decodes it, [`iommu`]
//! decides it, a [`viommu_backend::HostIommu`] acts, and [`device`] gives the reply back. Above them
//! [`daemon`] waits for what is to do next, and [`config`] says what was asked for.
//!
//! # What it guarantees
//!
//! A request is answered when it has taken effect everywhere, and a refused one has taken effect
//! nowhere. Nothing that a guest sends makes the daemon panic, hang or grow beyond a named limit.
//!
//! # What it leaves out
//!
//! Where and how addresses are translated: that is `viommu-backend`'s, and in device processes
//! `viommu-iotlb`'s.

pub mod cli;
pub mod config;
pub mod daemon;
pub mod device;
pub mod host;
pub mod iommu;
pub mod launch;
pub mod protocol;
pub mod sandbox;
pub mod viot;

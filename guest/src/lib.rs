//! What runs inside the test guests, and what both sides of a guest must agree on.
//!
//! The programs in `src/bin` are linked statically and packed into the guest's initramfs beside
//! `init.sh` and the scripts in `scenarios`. The library half is used on both sides: a disk image is
//! filled outside with a [`pattern`] and looked at inside, and its [`sum`] is computed on either side;
//! and the [`sequences`] of auxiliary domains are run by a guest's program as well as by tests that play
//! the guest.
//!
//! Nothing here is part of the IOMMU; it only shows from within a guest what the IOMMU does.

pub mod frames;
pub mod pattern;
pub mod sequences;
pub mod sum;

/// Bytes are moved in pieces of this size: large enough that a request's cost does not count,
/// small enough that many are in flight over an image.
pub const PIECE_BYTES: usize = 1 << 20;

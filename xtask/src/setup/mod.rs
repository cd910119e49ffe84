//! What the guests need and a fresh machine lacks: a QEMU, kernels, a busybox, ACPI's compiler.
//!
//! All of it comes out of Debian's packages. They are asked for with apt under a configuration
//! of our own and unpacked into a cache, so nothing is installed and no root is needed.

pub(crate) mod apt;
pub(crate) mod build;
pub(crate) mod bundle;
pub(crate) mod cache;
pub(crate) mod emulator;
pub(crate) mod guest_kernel;
pub(crate) mod iasl;
pub(crate) mod linux;
pub(crate) mod tree;

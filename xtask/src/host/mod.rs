//! The host suite: guests ("L1") in which our daemon drives the host's IOMMU through the host's kernel.
//!
//! The IOMMU is one that QEMU emulates, so neither hardware nor KVM is needed; the kernel over it is
//! Linux, unmodified. What is played inside is `tests/host`, a static program beside the daemon's.

mod board;
mod inner;
mod run;
mod scenarios;
mod twice;
mod unplug;

pub(crate) use run::{Report, count, list, run};

use std::time::Duration;

use board::Iommu;

/// One boot and what it is to show.
#[derive(Debug, Clone, Copy)]
struct Scenario {
    /// Its name.
    name: &'static str,
    /// What it shows, in a few words.
    about: &'static str,
    /// The kernel that it boots.
    kernel: Kernel,
    /// The IOMMU that the kernel finds.
    iommu: Iommu,
    /// Whether there is one function more, which the machine takes away when the guest is ready for it.
    unplugs: bool,
    /// Whether a guest is to run inside: what that takes is shared with it.
    inner: bool,
    /// What is played inside, by the name that `tests/host` has for it.
    play: &'static str,
    /// The checks that have to be there, besides that none fails. The words of the last one are shown beside
    /// the verdict.
    checks: &'static [&'static str],
}

/// How long a boot may take; a guest that hangs is silent. Several times what a loaded machine took.
const LIMIT: Duration = Duration::from_secs(120);

/// The same for one with a guest inside, which an emulator in an emulator runs.
const INNER_LIMIT: Duration = Duration::from_secs(600);

/// Which kernel a guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernel {
    /// Debian's source with our configuration: it has iommufd.
    Built,
    /// Debian's own: it has type1 containers only.
    Stock,
}

impl Kernel {
    const fn name(self) -> &'static str {
        match self {
            Self::Built => "built",
            Self::Stock => "stock",
        }
    }
}

//! What MAP and UNMAP cost: requests of a driver to the real daemon, over the real socket.
//!
//! `cargo bench --bench requests` prints tables in Markdown, those of `docs/performance.md`. This process
//! plays the VMM and its guest's driver; the daemon is a process of its own. `--quick` makes fewer
//! rounds over fewer mappings, `--live N` all of them over N mappings. `--qemu-root PATH`, where Debian's
//! packages are unpacked, or `--qemu PROGRAM` measures QEMU's own virtio-iommu beside ours.
//!
//! # What is measured
//!
//! The time from the publication of a batch of requests to its last answer, divided by the requests: *gross*.
//! The requests lie in guest memory before the clock starts, as Linux lays them out: an indirect table for
//! each, its two parts next to each other. Beside it the *empty round trip*: the same for one request of a
//! type that does not exist, which is waking, looking, and answering. *Net* is gross without the round trip's
//! share. A daemon that sleeps is asleep before each batch. *Daemon* is the processor time that the daemon
//! used for each request, waking and sleeping included, as the kernel counts it.
//!
//! Mappings are single pages whose neighbours lead elsewhere, mapped and unmapped in random order. All
//! figures are medians of batches.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "a bench: whatever goes wrong ends it"
)]

mod costs;
mod cpu;
mod driver;
mod figures;
mod memory;
mod qemu;
mod readers;
#[expect(dead_code, reason = "the integration tests' VMM, of which a bench needs a part")]
#[path = "../../tests/it/support/mod.rs"]
mod support;
mod work;

use costs::Scope;

fn main() {
    readers::translate_if_told_to();
    let arguments: Vec<_> = std::env::args().collect();
    let scope = Scope::from_arguments(&arguments);
    costs::print(&scope);
    qemu::print_if_named(&scope, &arguments);
    readers::print(&scope);
    memory::print(&scope);
}

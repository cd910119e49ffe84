//! What the daemon's memory comes to.

use crate::costs::{Bench, Scope, start_daemon};
use crate::figures::{count, head, row};

/// Prints an idle daemon's memory, and what mappings add to it.
pub(crate) fn print(scope: &Scope) {
    let idle = start_daemon(false);
    let (resident, private) = (idle.rss_kib(), idle.private_kib());
    println!("\nResident memory of an idle daemon: {resident} KiB, {private} KiB of it private.");
    println!("What mappings of single pages add, their tables (shared memory) apart:");
    head(&["live", "private KiB", "bytes a mapping"], 0);
    for &live in &scope.live {
        let bench = Bench::start(scope.places[0], false, live);
        let added = bench.daemon().private_kib().saturating_sub(private);
        let each = (added << 10) as f64 / live as f64;
        row(&[count(live), added.to_string(), format!("{each:.0}")]);
    }
}

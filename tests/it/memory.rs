//! What the daemon's memory comes to.

use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::wire::{OK, READ, map};

/// An idle daemon's bound, KiB.
const IDLE_KIB: u64 = 8 << 10;

/// A mapping's bound, bytes, beside its table pages.
const BYTES_A_MAPPING: u64 = 100;

/// What else may come meanwhile: buffers that are used for the first time.
const SLACK_BYTES: u64 = 256 << 10;

const MAPPINGS: u64 = 8 << 10;
const BATCH: u16 = 64;

#[test]
fn an_idle_daemon_takes_less_than_eight_mebibytes() {
    let daemon = Daemon::start();
    assert!(daemon.rss_kib() < IDLE_KIB, "{} KiB", daemon.rss_kib());
}

#[test]
fn a_mapping_takes_less_than_a_hundred_bytes_beside_its_tables() {
    let daemon = Daemon::with(&["--log-level", "info"]);
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    let before = daemon.private_kib();
    // in an order that leaves gaps everywhere, as drivers do
    let pages: Vec<u64> = (0..MAPPINGS).map(|n| n * 4_099 % MAPPINGS).collect();
    for batch in pages.chunks(usize::from(BATCH)) {
        for (slot, page) in (0..).zip(batch) {
            let start = page << 12;
            guest.queue_request(slot, &map(1, start, start + 0xfff, 2 * start, READ), 4);
        }
        guest.requests.notify();
        for slot in 0..BATCH {
            guest.requests.wait_used();
            assert_eq!(guest.read_answer(slot, 4), [OK, 0, 0, 0]);
        }
    }
    let grown = (daemon.private_kib() - before) << 10;
    assert!(grown < MAPPINGS * BYTES_A_MAPPING + SLACK_BYTES, "{grown} bytes");
}

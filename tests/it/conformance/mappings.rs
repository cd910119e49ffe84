//! MAP: what is refused, and what a mapping allows (virtio 1.4, 5.13.6.5).

use super::{UNMAPPED, rights};
use crate::support::daemon::Daemon;
use crate::support::device::Dma;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::LINUX_FEATURES;
use crate::support::wire::{self, BYPASS, INVAL, MMIO, NOENT, OK, RANGE, READ, WRITE};

/// A guest whose endpoint is in domain 1, which is empty.
fn attached(daemon: &Daemon) -> (Guest, Dma) {
    let mut guest = Guest::start(daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    (guest, Dma::connect(daemon))
}

#[test]
fn m1_what_is_not_on_the_granule_is_not_mapped() {
    for (sizes, granule) in [("0x1000", 0x1000_u64), ("0x200000", 0x20_0000)] {
        let daemon = Daemon::with(&["--page-sizes", sizes]);
        let (mut guest, dma) = attached(&daemon);
        assert_eq!(guest.vmm.config().page_size_mask, granule);
        let half = granule / 2;
        assert_eq!(guest.map(1, half, granule - 1, 0, READ), RANGE, "the first address");
        assert_eq!(guest.map(1, 0, half - 1, 0, READ), RANGE, "the last address");
        assert_eq!(guest.map(1, 0, granule, 0, READ), RANGE, "one too long");
        assert_eq!(guest.map(1, 0, granule - 1, half, READ), RANGE, "the output");
        assert_eq!(rights(&dma, 0), [false; 2]);
        assert_eq!(guest.map(1, 0, granule - 1, granule, READ), OK);
        assert_eq!(rights(&dma, granule - 4), [true, false]);
    }
}

#[test]
fn m2_an_overlap_of_any_kind_is_refused_and_neighbours_are_not() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    assert_eq!(guest.map(1, 0x4000, 0x7fff, 0x1_4000, READ), OK);
    let overlaps =
        [(0x4000, 0x7fff), (0x5000, 0x5fff), (0x3000, 0x8fff), (0x3000, 0x4fff), (0x7000, 0x8fff)];
    for (first, last) in overlaps {
        assert_eq!(guest.map(1, first, last, 0x2_0000, READ), INVAL, "{first:#x}");
    }
    assert_eq!(dma.page(0x3000), UNMAPPED);
    assert_eq!(dma.page(0x5000), Ok(0x1_5000), "the mapping is as it was");
    assert_eq!(dma.page(0x8000), UNMAPPED);
    assert_eq!(guest.map(1, 0x3000, 0x3fff, 0, READ), OK);
    assert_eq!(guest.map(1, 0x8000, 0x8fff, 0, READ), OK);
}

#[test]
fn m3_any_unknown_flag_refuses_the_map() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    for bit in 2..32 {
        let flags = READ | 1 << bit;
        assert_eq!(guest.map(1, 0x1000, 0x1fff, 0, flags), INVAL, "flags {flags:#x}");
    }
    assert_eq!(dma.page(0x1000), UNMAPPED);
}

#[test]
fn m3_mmio_is_a_flag_to_a_driver_that_accepted_it() {
    let daemon = Daemon::start();
    let mut guest = Guest::with_features(&daemon, LINUX_FEATURES | 1 << 5);
    let dma = Dma::connect(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ | MMIO), OK);
    assert_eq!(dma.page(0x1000), Ok(0x5000));
    assert_eq!(guest.map(1, 0x2000, 0x2fff, 0, READ | MMIO | 1 << 3), INVAL);
}

#[test]
fn m4_m5_a_map_needs_a_domain_that_exists_and_translates() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    assert_eq!(guest.map(2, 0x1000, 0x1fff, 0x5000, READ), NOENT);
    assert_eq!(dma.page(0x1000), UNMAPPED);
    assert_eq!(guest.send(&wire::attach(2, ENDPOINT, BYPASS), 4).status(), OK);
    assert_eq!(guest.map(2, 0x1000, 0x1fff, 0x5000, READ), INVAL);
    assert_eq!(dma.page(0x1000), Ok(0x1000));
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), NOENT, "it ended");
}

#[test]
fn m6_no_device_writes_without_the_flag_or_reads_unless_the_tables_cannot_forbid_it() {
    for (arch, write_only) in [("vtd", [false, true]), ("smmuv3", [true, true])] {
        let daemon = Daemon::with(&["--arch", arch]);
        let (mut guest, dma) = attached(&daemon);
        let cases = [
            (0, [false, false]),
            (READ, [true, false]),
            (WRITE, write_only),
            (READ | WRITE, [true, true]),
        ];
        for (flags, expected) in cases {
            assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, flags), OK);
            assert_eq!(rights(&dma, 0x1000), expected, "{arch}, flags {flags}");
            assert_eq!(guest.unmap(1, 0x1000, 0x1fff), OK);
        }
    }
}

#[test]
fn m7_a_range_that_ends_before_or_where_it_starts_is_refused() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    assert_eq!(guest.map(1, 0x2000, 0x1fff, 0, READ), INVAL, "no byte");
    assert_eq!(guest.map(1, 0x2000, 0x0fff, 0, READ), INVAL);
    assert_eq!(guest.map(1, u64::MAX, 0, 0, READ), INVAL);
    assert_eq!(guest.map(1, 0x2000, 0x2000, 0, READ), RANGE, "one byte is no page");
    assert_eq!(dma.page(0x1000), UNMAPPED);
    assert_eq!(dma.page(0x2000), UNMAPPED);
}

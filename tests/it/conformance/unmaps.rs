//! UNMAP (virtio 1.4, 5.13.6.6).

use crate::support::daemon::Daemon;
use crate::support::device::Dma;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::wire::{self, BYPASS, INVAL, NOENT, OK, RANGE, READ, Status};

/// A guest whose endpoint is in domain 1, which is empty.
fn attached(daemon: &Daemon) -> (Guest, Dma) {
    let mut guest = Guest::start(daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    (guest, Dma::connect(daemon))
}

/// Pages `first..=last` as addresses.
fn pages((first, last): (u64, u64)) -> (u64, u64) {
    (first << 12, last << 12 | 0xfff)
}

/// The first 16 pages that the device can read.
fn readable(dma: &Dma) -> Vec<u64> {
    (0..16).filter(|page| dma.page(page << 12).is_ok()).collect()
}

#[test]
fn u1_any_reserved_byte_refuses_the_unmap() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    for at in 24..28 {
        let mut request = wire::unmap(1, 0x1000, 0x1fff);
        request[at] = 1;
        assert_eq!(guest.send(&request, 4).status(), INVAL, "byte {at}");
    }
    assert_eq!(dma.page(0x1000), Ok(0x5000));
}

#[test]
fn u2_u3_an_unmap_needs_a_domain_that_exists_and_translates() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
    assert_eq!(guest.unmap(2, 0x1000, 0x1fff), NOENT);
    assert_eq!(dma.page(0x1000), Ok(0x5000));
    assert_eq!(guest.send(&wire::attach(2, ENDPOINT, BYPASS), 4).status(), OK);
    assert_eq!(guest.unmap(2, 0x1000, 0x1fff), INVAL);
    assert_eq!(dma.page(0x1000), Ok(0x1000));
}

#[test]
fn u4_u5_the_examples_of_the_standard_hold() {
    type Case = (&'static [(u64, u64)], (u64, u64), Status, &'static [u64]);
    let all: &[u64] = &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9];
    let cases: [Case; 7] = [
        (&[], (0, 4), OK, &[]),
        (&[(0, 9)], (0, 9), OK, &[]),
        (&[(0, 4), (5, 9)], (0, 9), OK, &[]),
        (&[(0, 9)], (0, 4), RANGE, all),
        (&[(0, 4), (5, 9)], (0, 4), OK, &[5, 6, 7, 8, 9]),
        (&[(0, 4)], (0, 9), OK, &[]),
        (&[(0, 4), (10, 14)], (0, 14), OK, &[]),
    ];
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    for (mapped, unmapped, status, left) in cases {
        for (first, last) in mapped.iter().copied().map(pages) {
            assert_eq!(guest.map(1, first, last, first, READ), OK);
        }
        let (first, last) = pages(unmapped);
        assert_eq!(guest.unmap(1, first, last), status, "{mapped:?}, unmap {unmapped:?}");
        assert_eq!(readable(&dma), left, "{mapped:?}, unmap {unmapped:?}");
        assert_eq!(guest.unmap(1, 0, (1 << 48) - 1), OK);
    }
}

#[test]
fn u4_an_unmap_that_would_split_one_of_several_removes_none() {
    let daemon = Daemon::start();
    let (mut guest, dma) = attached(&daemon);
    for (first, last) in [(0, 1), (2, 5), (6, 7)].map(pages) {
        assert_eq!(guest.map(1, first, last, first, READ), OK);
    }
    for split in [(0, 3), (4, 7), (3, 4), (1, 7), (0, 6)] {
        let (first, last) = pages(split);
        assert_eq!(guest.unmap(1, first, last), RANGE, "{split:?}");
        assert_eq!(readable(&dma), [0, 1, 2, 3, 4, 5, 6, 7], "{split:?}");
    }
}

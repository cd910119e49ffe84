//! Configuration, and what is common to all requests (virtio 1.4, 5.13.4 to 5.13.6).

use std::process::Command;

use super::{NOBODY, rights};
use crate::support::daemon::{BINARY, Daemon};
use crate::support::device::Dma;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::wire::{self, INVAL, NOENT, OK, RANGE, READ, WRITE};

/// One request of each type, which succeed in this order.
fn one_of_each() -> [(Vec<u8>, u32); 5] {
    [
        (wire::attach(1, ENDPOINT, 0), 4),
        (wire::map(1, 0x1000, 0x1fff, 0, READ), 4),
        (wire::unmap(1, 0x1000, 0x1fff), 4),
        (wire::probe(ENDPOINT), 516),
        (wire::detach(1, ENDPOINT), 4),
    ]
}

#[test]
fn c1_a_device_with_no_page_size_is_not_made() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("vu");
    let output = Command::new(BINARY)
        .arg("--socket-path")
        .arg(&socket)
        .args(["--endpoint", "00:02.0", "--page-sizes", "0"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(!socket.exists());
}

#[test]
fn c4_bypass_reads_0_or_1_whatever_was_written() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let mut before = 1;
    for value in 0..=255_u8 {
        let accepted = guest.vmm.write_config(36, &[value]).is_ok();
        assert_eq!(accepted, value < 2, "{value}");
        let expected = if accepted { value } else { before };
        assert_eq!(guest.vmm.config().bypass, expected, "after a write of {value}");
        before = expected;
    }
}

#[test]
fn o1_o4_a_request_of_each_type_succeeds_with_a_tail_of_zeros() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    for (request, room) in one_of_each() {
        let answer = guest.send(&request, room);
        let tail = &answer.bytes[answer.bytes.len() - 4..];
        assert_eq!((answer.used, tail), (room, &[0; 4][..]), "type {}", request[0]);
    }
}

#[test]
fn o3_reserved_bytes_of_the_head_are_ignored_in_every_type() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    for (mut request, room) in one_of_each() {
        request[1..4].fill(0xff);
        assert_eq!(guest.send(&request, room).status(), OK, "type {}", request[0]);
    }
}

#[test]
fn o4_refusals_have_reserved_bytes_of_zero_too() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let refused = [
        (wire::attach(1, NOBODY, 0), NOENT),
        (wire::attach(1, ENDPOINT, u32::MAX), INVAL),
        (wire::detach(1, ENDPOINT), INVAL),
        (wire::map(1, 0, 0xfff, 0, READ), NOENT),
        (wire::unmap(1, 0, 0xfff), NOENT),
    ];
    for (request, status) in refused {
        assert_eq!(guest.send(&request, 4).bytes, [status, 0, 0, 0], "{request:x?}");
    }
}

#[test]
fn o5_an_endpoint_in_no_domain_reaches_nothing_while_bypass_is_0() {
    let daemon = Daemon::with(&["--boot-bypass", "off"]);
    let mut guest = Guest::start(&daemon);
    let dma = Dma::connect(&daemon);
    let everywhere = [0, 0x1000, 0xfee0_0000, 0xffff_ffff_f000];
    for iova in everywhere {
        assert_eq!(rights(&dma, iova), [false; 2], "{iova:#x}");
    }
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0x1000, READ | WRITE), OK);
    assert_eq!(rights(&dma, 0x1000), [true; 2]);
    assert_eq!(guest.detach(1, ENDPOINT), OK);
    for iova in everywhere {
        assert_eq!(rights(&dma, iova), [false; 2], "{iova:#x} after a detach");
    }
}

#[test]
fn o6_a_map_that_reaches_over_the_end_of_the_input_maps_nothing() {
    let daemon = Daemon::with(&["--input-bits", "39"]);
    let mut guest = Guest::start(&daemon);
    let dma = Dma::connect(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    let last = (1_u64 << 39) - 0x1000;
    assert_eq!(guest.map(1, last, last + 0x1fff, 0, READ), RANGE);
    assert_eq!(guest.map(1, 1 << 39, (1 << 39) + 0xfff, 0, READ), RANGE);
    assert_eq!(guest.map(1, 0, u64::MAX, 0, READ), RANGE);
    assert_eq!(rights(&dma, last), [false; 2]);
    assert_eq!(guest.map(1, last, last + 0xfff, 0, READ), OK, "nothing is in its way");
    assert_eq!(rights(&dma, last), [true, false]);
}

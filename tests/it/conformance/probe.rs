//! PROBE, reserved memory and fault reports (virtio 1.4, 5.13.6.7 to 5.13.6.9).

use vhost::VhostBackend;
use viommu_pgtable::Access;
use vmm_sys_util::eventfd::EventFd;

use super::{NOBODY, SECOND, UNMAPPED, pair};
use crate::support::daemon::Daemon;
use crate::support::device::Dma;
use crate::support::guest::{ENDPOINT, Guest, QUEUE_SIZE};
use crate::support::queue::Used;
use crate::support::vmm::REQUEST;
use crate::support::wait_until;
use crate::support::wire::{self, ADDRESS, Fault, INVAL, MAPPING, NOENT, OK, READ, WRITE};

/// Bytes of properties in the answer to a PROBE.
const PROBE_SIZE: u32 = 512;

#[test]
fn p1_reserved_bytes_do_not_change_the_answer() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let expected = guest.send(&wire::probe(ENDPOINT), PROBE_SIZE + 4);
    assert_eq!(expected.status(), OK);
    let mut request = wire::probe(ENDPOINT);
    request[8..72].fill(0xff);
    assert_eq!(guest.send(&request, PROBE_SIZE + 4), expected);
}

#[test]
fn p2_a_probe_of_an_unknown_endpoint_tells_nothing() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    for unknown in [0, ENDPOINT + 1, NOBODY, u32::MAX] {
        assert_eq!(guest.probe(unknown), (NOENT, vec![0; PROBE_SIZE as usize]), "{unknown:#x}");
    }
}

#[test]
fn p4_p5_p7_the_list_of_properties_can_be_walked_to_its_end() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let (status, properties) = guest.probe(ENDPOINT);
    assert_eq!(status, OK);
    let half = |at: usize| u16::from_le_bytes([properties[at], properties[at + 1]]);
    let (mut at, mut kinds) = (0, Vec::new());
    while half(at) != 0 {
        kinds.push(half(at));
        at += usize::from(half(at + 2)) + 4;
    }
    assert_eq!(kinds, [1], "RESV_MEM, its four reserved bits 0");
    assert!(properties[at..].iter().all(|byte| *byte == 0), "zeros behind the list");
}

#[test]
fn p6_one_byte_less_than_probe_size_is_too_little() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    for room in [4, 28, PROBE_SIZE + 3] {
        let answer = guest.send(&wire::probe(ENDPOINT), room);
        assert_eq!(answer.status(), INVAL, "{room} bytes");
        let properties = &answer.bytes[..room as usize - 4];
        assert!(properties.iter().all(|byte| *byte == 0), "{room} bytes: {properties:?}");
    }
    assert_eq!(guest.send(&wire::probe(ENDPOINT), PROBE_SIZE + 4).status(), OK);
}

#[test]
fn r1_no_mapping_touches_the_reserved_region() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let dma = Dma::connect(&daemon);
    let (start, end) = (0xfee0_0000_u64, 0xfeef_ffff);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    let touching = [
        (start, end),
        (start + 0x8000, start + 0x8fff),
        (start - 0x1000, start + 0xfff),
        (end - 0xfff, end + 0x1000),
        (0, 0xffff_ffff),
    ];
    for (first, last) in touching {
        assert_eq!(guest.map(1, first, last, 0, READ | WRITE), INVAL, "{first:#x}");
    }
    assert_eq!(guest.map(1, start - 0x1000, start - 1, 0x1000, READ), OK);
    assert_eq!(guest.map(1, end + 1, end + 0x1000, 0x2000, READ), OK);
    assert_eq!(dma.page(start - 0x1000), Ok(0x1000));
    assert_eq!(dma.page(start), UNMAPPED, "an access to it reaches no memory");
    assert_eq!(dma.page(end - 0xfff), UNMAPPED);
    assert_eq!(dma.page(end + 1), Ok(0x2000));
}

#[test]
fn e1_each_report_names_the_endpoint_whose_access_it_was() {
    let (_daemon, mut guest, [first, second]) = pair();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.attach(1, SECOND), OK);
    let told = |guest: &mut Guest, dma: &Dma, access| {
        guest.post_event_buffer(0, Fault::BYTES as u32);
        dma.access(0x1234, 4, access).unwrap_err();
        guest.wait_event()
    };
    let report = |endpoint, access| Fault {
        reason: MAPPING,
        flags: access | ADDRESS,
        endpoint,
        address: 0x1234,
    };
    assert_eq!(told(&mut guest, &second, Access::READ), report(SECOND, READ));
    assert_eq!(told(&mut guest, &first, Access::WRITE), report(ENDPOINT, WRITE));
}

#[test]
fn e3_two_buffers_that_would_hold_a_report_together_hold_none() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let dma = Dma::connect(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    for slot in 0..2 {
        guest.post_event_buffer(slot, 12);
    }
    guest.post_event_buffer(2, 24);
    dma.access(0x8000, 4, Access::READ).unwrap_err();
    for head in 0..2 {
        assert_eq!(guest.events.wait_used(), Used { head, bytes: 0 });
    }
    let whole =
        Fault { reason: MAPPING, flags: READ | ADDRESS, endpoint: ENDPOINT, address: 0x8000 };
    assert_eq!(guest.wait_event(), whole);
}

#[test]
fn e4_a_queue_that_cannot_be_served_is_told_by_its_error_descriptor() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let error = EventFd::new(libc::EFD_NONBLOCK).unwrap();
    guest.vmm.front_end.set_vring_err(REQUEST, &error).unwrap();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert!(error.read().is_err(), "nothing is wrong yet");
    guest.requests.store_available_index(1 + QUEUE_SIZE + 1);
    guest.requests.kick.write(1).unwrap();
    wait_until("the error descriptor", || error.read().is_ok());
}

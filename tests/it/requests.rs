//! Requests end to end: status, used length, and every byte of the answer.

use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, Guest, UNTOUCHED};
use crate::support::queue::Used;
use crate::support::vmm::LINUX_FEATURES;
use crate::support::wire::{self, BYPASS, INVAL, MMIO, NOENT, OK, RANGE, READ, WRITE};

/// No endpoint of any test.
const NOBODY: u32 = 0xdead;

#[test]
fn attach_answers_what_its_fields_deserve() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, NOBODY), NOENT);
    let mut reserved = wire::attach(1, ENDPOINT, 0);
    reserved[16] = 1;
    assert_eq!(guest.send(&reserved, 4).status(), INVAL);
    assert_eq!(guest.send(&wire::attach(1, ENDPOINT, 2), 4).status(), INVAL);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.attach(1, ENDPOINT), OK, "again");
    assert_eq!(guest.send(&wire::attach(1, ENDPOINT, BYPASS), 4).status(), INVAL, "not bypass");
    assert_eq!(guest.send(&wire::attach(2, ENDPOINT, BYPASS), 4).status(), OK, "elsewhere");
}

#[test]
fn a_domain_ends_with_its_last_endpoint_and_its_mappings_with_it() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK);
    assert_eq!(guest.attach(2, ENDPOINT), OK, "Linux sends no DETACH");
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0, READ), NOENT);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK, "the old mapping is not there");
}

#[test]
fn detach_answers_what_its_fields_deserve() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.detach(1, NOBODY), NOENT);
    assert_eq!(guest.detach(1, ENDPOINT), INVAL, "in no domain");
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.detach(2, ENDPOINT), INVAL, "in another domain");
    let mut reserved = wire::detach(1, ENDPOINT);
    reserved[12..].fill(0xff);
    assert_eq!(guest.send(&reserved, 4).status(), OK, "reserved bytes are ignored");
    assert_eq!(guest.unmap(1, 0, 0xfff), NOENT);
}

#[test]
fn map_answers_what_its_fields_deserve() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), NOENT);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0, 0xffe, 0, READ), RANGE);
    assert_eq!(guest.map(1, 0x800, 0xfff, 0, READ), RANGE);
    assert_eq!(guest.map(1, 0, 0xfff, 0x800, READ), RANGE);
    assert_eq!(guest.map(1, 0, 0xfff, 0, 8), INVAL, "unknown flag");
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ | MMIO), INVAL, "MMIO was not negotiated");
    assert_eq!(guest.map(1, 0x2000, 0x1fff, 0, READ), INVAL, "reversed");
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ | WRITE), OK);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), INVAL, "overlap");
    assert_eq!(guest.map(1, 0xfee0_0000, 0xfee0_0fff, 0, WRITE), INVAL, "reserved memory");
    assert_eq!(guest.map(1, 1 << 48, (1 << 48) + 0xfff, 0, READ), RANGE, "beyond the input");
    assert_eq!(guest.map(1, 0, u64::MAX, 0, READ), RANGE, "beyond the input, all of it");
}

#[test]
fn an_unmap_that_would_split_removes_nothing() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.unmap(1, 0, 0xfff), NOENT);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.unmap(1, 0, 0xffff), OK, "nothing there");
    assert_eq!(guest.map(1, 0, 0x9fff, 0, READ), OK);
    assert_eq!(guest.unmap(1, 0, 0x4fff), RANGE);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), INVAL, "still there");
    assert_eq!(guest.unmap(1, 0, 0xf_ffff), OK);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK, "gone");
}

#[test]
fn mapping_in_a_bypass_domain_is_refused() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.send(&wire::attach(0, ENDPOINT, BYPASS), 4).status(), OK);
    assert_eq!(guest.map(0, 0, 0xfff, 0, READ), INVAL);
    assert_eq!(guest.unmap(0, 0, 0xfff), INVAL);
}

#[test]
fn probe_tells_the_msi_window_and_zeros_behind_it() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let (status, properties) = guest.probe(ENDPOINT);
    assert_eq!(status, OK);
    let mut expected = vec![0; 512];
    expected[..8].copy_from_slice(&[1, 0, 20, 0, 1, 0, 0, 0]);
    expected[8..16].copy_from_slice(&0xfee0_0000_u64.to_le_bytes());
    expected[16..24].copy_from_slice(&0xfeef_ffff_u64.to_le_bytes());
    assert_eq!(properties, expected);
    assert_eq!(guest.probe(NOBODY), (NOENT, vec![0; 512]));
}

#[test]
fn a_probe_with_less_room_than_probe_size_is_refused_with_no_property() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let answer = guest.send(&wire::probe(ENDPOINT), 100);
    assert_eq!(answer.status(), INVAL);
    assert_eq!(answer.bytes[..96], [0; 96]);
}

#[test]
fn what_is_no_request_is_left_untouched() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let too_short = wire::attach(1, ENDPOINT, 0)[..19].to_vec();
    let mut unknown = wire::attach(1, ENDPOINT, 0);
    for kind in [0, 6, 0x40, 0xff] {
        unknown[0] = kind;
        let answer = guest.send(&unknown, 4);
        assert_eq!((answer.used, answer.bytes), (0, vec![UNTOUCHED; 4]), "type {kind}");
    }
    let answer = guest.send(&too_short, 4);
    assert_eq!((answer.used, answer.bytes), (0, vec![UNTOUCHED; 4]), "too short");
    let answer = guest.send(&wire::attach(1, ENDPOINT, 0), 3);
    assert_eq!((answer.used, answer.bytes), (0, vec![UNTOUCHED; 3]), "no room for a tail");
    let answer = guest.send(&wire::attach(1, ENDPOINT, 0), 0);
    assert_eq!(answer.used, 0, "no tail at all");
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), NOENT, "none of them took effect");
}

#[test]
fn requests_of_features_that_were_not_negotiated_are_left_untouched() {
    let daemon = Daemon::start();
    let mut guest = Guest::with_features(&daemon, LINUX_FEATURES & !(1 << 2 | 1 << 4));
    for request in [wire::map(1, 0, 0xfff, 0, READ), wire::unmap(1, 0, 0xfff)] {
        assert_eq!(guest.send(&request, 4).used, 0);
    }
    assert_eq!(guest.send(&wire::probe(ENDPOINT), 516).used, 0);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

#[test]
fn reserved_bytes_of_the_head_are_ignored() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    let mut request = wire::attach(1, ENDPOINT, 0);
    request[1..4].fill(0xff);
    assert_eq!(guest.send(&request, 4).status(), OK);
}

#[test]
fn a_batch_is_answered_in_order_and_whole() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    for slot in 0..100 {
        let iova = u64::from(slot) << 12;
        guest.queue_request(slot, &wire::map(1, iova, iova + 0xfff, 0, READ), 4);
    }
    guest.queue_request(100, &wire::unmap(1, 0, 0xf_ffff), 4);
    guest.queue_request(101, &wire::map(1, 0, 0xfff, 0, READ), 4);
    guest.requests.notify();
    for slot in 0..=101_u16 {
        assert_eq!(guest.requests.wait_used(), Used { head: u32::from(2 * slot), bytes: 4 });
        assert_eq!(guest.read_answer(slot, 4), [0; 4], "slot {slot}");
    }
}

#[test]
fn the_driver_is_asked_for_its_next_kick_each_time() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    for round in 1..=600_u16 {
        assert_eq!(guest.attach(1, ENDPOINT), OK);
        crate::support::wait_until("a kick is asked for", || {
            guest.requests.kick_wanted_at() == round
        });
    }
}

#[test]
fn while_it_polls_requests_are_served_without_a_kick() {
    let daemon = Daemon::with(&["--poll-us", "1000000"]);
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    for _ in 0..3 {
        guest.queue_request(0, &wire::attach(1, ENDPOINT, 0), 4);
        guest.requests.publish();
        assert_eq!(guest.requests.wait_used().bytes, 4);
        assert_eq!(guest.requests.kick_wanted_at(), 0, "no kick is asked for");
    }
    crate::support::wait_until("a kick is asked for at the end", || {
        guest.requests.kick_wanted_at() == 4
    });
}

#[test]
fn whatever_it_polls_by_itself_a_kick_is_asked_for_in_the_end() {
    let daemon = Daemon::with(&["--poll-us", "auto"]);
    let mut guest = Guest::start(&daemon);
    for round in 1..=300_u16 {
        assert_eq!(guest.attach(1, ENDPOINT), OK);
        if round % 100 == 0 {
            crate::support::wait_until("a kick is asked for", || {
                guest.requests.kick_wanted_at() == round
            });
        }
    }
}

#[test]
fn a_domain_lives_until_its_last_endpoint_leaves() {
    let daemon = Daemon::with(&["--endpoint", "00:03.0"]);
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.attach(1, 0x18), OK);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK);
    assert_eq!(guest.detach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), INVAL, "the mapping is still there");
    assert_eq!(guest.detach(1, 0x18), OK);
    assert_eq!(guest.unmap(1, 0, 0xfff), NOENT);
}

//! Guests that break every rule of virtqueues and requests. Nothing panics, hangs or grows; an honest
//! driver is served right after.

use vhost::VhostBackend;
use vm_memory::{Bytes, GuestAddress};

use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, Guest, READABLE_AT, UNTOUCHED, WRITABLE_AT};
use crate::support::queue::{Descriptor, INDIRECT, NEXT, Used, WRITE};
use crate::support::vmm::{LINUX_FEATURES, RAM_BYTES, Vmm};
use crate::support::wire::{self, OK, READ};

/// Where indirect tables are put.
const TABLE_AT: u64 = 0x20_0000;

/// A guest that is attached, with an ATTACH to another domain lying ready at `READABLE_AT`: a bad chain that
/// took effect would end domain 1.
fn guest(daemon: &Daemon) -> Guest {
    let mut guest = Guest::start(daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    let ram = &guest.vmm.memory.ram;
    ram.write_slice(&wire::attach(2, ENDPOINT, 0), GuestAddress(READABLE_AT)).unwrap();
    ram.write_slice(&[UNTOUCHED; 4], GuestAddress(WRITABLE_AT)).unwrap();
    guest
}

/// The readable part that lies ready.
const OUT: Descriptor = Descriptor { address: READABLE_AT, bytes: 20, flags: 0, next: 0 };
/// Room for its answer.
const BACK: Descriptor = Descriptor { address: WRITABLE_AT, bytes: 4, flags: WRITE, next: 0 };

/// The chain at `head` goes back untouched, and nothing of it took effect.
fn assert_left_alone(guest: &mut Guest, head: u16, what: &str) {
    guest.requests.make_available(head);
    guest.requests.notify();
    let used = guest.requests.wait_used();
    assert_eq!(used, Used { head: u32::from(head), bytes: 0 }, "{what}");
    assert_eq!(guest.read_answer(0, 4), [UNTOUCHED; 4], "{what}");
    let ram = guest.vmm.memory.ram.clone();
    let mut request = vec![0; 20];
    ram.read_slice(&mut request, GuestAddress(READABLE_AT)).unwrap();
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK, "{what}: domain 1 is still there");
    assert_eq!(guest.unmap(1, 0, 0xfff), OK);
    ram.write_slice(&request, GuestAddress(READABLE_AT)).unwrap();
    ram.write_slice(&[UNTOUCHED; 4], GuestAddress(WRITABLE_AT)).unwrap();
}

#[test]
fn chains_that_lead_nowhere_go_back_untouched() {
    let daemon = Daemon::start();
    let mut guest = guest(&daemon);
    let write = |guest: &Guest, index, descriptor| {
        guest.requests.write_descriptor(guest.requests.table, index, descriptor);
    };
    write(&guest, 10, Descriptor { flags: NEXT, next: 10, ..OUT });
    assert_left_alone(&mut guest, 10, "a loop of one");
    write(&guest, 10, Descriptor { flags: NEXT, next: 11, ..OUT });
    write(&guest, 11, Descriptor { flags: WRITE | NEXT, next: 11, ..BACK });
    assert_left_alone(&mut guest, 10, "a loop at the end");
    write(&guest, 11, Descriptor { flags: WRITE | NEXT, next: 256, ..BACK });
    assert_left_alone(&mut guest, 10, "an index just outside the table");
    write(&guest, 11, Descriptor { flags: WRITE | NEXT, next: 0xffff, ..BACK });
    assert_left_alone(&mut guest, 10, "an index far outside the table");
    write(&guest, 10, Descriptor { flags: NEXT, next: 11, ..OUT });
    write(&guest, 11, Descriptor { flags: WRITE | NEXT, next: 12, ..BACK });
    write(&guest, 12, OUT);
    assert_left_alone(&mut guest, 10, "readable behind writable");
}

#[test]
fn buffers_outside_memory_go_back_untouched() {
    let daemon = Daemon::start();
    let mut guest = guest(&daemon);
    let places = [RAM_BYTES, RAM_BYTES - 1, 1 << 40, u64::MAX, u64::MAX - 3];
    for address in places {
        guest.requests.write_chain(10, &[Descriptor { address, ..OUT }, BACK]);
        assert_left_alone(&mut guest, 10, &format!("readable at {address:#x}"));
        guest.requests.write_chain(10, &[OUT, Descriptor { address, ..BACK }]);
        assert_left_alone(&mut guest, 10, &format!("writable at {address:#x}"));
    }
    for bytes in [RAM_BYTES as u32, u32::MAX] {
        guest.requests.write_chain(10, &[OUT, Descriptor { bytes, ..BACK }]);
        assert_left_alone(&mut guest, 10, &format!("{bytes:#x} writable bytes"));
        guest.requests.write_chain(10, &[Descriptor { bytes, ..OUT }, BACK]);
        assert_left_alone(&mut guest, 10, &format!("{bytes:#x} readable bytes"));
    }
}

#[test]
fn indirect_tables_that_break_the_rules_go_back_untouched() {
    let daemon = Daemon::start();
    let mut guest = guest(&daemon);
    let table = |bytes| Descriptor { address: TABLE_AT, bytes, flags: INDIRECT, next: 0 };
    guest.requests.write_descriptor(TABLE_AT, 0, Descriptor { flags: NEXT, next: 1, ..OUT });
    guest.requests.write_descriptor(TABLE_AT, 1, BACK);
    for bytes in [0, 1, 15, 17, 33, u32::MAX, 0x10_0000 * 16] {
        guest.requests.write_chain(10, &[table(bytes)]);
        assert_left_alone(&mut guest, 10, &format!("a table of {bytes} bytes"));
    }
    guest.requests.write_chain(10, &[table(16)]);
    assert_left_alone(&mut guest, 10, "a table that ends before its chain");
    guest.requests.write_chain(10, &[Descriptor { address: RAM_BYTES - 8, ..table(32) }]);
    assert_left_alone(&mut guest, 10, "a table that ends outside memory");
    guest.requests.write_descriptor(TABLE_AT, 1, table(32));
    guest.requests.write_chain(10, &[table(32)]);
    assert_left_alone(&mut guest, 10, "a table in a table");
    guest.requests.write_descriptor(TABLE_AT, 0, table(32));
    assert_left_alone(&mut guest, 10, "a table that holds only itself");
    for index in 0..1000 {
        let empty = Descriptor { bytes: 0, flags: NEXT, next: index + 1, ..OUT };
        guest.requests.write_descriptor(TABLE_AT, index, empty);
    }
    guest.requests.write_descriptor(TABLE_AT, 1000, BACK);
    guest.requests.write_chain(10, &[table(1001 * 16)]);
    assert_left_alone(&mut guest, 10, "a table longer than the queue");
}

#[test]
fn odd_but_legal_chains_are_served() {
    let daemon = Daemon::start();
    let mut guest = guest(&daemon);
    let table = Descriptor { address: TABLE_AT, bytes: 32, flags: INDIRECT, next: 0 };
    let request = wire::attach(1, ENDPOINT, 0);
    let ram = guest.vmm.memory.ram.clone();
    let served = |guest: &mut Guest, what: &str| {
        ram.write_slice(&request, GuestAddress(READABLE_AT)).unwrap();
        ram.write_slice(&[UNTOUCHED; 4], GuestAddress(WRITABLE_AT)).unwrap();
        guest.requests.make_available(10);
        guest.requests.notify();
        assert_eq!(guest.requests.wait_used(), Used { head: 10, bytes: 4 }, "{what}");
        assert_eq!(guest.read_answer(0, 4), [OK, 0, 0, 0], "{what}");
    };
    guest.requests.write_descriptor(TABLE_AT, 0, Descriptor { flags: NEXT, next: 1, ..OUT });
    guest.requests.write_descriptor(TABLE_AT, 1, BACK);
    guest.requests.write_chain(10, &[table]);
    served(&mut guest, "an indirect table");
    guest.requests.write_chain(10, &[Descriptor { bytes: 8, ..OUT }, table]);
    let rest = Descriptor { address: READABLE_AT + 8, bytes: 12, flags: NEXT, next: 1 };
    guest.requests.write_descriptor(TABLE_AT, 0, rest);
    served(&mut guest, "a table behind a descriptor");
    let bytes = (0..20).map(|at| Descriptor { address: READABLE_AT + at, bytes: 1, ..OUT });
    let room = (0..4).map(|at| Descriptor { address: WRITABLE_AT + at, bytes: 1, ..BACK });
    guest.requests.write_chain(10, &bytes.chain(room).collect::<Vec<_>>());
    served(&mut guest, "a descriptor for each byte");
    guest.requests.write_chain(10, &[Descriptor { bytes: 0, ..OUT }, OUT, BACK]);
    served(&mut guest, "an empty descriptor in front");
    guest.requests.write_chain(10, &[Descriptor { bytes: 4096, ..OUT }, BACK]);
    served(&mut guest, "more bytes than a request has");
}

#[test]
fn an_index_that_jumps_ends_the_queue_until_it_is_set_up_again() {
    let daemon = Daemon::start();
    let mut guest = guest(&daemon);
    guest.requests.store_available_index(1 + 257);
    guest.requests.kick.write(1).unwrap();
    daemon.wait_for_log("the request queue is not served until it is set up again");
    guest.requests.notify();
    guest.requests.notify();
    assert_eq!(guest.vmm.config().probe_size, 512, "the connection is alive");
    let mut guest = guest.reboot();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(daemon.count_in_log("is not served until"), 1, "said once");
}

#[test]
fn a_head_outside_the_table_ends_the_queue_and_what_came_before_is_answered() {
    let daemon = Daemon::start();
    let mut guest = guest(&daemon);
    guest.queue_request(0, &wire::map(1, 0, 0xfff, 0, READ), 4);
    guest.requests.make_available(256);
    guest.requests.notify();
    assert_eq!(guest.requests.wait_used(), Used { head: 0, bytes: 4 });
    daemon.wait_for_log("head 256 in a queue of 256");
    let mut guest = guest.reboot();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

#[test]
fn rings_that_vanish_from_memory_are_given_up_and_come_back_with_a_new_start() {
    let daemon = Daemon::start();
    let guest = guest(&daemon);
    let high = guest.vmm.memory.piece(32 << 20, 32 << 20);
    guest.vmm.front_end.set_mem_table(&[high]).unwrap();
    daemon.wait_for_log("the request queue is not served until it is set up again");
    guest.requests.notify();
    let mut guest = guest.reboot();
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

#[test]
fn a_storm_of_kicks_is_served_and_costs_no_memory() {
    let daemon = Daemon::start();
    let mut guest = guest(&daemon);
    let before = (daemon.rss_kib(), daemon.open_fds());
    for _ in 0..100_000 {
        guest.requests.kick.write(1).unwrap();
        guest.events.kick.write(1).unwrap();
    }
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK);
    let (rss, fds) = (daemon.rss_kib(), daemon.open_fds());
    assert!(rss < before.0 + 1024 && fds == before.1, "{before:?} became {:?}", (rss, fds));
}

#[test]
fn random_rings_neither_kill_nor_stop_the_daemon() {
    let daemon = Daemon::with(&["--log-level", "info"]);
    let mut state = 0x1234_5678_9abc_def1_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut vmm = Vmm::connect(&daemon);
    for _ in 0..40 {
        let mut guest = Guest::boot(vmm, LINUX_FEATURES);
        for index in 0..256 {
            let descriptor = Descriptor {
                address: random() % (RAM_BYTES + 0x1_0000),
                bytes: (random() % 600) as u32,
                flags: (random() % 8) as u16,
                next: (random() % 260) as u16,
            };
            guest.requests.write_descriptor(guest.requests.table, index, descriptor);
        }
        for _ in 0..200 {
            guest.requests.make_available((random() % 256) as u16);
        }
        guest.requests.notify();
        // Rings may have been written over by their own buffers: only the daemon has to be well.
        guest.vmm.config();
        vmm = guest.vmm;
        vmm.stop();
    }
    let mut guest = Guest::boot(vmm, LINUX_FEATURES);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

//! Front-ends that break every rule of the vhost-user protocol, or leave in the middle of it. The next
//! one is served right after.

use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::{LINUX_FEATURES, RAM_BYTES, REQUEST, USER_BASE, Vmm, addresses};
use crate::support::wire::{self, NOENT, OK};

/// A guest that is attached.
fn guest(daemon: &Daemon) -> Guest {
    let mut guest = Guest::start(daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    guest
}

#[test]
fn absurd_queue_sizes_are_refused() {
    let daemon = Daemon::start();
    let vmm = Vmm::connect(&daemon);
    for size in [0, 3, 255, 257, 1025, 2048, 32768, 65535] {
        assert!(vmm.front_end.set_vring_num(REQUEST, size).is_err(), "{size}");
    }
    let mut guest = Guest::boot(vmm, LINUX_FEATURES);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

#[test]
fn ring_addresses_outside_memory_break_only_that_queue() {
    let daemon = Daemon::start();
    let guest = guest(&daemon);
    let mut vmm = guest.vmm;
    vmm.stop();
    for at in
        [0, USER_BASE - 0x1000, USER_BASE + RAM_BYTES, USER_BASE + RAM_BYTES - 16, u64::MAX - 15]
    {
        vmm.set_up(REQUEST, &guest.requests, 0).unwrap();
        let good = addresses(&guest.requests);
        for part in 0..3 {
            let mut bad = good;
            match part {
                0 => bad.desc_table_addr = at,
                1 => bad.used_ring_addr = at,
                _ => bad.avail_ring_addr = at,
            }
            // The crate refuses some by itself, others break the ring when it starts.
            let _ = vmm.front_end.set_vring_addr(REQUEST, &bad);
        }
        let _ = vmm.front_end.set_vring_enable(REQUEST, true);
        vmm.front_end.get_vring_base(REQUEST).unwrap();
    }
    let mut guest = Guest::boot(vmm, LINUX_FEATURES);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

#[test]
fn two_hundred_rude_disconnects_leave_nothing_behind() {
    let daemon = Daemon::start();
    let mut first = guest(&daemon);
    assert_eq!(first.unmap(2, 0, 0xfff), NOENT);
    let before = (daemon.open_fds(), daemon.threads());
    drop(first);
    for step in 0..200 {
        leave_at(&daemon, step % 5);
    }
    let mut last = guest(&daemon);
    assert_eq!(last.unmap(2, 0, 0xfff), NOENT);
    assert_eq!((daemon.open_fds(), daemon.threads()), before);
}

/// A front-end that leaves in the middle of something.
fn leave_at(daemon: &Daemon, step: u32) {
    match step {
        0 => drop(daemon.connect()),
        1 => daemon.connect().write_all(&[1, 0, 0, 0, 1]).unwrap(),
        2 => drop(Vmm::connect(daemon)),
        3 => Vmm::connect(daemon).begin(LINUX_FEATURES),
        _ => {
            let mut guest = Guest::start(daemon);
            for slot in 0..50 {
                guest.queue_request(slot, &wire::probe(ENDPOINT), 516);
            }
            guest.requests.notify();
        }
    }
}

/// A message of the vhost-user protocol: version 1, an acknowledgement wanted.
fn message(request: u32, payload: &[u8]) -> Vec<u8> {
    let header = [request, 1 | 1 << 3, payload.len() as u32];
    header.into_iter().flat_map(u32::to_ne_bytes).chain(payload.iter().copied()).collect()
}

/// Sends a message over a connection whose protocol features are agreed on; the acknowledgement, 0 for
/// "done".
fn acknowledged(stream: &mut UnixStream, request: u32, payload: &[u8]) -> u64 {
    stream.write_all(&message(request, payload)).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    u64::from_ne_bytes(reply[12..].try_into().unwrap())
}

/// Numbers of messages.
const GET_FEATURES: u32 = 1;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const GET_VRING_BASE: u32 = 11;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_ENABLE: u32 = 18;

/// Two words, as in the messages that set up a queue.
fn words(first: u32, second: u32) -> Vec<u8> {
    [first.to_ne_bytes(), second.to_ne_bytes()].concat()
}

#[test]
fn queues_that_do_not_exist_and_values_out_of_range_are_refused_and_the_connection_stays() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    let _vmm = Vmm::over(stream.try_clone().unwrap());
    for queue in [2, 3, 255, u32::MAX] {
        for request in [SET_VRING_NUM, SET_VRING_BASE, SET_VRING_ENABLE] {
            assert_ne!(
                acknowledged(&mut stream, request, &words(queue, 1)),
                0,
                "{request} {queue}"
            );
        }
        let address = [words(queue, 0), vec![0; 32]].concat();
        assert_ne!(acknowledged(&mut stream, SET_VRING_ADDR, &address), 0, "{queue}");
    }
    for size in [0, 65536, 65536 + 256, u32::MAX] {
        assert_ne!(acknowledged(&mut stream, SET_VRING_NUM, &words(0, size)), 0, "size {size}");
    }
    for base in [65536, u32::MAX] {
        assert_ne!(acknowledged(&mut stream, SET_VRING_BASE, &words(0, base)), 0, "base {base}");
    }
    let without_descriptor = 0x100_u64.to_ne_bytes();
    assert_ne!(acknowledged(&mut stream, SET_VRING_KICK, &without_descriptor), 0);
    assert_eq!(acknowledged(&mut stream, SET_VRING_NUM, &words(0, 256)), 0, "still served");
}

#[test]
fn a_base_of_a_queue_that_does_not_exist_ends_the_connection() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    let _vmm = Vmm::over(stream.try_clone().unwrap());
    stream.write_all(&message(GET_VRING_BASE, &words(2, 0))).unwrap();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0, "nobody waits for an answer for ever");
    assert_eq!(guest(&daemon).unmap(1, 0, 0xfff), OK);
}

#[test]
fn a_kick_descriptor_that_cannot_be_watched_is_refused() {
    let daemon = Daemon::start();
    let mut stream = daemon.connect();
    let vmm = Vmm::over(stream.try_clone().unwrap());
    let kick = message(SET_VRING_KICK, &0_u64.to_ne_bytes());
    stream.send_with_fd(&kick[..], vmm.memory.file.as_raw_fd()).unwrap();
    let mut reply = [0; 20];
    stream.read_exact(&mut reply).unwrap();
    assert_ne!(reply[12], 0);
    let mut guest = Guest::boot(vmm, LINUX_FEATURES);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

#[test]
fn a_call_descriptor_that_is_full_makes_nobody_wait() {
    let daemon = Daemon::start();
    let mut guest = guest(&daemon);
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    guest.vmm.front_end.set_vring_call(REQUEST, &full).unwrap();
    for place in 1..10 {
        guest.requests.want_interrupt_at(place);
        assert_eq!(guest.unmap(1, 0, 0xfff), OK);
    }
}

#[test]
fn a_front_end_that_comes_when_descriptors_have_run_out_is_served_when_there_are_some() {
    let daemon = Daemon::start();
    let pid = Pid::from_raw(daemon.pid() as i32);
    // The daemon has ours.
    let usual = getrlimit(Resource::Nofile);
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(3), ..usual }).unwrap();
    let mut waiting = daemon.connect();
    waiting.write_all(&message(GET_FEATURES, &[])).unwrap();
    daemon.wait_for_log("a front-end cannot be let in now");
    prlimit(pid, Resource::Nofile, usual).unwrap();
    waiting.read_exact(&mut [0; 20]).unwrap();
}

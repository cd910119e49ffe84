//! Connections without end, whole and half-way.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use viommu_iotlb::StuckPolicy;

use super::device::{HELLO, join, knock, say_bytes};
use super::tests::hostile;
use crate::device::{say, wait_for_end};
use crate::support::{Daemon, PATIENCE};
use crate::tests::{Process, daemon};
use crate::witness::Witness;

/// How often it comes.
const TIMES: usize = 1000;

/// Private memory that the daemon may have more of afterwards, KiB: what its allocator keeps, and the
/// list of events of the test's own.
const GROWTH_KIB: u64 = 2048;

/// Connects a thousand times, and goes no further than it likes.
pub(crate) fn reconnect(path: &Path) {
    say("ready");
    for n in 0..TIMES {
        match n % 8 {
            0 => drop(knock(path)),
            1 => say_bytes(&knock(path), &HELLO[..8]),
            2 => say_bytes(&knock(path), &[0xff; 64]),
            3 => say_bytes(&knock(path), b"\x01\0\0\0\x63\0\0\0viotlb\0\x01"),
            // never reads what it is welcomed with
            4 => say_bytes(&knock(path), HELLO),
            5 => hello_with_descriptors(path),
            // an empty packet looks like the end
            6 => say_bytes(&knock(path), &[]),
            _ => forge_and_leave(path),
        }
    }
    say("done");
    wait_for_end();
}

/// A HELLO that brings descriptors along, which the daemon has to close.
fn hello_with_descriptors(path: &Path) {
    let socket = knock(path);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let three = [socket.as_fd(); 3];
    assert!(control.push(SendAncillaryMessage::ScmRights(&three)));
    sendmsg(&socket, &[IoSlice::new(HELLO)], &mut control, SendFlags::empty()).unwrap();
}

/// Takes all that it is given, says that it is inside, and leaves.
fn forge_and_leave(path: &Path) {
    let raw = join(path);
    (0..0x6000).step_by(8).for_each(|offset| raw.put(offset, 1));
    raw.ring();
}

/// Descriptors, threads and private memory (KiB) of this process, which is the daemon.
fn holdings() -> (usize, usize, u64) {
    let count = |path: &str| std::fs::read_dir(path).unwrap().count();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
    let private = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    (count("/proc/self/fd"), count("/proc/self/task"), private)
}

/// The daemon has heard of the end of all connections but one, the witness's.
fn await_ends(daemon: &Daemon) {
    let until = std::time::Instant::now() + PATIENCE;
    while daemon.run(|world| world.hub.connected()) > 1 {
        assert!(std::time::Instant::now() < until, "connections are left over");
    }
}

pub(crate) fn a_thousand_times() {
    let daemon = daemon(PATIENCE, StuckPolicy::Kill);
    let mut witness = Witness::new(&daemon);
    // the first time costs what later ones find
    let warm = hostile("reconnects", &daemon, &mut witness);
    assert!(warm.end());
    await_ends(&daemon);
    let (fds, threads, private) = holdings();
    let again = hostile("reconnects", &daemon, &mut witness);
    assert!(again.end());
    await_ends(&daemon);
    let (fds_after, threads_after, private_after) = holdings();
    assert_eq!((fds_after, threads_after), (fds, threads));
    assert!(private_after < private + GROWTH_KIB, "{private} KiB before, {private_after} after");
    assert!(Process::start("holds-guard", &daemon).end(), "an honest one is let in");
    witness.is_well(&daemon);
}

//! Device processes with hostile intent, one beside an honest one of another endpoint.
//!
//! What they can do to the shared memory is tested beside the crate that owns it; here, what the guest
//! notices.

use std::io::IoSlice;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketType, connect, sendmsg, socket};
use viommu_iotlb::FaultClass;
use viommu_pgtable::Access;

use crate::support::daemon::Daemon;
use crate::support::device::{Dma, Holder, translate};
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::wait_until;
use crate::support::wire::{ADDRESS, Fault, MAPPING, OK, READ};

/// 0000:00:03.0, whose device is honest.
const OTHER: u32 = 0x18;

/// Faults that wait in the daemon at most.
const WAITING: usize = 256;

/// A guest with two endpoints, each in a domain of its own with one page mapped, and the honest device.
struct Stand {
    daemon: Daemon,
    guest: Guest,
    honest: Dma,
}

impl Stand {
    fn with(options: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("viommu-it-").tempdir().unwrap();
        let socket = |name: &str| folder.path().join(name);
        let endpoint = |name: &str| format!("00:{name},socket={}", socket(name).display());
        let (hostile, other, other_socket) = (endpoint("02.0"), endpoint("03.0"), socket("03.0"));
        let mut all = vec!["--endpoint", &hostile, "--endpoint", &other];
        all.extend(options);
        let daemon = Daemon::in_folder(folder, &all);
        let mut guest = Guest::start(&daemon);
        for (domain, endpoint, to) in [(1, ENDPOINT, 0x5000), (2, OTHER, 0x9000)] {
            assert_eq!(guest.attach(domain, endpoint), OK);
            assert_eq!(guest.map(domain, 0x1000, 0x1fff, to, READ), OK);
        }
        let honest = Dma::connect_at(&other_socket);
        Self { daemon, guest, honest }
    }

    /// The honest device reaches what it may, and nothing else.
    fn assert_honest_is_well(&self) {
        assert_eq!(self.honest.page(0x1000), Ok(0x9000));
        assert_eq!(self.honest.page(0x2000), Err(FaultClass::Mapping));
    }
}

#[test]
fn a_process_that_reports_without_end_keeps_no_fault_of_another_endpoint_out() {
    let Stand { daemon, mut guest, honest } = Stand::with(&[]);
    let hostile = Dma::connect(&daemon);
    let flood = || {
        for page in 0..100 {
            hostile.access(0x10_0000 + page * 0x1000, 4, Access::READ).unwrap_err();
        }
        // an answer from the daemon's one thread: it has taken what was reported before
        hostile.device.function_started().unwrap();
    };
    (0..4).for_each(|_| flood());
    let refused = 0x7000..0x7008;
    for address in refused.clone() {
        honest.access(address, 1, Access::READ).unwrap_err();
    }
    honest.device.function_started().unwrap();
    flood();
    let mut told = Vec::new();
    for slot in 0..WAITING as u16 {
        guest.post_event_buffer(slot % 64, 24);
        told.push(guest.wait_event());
    }
    let fault =
        |endpoint, address| Fault { reason: MAPPING, flags: READ | ADDRESS, endpoint, address };
    let (theirs, ours): (Vec<_>, Vec<_>) = told.into_iter().partition(|f| f.endpoint == ENDPOINT);
    assert_eq!(ours, refused.map(|address| fault(OTHER, address)).collect::<Vec<_>>());
    assert_eq!(theirs.len(), WAITING - ours.len());
    assert_eq!(theirs[0], fault(ENDPOINT, 0x10_0000), "the first ones tell the cause");
}

/// The drains that had to wait are counted: only the one that met the stuck process did.
#[test]
fn a_process_that_never_leaves_its_section_makes_one_request_wait_and_no_other() {
    for (policy, killed, cut_off) in [("kill", 1, 0), ("disconnect", 0, 1)] {
        let mut stand = Stand::with(&["--stuck-ms", "200", "--stuck-device", policy]);
        let _stuck = Holder::start(&stand.daemon);
        for _ in 0..20 {
            assert_eq!(stand.guest.unmap(1, 0x1000, 0x1fff), OK);
            assert_eq!(stand.guest.map(1, 0x1000, 0x1fff, 0x5000, READ), OK);
            stand.assert_honest_is_well();
        }
        let Stand { mut daemon, guest, honest } = stand;
        drop((guest, honest));
        daemon.stop();
        let counted = ["waits", "killed", "cut_off"].map(|name| daemon.counter(name));
        assert_eq!(counted, [1, killed, cut_off], "{policy}");
    }
}

/// A client that goes as far as `step`, and is gone.
fn leave_at(stand: &Stand, step: u32) {
    let knock = || -> OwnedFd {
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(stand.daemon.device_socket()).unwrap()).unwrap();
        socket
    };
    let say = |bytes: &[u8]| {
        let parts = [IoSlice::new(bytes)];
        sendmsg(knock(), &parts, &mut Default::default(), SendFlags::NOSIGNAL).unwrap();
    };
    match step {
        0 => drop(knock()),
        1 => say(b"\x01\0\0\0"),
        2 => say(&[0xff; 64]),
        // a HELLO whose answer nobody reads
        3 => say(b"\x01\0\0\0\x02\0\0\0viotlb\0\x01"),
        _ => drop(Dma::connect(&stand.daemon)),
    }
}

#[test]
fn a_thousand_rude_device_processes_leave_nothing_behind() {
    let stand = Stand::with(&[]);
    let leave = |times| (0..times).for_each(|n| leave_at(&stand, n % 5));
    // the first ones cost what later ones find
    leave(100);
    stand.honest.device.function_started().unwrap();
    let holdings = || (stand.daemon.open_fds(), stand.daemon.threads());
    let (before, private) = (holdings(), stand.daemon.private_kib());
    leave(1000);
    wait_until("all are gone", || holdings() == before);
    let after = stand.daemon.private_kib();
    assert!(after <= private + 256, "{private} KiB before, {after} KiB after");
    assert_eq!(Dma::connect(&stand.daemon).page(0x1000), Ok(0x5000));
    stand.assert_honest_is_well();
}

#[test]
fn a_process_that_rings_without_end_keeps_no_request_waiting() {
    let Stand { daemon, mut guest, honest } = Stand::with(&["--log-level", "info"]);
    let hostile = Dma::connect(&daemon);
    let is_over = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        let flood = scope.spawn(move || {
            let mut reports = 0_u64;
            // Relaxed: it only has to end some time
            while !is_over.load(Ordering::Relaxed) {
                let guard = hostile.reader.enter().unwrap();
                let fault = translate(&guard, 0x10_0000, 1, Access::READ).unwrap_err();
                // a full ring is what it wants
                let _full = guard.report(&fault);
                reports += 1;
            }
            reports
        });
        for page in 0..200 {
            let (first, last) = (0x100_0000 + page * 0x1000, 0x100_0fff + page * 0x1000);
            assert_eq!(guest.map(2, first, last, 0x5000, READ), OK);
            assert_eq!(honest.page(first), Ok(0x5000));
            assert_eq!(guest.unmap(2, first, last), OK);
            assert_eq!(honest.page(first), Err(FaultClass::Mapping));
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(flood.join().unwrap() > 200, "it did not flood");
    });
}

//! Stop, go, reset, reboot, and front-ends that come and go.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::LINUX_FEATURES;
use crate::support::wait_until;
use crate::support::wire::{self, INVAL, NOENT, OK, READ};

/// A guest with one mapping in domain 1.
fn mapped(daemon: &Daemon) -> Guest {
    let mut guest = Guest::start(daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK);
    guest
}

#[test]
fn stop_says_where_the_queue_stopped_and_a_start_there_goes_on() {
    let daemon = Daemon::start();
    let mut guest = mapped(&daemon);
    let base = guest.vmm.stop();
    assert_eq!(base, 2);
    guest.queue_request(0, &wire::unmap(1, 0, 0xfff), 4);
    guest.requests.publish();
    guest.vmm.begin(LINUX_FEATURES);
    guest.start_queues(base, 0);
    assert_eq!(guest.requests.wait_used().bytes, 4, "what came meanwhile is served without a kick");
    assert_eq!(guest.read_answer(0, 4), [OK, 0, 0, 0]);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK, "the domain is still there");
}

#[test]
fn a_start_at_0_is_a_new_driver() {
    let daemon = Daemon::start();
    let mut guest = mapped(&daemon).reboot();
    assert_eq!(guest.unmap(1, 0, 0xfff), NOENT);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), OK);
}

#[test]
fn a_stop_after_65536_requests_is_still_a_stop() {
    let daemon = Daemon::with(&["--log-level", "info"]);
    let mut guest = mapped(&daemon);
    for done in 2..65536_u32 {
        let slot = (done % 100) as u16;
        guest.queue_request(slot, &wire::map(1, 0, 0xfff, 0, READ), 4);
        if slot == 99 || done == 65535 {
            guest.requests.notify();
            wait_until("the batch", || guest.requests.used_index() == (done + 1) as u16);
            while guest.requests.take_used().is_some() {}
        }
    }
    assert_eq!(guest.vmm.stop(), 0);
    guest.vmm.begin(LINUX_FEATURES);
    guest.start_queues(0, 0);
    assert_eq!(guest.map(1, 0, 0xfff, 0, READ), INVAL, "the mapping is still there");
}

#[test]
fn reset_device_drops_everything_at_once() {
    let daemon = Daemon::start();
    let mut guest = mapped(&daemon);
    guest.vmm.front_end.reset_device().unwrap();
    let mut guest = Guest::boot(guest.vmm, LINUX_FEATURES);
    assert_eq!(guest.unmap(1, 0, 0xfff), NOENT);
}

#[test]
fn the_next_front_end_finds_a_new_device() {
    let daemon = Daemon::start();
    drop(mapped(&daemon));
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.unmap(1, 0, 0xfff), NOENT);
}

#[test]
fn a_second_front_end_waits_until_the_first_has_left() {
    let daemon = Daemon::start();
    let mut first = mapped(&daemon);
    let mut second = daemon.connect();
    second.write_all(&GET_FEATURES).unwrap();
    second.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(second.read(&mut [0; 20]).is_err(), "it gets no answer yet");
    assert_eq!(first.unmap(1, 0, 0xfff), OK, "the first is served meanwhile");
    drop(first);
    second.set_read_timeout(None).unwrap();
    second.read_exact(&mut [0; 20]).unwrap();
}

#[test]
fn fifty_reconnects_leave_no_descriptor_and_no_thread_behind() {
    let daemon = Daemon::start();
    // counted while a front-end is there that has its answers: the daemon's one thread rests then
    let first = mapped(&daemon);
    let before = (daemon.open_fds(), daemon.threads());
    drop(first);
    for _ in 0..50 {
        drop(mapped(&daemon));
    }
    let _last = mapped(&daemon);
    assert_eq!((daemon.open_fds(), daemon.threads()), before);
    assert_eq!(daemon.count_in_log("the front-end has left"), 51);
}

/// GET_FEATURES, version 1, no payload.
const GET_FEATURES: [u8; 12] = [1, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn half_a_message_ends_that_connection_and_nothing_else() {
    let daemon = Daemon::start();
    for length in [1, 11] {
        let mut rude = daemon.connect();
        rude.write_all(&GET_FEATURES[..length]).unwrap();
        assert_dropped(&mut rude);
    }
    let mut rude = daemon.connect();
    rude.write_all(&[2, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0xff]).unwrap();
    assert_dropped(&mut rude);
    assert_eq!(mapped(&daemon).unmap(1, 0, 0xfff), OK);
}

/// The daemon has closed its end, perhaps with something unread.
fn assert_dropped(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let end = stream.read(&mut [0]).or_else(|error| match error.kind() {
        ErrorKind::ConnectionReset => Ok(0),
        _ => Err(error),
    });
    assert_eq!(end.unwrap(), 0, "the connection is over");
}

#[test]
fn a_front_end_that_reads_no_replies_is_dropped() {
    let daemon = Daemon::start();
    let mut rude = daemon.connect();
    // Enough for any socket buffer; the write fails when the daemon has closed its end.
    let refused = (0..1_000_000).any(|_| rude.write_all(&GET_FEATURES).is_err());
    assert!(refused, "a million replies cannot wait");
    assert_eq!(mapped(&daemon).unmap(1, 0, 0xfff), OK);
}

#[test]
fn garbage_ends_that_connection_and_nothing_else() {
    let daemon = Daemon::start();
    for seed in 0..200_u64 {
        let mut rude = daemon.connect();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let bytes: Vec<u8> = (0..64)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        // It may be dropped before the last byte.
        let _ = rude.write_all(&bytes);
    }
    assert_eq!(mapped(&daemon).unmap(1, 0, 0xfff), OK);
}

#[test]
fn sigterm_ends_it_with_0_and_removes_its_socket() {
    let mut daemon = Daemon::start();
    let _guest = mapped(&daemon);
    let status = daemon.stop();
    assert_eq!(status.code(), Some(0));
    assert!(!daemon.socket().exists());
    assert_eq!(daemon.counter("attach"), 1);
    assert_eq!(daemon.counter("map"), 1);
    assert_eq!(daemon.counter("requests"), 2);
}

#[test]
fn the_memory_table_can_change_while_the_queues_run() {
    let daemon = Daemon::start();
    let mut guest = mapped(&daemon);
    let front_end = &guest.vmm.front_end;
    let (low, high) =
        (guest.vmm.memory.piece(0, 32 << 20), guest.vmm.memory.piece(32 << 20, 32 << 20));
    front_end.set_mem_table(&[low, high]).unwrap();
    assert_eq!(guest.map(1, 0x1000, 0x1fff, 0, READ), OK);
    guest.vmm.front_end.remove_mem_region(&high).unwrap();
    assert_eq!(guest.map(1, 0x2000, 0x2fff, 0, READ), OK);
    guest.vmm.front_end.add_mem_region(&high).unwrap();
    assert!(guest.vmm.front_end.add_mem_region(&high).is_err(), "it is there already");
    assert_eq!(guest.unmap(1, 0, 0x2fff), OK);
}

#[test]
fn features_cannot_change_under_a_running_driver() {
    let daemon = Daemon::start();
    let mut guest = mapped(&daemon);
    assert!(guest.vmm.front_end.set_features(LINUX_FEATURES & !(1 << 29)).is_err());
    assert_eq!(guest.unmap(1, 0, 0xfff), OK);
}

#[test]
fn a_queue_that_is_disabled_is_not_served_until_it_is_enabled() {
    let daemon = Daemon::start();
    let mut guest = mapped(&daemon);
    guest.vmm.front_end.set_vring_enable(0, false).unwrap();
    guest.queue_request(0, &wire::unmap(1, 0, 0xfff), 4);
    guest.requests.notify();
    // A message that is answered was served after the kick.
    guest.vmm.config();
    guest.vmm.config();
    assert_eq!(guest.requests.take_used(), None);
    guest.vmm.front_end.set_vring_enable(0, true).unwrap();
    assert_eq!(guest.requests.wait_used().bytes, 4);
}

#[test]
fn kick_and_call_descriptors_can_be_replaced() {
    use vmm_sys_util::eventfd::EventFd;
    let daemon = Daemon::start();
    let mut guest = mapped(&daemon);
    let fds = daemon.open_fds();
    for _ in 0..3 {
        guest.requests.kick = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        guest.requests.call = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        guest.vmm.front_end.set_vring_kick(0, &guest.requests.kick).unwrap();
        guest.vmm.front_end.set_vring_call(0, &guest.requests.call).unwrap();
        assert_eq!(guest.unmap(1, 0x1000, 0x1fff), OK);
    }
    assert_eq!(daemon.open_fds(), fds);
}

#[test]
fn a_daemon_without_a_front_end_starts_and_ends_quietly() {
    let mut daemon = Daemon::start();
    assert_eq!(daemon.stop().code(), Some(0));
    assert_eq!(daemon.counter("requests"), 0);
}

#[test]
fn an_idle_daemon_needs_little_memory_and_no_processor_time() {
    let daemon = Daemon::with(&["--log-level", "info"]);
    let _guest = mapped(&daemon);
    let before = daemon.cpu_ticks();
    std::thread::sleep(Duration::from_millis(500));
    let (ticks, rss) = (daemon.cpu_ticks() - before, daemon.rss_kib());
    assert!(ticks <= 2, "{ticks} of 50 clock ticks with nothing to do");
    assert!(rss < 8 * 1024, "{rss} KiB");
}

#[test]
fn sigusr1_tells_what_there_is_now_and_serving_goes_on() {
    let daemon = Daemon::start();
    let mut guest = mapped(&daemon);
    let told = |mappings: &str| {
        daemon.signal(Signal::USR1);
        daemon.wait_for_log(mappings);
    };
    told("domains=1 mappings=1 table_pages=");
    let with_tables = daemon.counter("table_pages");
    assert_eq!(guest.attach(2, ENDPOINT), OK, "domain 1 ends");
    told("domains=1 mappings=0 table_pages=");
    assert!(daemon.counter("table_pages") < with_tables, "its tables are free again");
}

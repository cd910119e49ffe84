//! The process's own conventions (QEMU, vhost-user protocol, "Backend program conventions").

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Output, Stdio};

use crate::support::daemon::{BINARY, Daemon};
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::{LINUX_FEATURES, Vmm};
use crate::support::wire::{NOMEM, OK, RANGE, READ};

fn run(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

#[test]
fn print_capabilities_prints_json_and_ignores_the_rest() {
    let output = run(&["--no-such-option", "--print-capabilities"]);
    assert_eq!(output.status.code(), Some(0));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json, serde_json::json!({"type": "iommu", "features": []}));
}

#[test]
fn a_wrong_command_line_ends_with_2_and_a_start_that_fails_with_1() {
    assert_eq!(run(&[]).status.code(), Some(2));
    assert_eq!(run(&["--socket-path", "x", "--fd", "3"]).status.code(), Some(2));
    let missing = ["--socket-path", "/nonexistent/vu", "--endpoint", "00:02.0"];
    let output = run(&missing);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot listen at /nonexistent/vu"), "{said}");
}

#[test]
fn a_descriptor_that_is_no_socket_is_refused() {
    for fd in ["0", "1", "99"] {
        let output = run(&["--fd", fd, "--endpoint", "00:02.0"]);
        assert_eq!(output.status.code(), Some(1), "--fd {fd}");
    }
}

#[test]
fn a_connection_that_is_handed_over_is_served_and_its_end_is_the_end() {
    let (front_end, theirs) = UnixStream::pair().unwrap();
    // The daemon gets it as descriptor 3.
    let mut daemon = Command::new("sh")
        .args(["-c", "exec \"$0\" --fd 3 --endpoint 00:02.0 3<&0 </dev/null", BINARY])
        .stdin(OwnedFd::from(theirs))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut guest = Guest::boot(Vmm::over(front_end), LINUX_FEATURES);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    drop(guest);
    assert_eq!(daemon.wait().unwrap().code(), Some(0));
}

#[test]
fn a_device_socket_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let vu = folder.path().join("vu");
    let output = run(&[
        "--socket-path",
        vu.to_str().unwrap(),
        "--endpoint",
        "00:02.0,socket=/nonexistent/02.0",
    ]);
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("/nonexistent/02.0") && said.contains("0000:00:02.0"), "{said}");
    assert!(!vu.exists(), "the other socket is gone again");
}

#[test]
fn a_socket_left_by_a_killed_daemon_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(folder.path().join("vu")).unwrap());
    let daemon = Daemon::in_folder(folder, &["--endpoint", "00:02.0"]);
    assert_eq!(Guest::start(&daemon).attach(1, ENDPOINT), OK);
}

#[test]
fn limits_answer_nomem_at_the_limit_and_not_before() {
    let daemon =
        Daemon::with(&["--max-domains", "2", "--max-mappings", "3", "--endpoint", "00:03.0"]);
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    for page in 0..3 {
        assert_eq!(guest.map(1, page << 12, page << 12 | 0xfff, 0, READ), OK);
    }
    assert_eq!(guest.map(1, 3 << 12, 3 << 12 | 0xfff, 0, READ), NOMEM);
    assert_eq!(guest.unmap(1, 0, 0xfff), OK);
    assert_eq!(guest.map(1, 3 << 12, 3 << 12 | 0xfff, 0, READ), OK);
    assert_eq!(guest.attach(2, 0x18), OK);
    assert_eq!(guest.attach(2, ENDPOINT), OK, "moves: domain 1 ends");
    assert_eq!(guest.attach(3, ENDPOINT), OK);
}

#[test]
fn the_width_of_the_input_is_what_was_asked_for() {
    let widths = [("vtd", "39", 39), ("vtd", "48", 48), ("vtd", "57", 57), ("smmuv3", "39", 39)];
    for (arch, bits, width) in widths {
        let daemon = Daemon::with(&["--arch", arch, "--input-bits", bits]);
        let mut guest = Guest::start(&daemon);
        let top = (1_u64 << width) - 0x1000;
        assert_eq!(guest.attach(1, ENDPOINT), OK);
        assert_eq!(guest.map(1, top, top + 0xfff, 0, READ), OK, "{bits} bits");
        assert_eq!(guest.map(1, top + 0x1000, top + 0x1fff, 0, READ), RANGE, "{bits} bits");
    }
}

#[test]
fn tables_that_are_used_up_answer_nomem_and_give_back_what_is_unmapped() {
    let daemon = Daemon::with(&["--table-memory", "512K"]);
    let mut guest = Guest::start(&daemon);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
    let sparse = |n: u64| (n << 39, (n << 39) + 0xfff);
    let map = |guest: &mut Guest, n| guest.map(1, sparse(n).0, sparse(n).1, 0, READ);
    let mapped = (0..64).take_while(|n| map(&mut guest, *n) == OK).count();
    assert!((1..64).contains(&mapped), "{mapped} mappings fit into 512 KiB of tables");
    assert_eq!(map(&mut guest, 64), NOMEM);
    assert_eq!(guest.unmap(1, sparse(0).0, sparse(0).1), OK);
    assert_eq!(map(&mut guest, 64), OK);
}

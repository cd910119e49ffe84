//! Connections come and go.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketAddrUnix, SocketType, accept, bind, connect, listen,
    recvmsg, sendmsg, socket,
};
use viommu_iotlb::{
    ConnectError, Device, DeviceEvent, Hub, HubConfig, MAX_CONNECTIONS_PER_ENDPOINT, Refused,
};
use viommu_pasid::{EndpointId, Structures};
use viommu_pgtable::PhysAddr;

use crate::support::{Daemon, ENDPOINT};

fn open_fds() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_device_is_told_its_endpoint_and_its_comings_and_goings_are_told() {
    let daemon = Daemon::start(HubConfig::default());
    let device = daemon.connect();
    assert_eq!(device.endpoint(), ENDPOINT);
    drop(device);
    let events = daemon.events(|events| events.len() == 2);
    let endpoint = ENDPOINT;
    assert_eq!(
        events,
        [DeviceEvent::Connected { endpoint }, DeviceEvent::Disconnected { endpoint }]
    );
}

#[test]
fn function_messages_are_answered_after_the_daemon_has_acted() {
    let daemon = Daemon::start(HubConfig::default());
    let device = daemon.connect();
    device.function_reset().unwrap();
    device.function_started().unwrap();
    let endpoint = ENDPOINT;
    let events = daemon.events(|events| events.len() >= 3);
    assert_eq!(
        events[1..],
        [DeviceEvent::FunctionReset { endpoint }, DeviceEvent::FunctionStarted { endpoint }]
    );
}

#[test]
fn connections_of_one_endpoint_are_limited() {
    let daemon = Daemon::start(HubConfig::default());
    let devices: Vec<_> = (0..MAX_CONNECTIONS_PER_ENDPOINT).map(|_| daemon.connect()).collect();
    let refused = Device::connect(&daemon.socket).unwrap_err();
    assert!(matches!(refused, ConnectError::Full), "{refused}");
    drop(devices);
    daemon.events(|events| {
        let gone = |event: &&DeviceEvent| matches!(event, DeviceEvent::Disconnected { .. });
        events.iter().filter(gone).count() == MAX_CONNECTIONS_PER_ENDPOINT
    });
    daemon.connect();
}

#[test]
fn a_reader_keeps_the_connection_and_a_daemon_that_is_gone_refuses() {
    let daemon = Daemon::start(HubConfig::default());
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    drop(reader.enter().unwrap());
    drop(daemon);
    assert!(!device.dispatch().connected);
    assert_eq!(reader.enter().unwrap_err(), Refused::Disconnected);
    assert!(device.function_reset().is_err());
}

#[test]
fn a_daemon_that_ends_in_order_leaves_nobody_behind_who_translates() {
    let daemon = Daemon::start(HubConfig::default());
    let device = daemon.connect();
    let reader = device.reader().unwrap();
    drop(reader.enter().unwrap());
    drop(daemon);
    // the device has not looked at its socket
    assert_eq!(reader.try_enter().err(), Some(Refused::Disconnected));
}

#[test]
fn a_socket_is_for_its_owner_only_replaces_an_old_one_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut hub = Hub::new(HubConfig::default()).unwrap();
    let path = folder.path().join("socket");
    let listen = |hub: &mut Hub, id, path: &Path| {
        let root = PhysAddr::new(1 << 51);
        hub.listen(EndpointId::new(id), Structures::Vtd { root }, 0, path)
    };
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    listen(&mut hub, 1, &path).unwrap();
    let meta = std::fs::symlink_metadata(&path).unwrap();
    assert!(meta.file_type().is_socket());
    assert_eq!(meta.permissions().mode() & 0o077, 0);
    assert!(listen(&mut hub, 1, &folder.path().join("other")).is_err());
    let file = folder.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(listen(&mut hub, 2, &file).is_err());
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    drop(hub);
    assert!(!path.exists());
}

#[test]
fn a_thousand_devices_leave_no_descriptor_behind() {
    let daemon = Daemon::start(HubConfig::default());
    drop(daemon.connect());
    let gone = |events: &[DeviceEvent]| {
        events.iter().filter(|e| matches!(e, DeviceEvent::Disconnected { .. })).count()
    };
    daemon.events(|events| gone(events) == 1);
    let before = open_fds();
    for n in 0..1000 {
        let device = daemon.connect();
        let reader = device.reader().unwrap();
        drop(reader.enter().unwrap());
        drop((device, reader));
        daemon.events(|events| gone(events) == n + 2);
    }
    assert_eq!(daemon.run(|world| world.hub.connected()), 0);
    // other tests of this process open some as well
    assert!(open_fds() < before + 200, "{before} before, {} after", open_fds());
}

#[test]
fn clients_that_say_nothing_keep_nobody_out() {
    let daemon = Daemon::start(HubConfig::default());
    let address = SocketAddrUnix::new(&daemon.socket).unwrap();
    let silent: Vec<_> = (0..100)
        .map(|_| {
            let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
            connect(&socket, &address).unwrap();
            socket
        })
        .collect();
    let device = daemon.connect();
    assert!(device.reader().unwrap().enter().is_ok());
    drop(silent);
}

/// A socket at which somebody answers the first packet of the first client with `answer`.
fn impostor(folder: &Path, answer: &'static [u8]) -> PathBuf {
    let path = folder.join(format!("impostor-{}", answer.len()));
    let listener = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    bind(&listener, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    listen(&listener, 1).unwrap();
    std::thread::spawn(move || {
        let client = accept(listener).unwrap();
        let mut hello = [0; 64];
        let mut slices = [IoSliceMut::new(&mut hello)];
        recvmsg(&client, &mut slices, &mut Default::default(), RecvFlags::empty()).unwrap();
        say(&client, answer);
        // until the client leaves
        let _end = recvmsg(&client, &mut slices, &mut Default::default(), RecvFlags::empty());
    });
    path
}

fn say(socket: &OwnedFd, bytes: &[u8]) {
    let parts = [IoSlice::new(bytes)];
    sendmsg(socket, &parts, &mut Default::default(), SendFlags::empty()).unwrap();
}

#[test]
fn a_daemon_of_another_version_is_refused_with_both_versions_named() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = impostor(folder.path(), b"\x03\0\0\0\x63\0\0\0\x01\0\0\0\0\0\0\0");
    let error = Device::connect(refusal).unwrap_err();
    assert!(matches!(error, ConnectError::Version { ours: 2, daemon: 0x63 }), "{error}");
    let text = "the daemon speaks version 99 of the shared layout, this device version 2";
    assert_eq!(error.to_string(), text);
    // what is no answer of this version's
    let error = Device::connect(impostor(folder.path(), &[2; 56])).unwrap_err();
    assert!(matches!(error, ConnectError::NoDaemon), "{error}");
}

#[test]
fn a_device_of_another_version_is_told_ours() {
    let daemon = Daemon::start(HubConfig::default());
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(&daemon.socket).unwrap()).unwrap();
    say(&socket, b"\x01\0\0\0\x63\0\0\0viotlb\0\x01");
    let mut answer = [0; 64];
    let mut slices = [IoSliceMut::new(&mut answer)];
    let bytes =
        recvmsg(&socket, &mut slices, &mut Default::default(), RecvFlags::empty()).unwrap().bytes;
    // REFUSED, our version, reason 1: version
    assert_eq!(answer[..bytes], *b"\x03\0\0\0\x02\0\0\0\x01\0\0\0\0\0\0\0");
    assert_eq!(daemon.run(|world| world.hub.counters().refused), 1);
}

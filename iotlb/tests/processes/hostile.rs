//! A device process that speaks the protocol by hand and writes what it likes.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::OFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketType, connect, recvmsg, sendmsg, socket,
};
use viommu_iotlb::abi::{
    DeviceLine, FAULT_RECORDS, FaultHead, PIN_SLOTS, PinLine, READER_SLOTS, ReaderLine, SlotMemory,
};

use crate::device::{say, wait_for_end};

/// What a device gets.
struct Raw {
    socket: OwnedFd,
    region: File,
    slot: File,
    doorbell: OwnedFd,
}

fn join(path: &Path) -> Raw {
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    let hello = b"\x01\0\0\0\x02\0\0\0viotlb\0\x01";
    sendmsg(&socket, &[IoSlice::new(hello)], &mut Default::default(), SendFlags::empty()).unwrap();
    let mut bytes = [0; 64];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    recvmsg(&socket, &mut slices, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            fds.extend(sent);
        }
    }
    let [region, slot, doorbell] = <[OwnedFd; 3]>::try_from(fds).unwrap();
    Raw { socket, region: region.into(), slot: slot.into(), doorbell }
}

impl Raw {
    fn put(&self, offset: usize, word: u64) {
        self.slot.write_all_at(&word.to_le_bytes(), offset as u64).unwrap();
    }

    fn ring(&self) {
        let _full = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
    }
}

const DEVICE_LINE: usize = offset_of!(SlotMemory, device);
const PUT: usize = DEVICE_LINE + offset_of!(DeviceLine, put);

/// Claims that every reader is in the oldest section, and that every pin covers everything.
pub(crate) fn forge_slots(path: &Path) {
    let raw = join(path);
    for reader in 0..READER_SLOTS {
        raw.put(offset_of!(SlotMemory, readers) + reader * size_of::<ReaderLine>(), 1);
    }
    for pin in 0..PIN_SLOTS {
        let line = offset_of!(SlotMemory, pins) + pin * size_of::<PinLine>();
        raw.put(line + offset_of!(PinLine, pasid), (pin % 3) as u64 * u64::from(u32::MAX));
        raw.put(line + offset_of!(PinLine, last), u64::MAX);
    }
    for word in 0..1 + PIN_SLOTS / 64 {
        raw.put(DEVICE_LINE + offset_of!(DeviceLine, slots_used) + 8 * word, u64::MAX);
    }
    // what the daemon wrote itself: it must not believe it later
    raw.put(0, u64::MAX);
    say("ready");
    wait_for_end();
}

/// Puts nonsense into the fault ring and its positions, and rings without end.
pub(crate) fn forge_rings(path: &Path) {
    let raw = join(path);
    for word in 0..FAULT_RECORDS * 4 {
        raw.put(offset_of!(SlotMemory, faults) + word * 8, u64::MAX - word as u64);
    }
    say("ready");
    let taken = offset_of!(SlotMemory, fault_head) + offset_of!(FaultHead, taken);
    for round in 0u64..100_000 {
        raw.put(PUT, round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        raw.put(taken, round << 60);
        raw.ring();
    }
    // messages that are none, more than are read at once
    for length in 0..64 {
        let bytes = vec![0xff; length];
        let _expelled = sendmsg(
            &raw.socket,
            &[IoSlice::new(&bytes)],
            &mut Default::default(),
            SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
        );
    }
    say("done");
    wait_for_end();
}

/// Asks without end and hears no answer, until the daemon has had enough.
pub(crate) fn flood_questions(path: &Path) {
    let raw = join(path);
    say("ready");
    let reset = [4u32.to_le_bytes(), 1u32.to_le_bytes()].concat();
    let send = || {
        sendmsg(&raw.socket, &[IoSlice::new(&reset)], &mut Default::default(), SendFlags::NOSIGNAL)
    };
    while send().is_ok() {}
    say("refused");
    wait_for_end();
}

/// Tries every way to write the tables or to change the size of what is shared.
pub(crate) fn write_tables(path: &Path) {
    let raw = join(path);
    let again = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{}", raw.region.as_raw_fd()));
    for file in [Some(&raw.region), again.as_ref().ok()].into_iter().flatten() {
        assert!(file.write_at(&[0xff; 8], 4096).is_err(), "wrote a table");
        assert!(file.set_len(0).is_err(), "cut the tables");
        assert!(file.set_len(1 << 40).is_err(), "grew the tables");
        assert!(rustix::fs::fallocate(file, punch(), 0, 1 << 20).is_err(), "punched a hole");
        assert!(!maps_writable(file), "mapped the tables writable");
    }
    assert!(raw.slot.set_len(0).is_err(), "cut the slot memory: the daemon would fault");
    say("ready");
    wait_for_end();
}

const fn punch() -> rustix::fs::FallocateFlags {
    rustix::fs::FallocateFlags::PUNCH_HOLE.union(rustix::fs::FallocateFlags::KEEP_SIZE)
}

fn maps_writable(file: &File) -> bool {
    use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};
    let file = FileOffset::new(file.try_clone().unwrap(), 0);
    GuestMemoryMmap::<()>::from_ranges_with_files([(GuestAddress(0), 4096, Some(file))]).is_ok()
}

/// Makes the doorbell's file, which is the daemon's too, blocking, and takes away what rings.
pub(crate) fn block_doorbell(path: &Path) {
    let raw = join(path);
    rustix::fs::fcntl_setfl(&raw.doorbell, OFlags::empty()).unwrap();
    say("ready");
    for _ in 0..10_000 {
        raw.ring();
        let mut count = [0; 8];
        rustix::io::read(&raw.doorbell, &mut count).unwrap();
    }
    say("done");
    wait_for_end();
}

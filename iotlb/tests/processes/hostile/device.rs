//! The device process: it speaks the protocol by hand and writes what it likes.

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
pub(super) struct Raw {
    socket: OwnedFd,
    region: File,
    slot: File,
    doorbell: OwnedFd,
}

pub(super) const HELLO: &[u8; 16] = b"\x01\0\0\0\x02\0\0\0viotlb\0\x01";

/// A socket that is connected to the daemon, and has said nothing.
pub(super) fn knock(path: &Path) -> OwnedFd {
    let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
    connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
    socket
}

/// Sends one packet. What becomes of it is the daemon's to say.
pub(super) fn say_bytes(socket: &OwnedFd, bytes: &[u8]) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _heard = sendmsg(socket, &[IoSlice::new(bytes)], &mut Default::default(), flags);
}

pub(super) fn join(path: &Path) -> Raw {
    let socket = knock(path);
    say_bytes(&socket, HELLO);
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
    pub(super) fn put(&self, offset: usize, word: u64) {
        self.slot.write_all_at(&word.to_le_bytes(), offset as u64).unwrap();
    }

    pub(super) fn ring(&self) {
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

/// Fills the fault ring with what is no record.
fn fill_ring(raw: &Raw) {
    for word in 0..FAULT_RECORDS * 4 {
        raw.put(offset_of!(SlotMemory, faults) + word * 8, u64::MAX - word as u64);
    }
}

/// Puts nonsense into the fault ring and its positions, and rings without end.
pub(crate) fn forge_rings(path: &Path) {
    let raw = join(path);
    fill_ring(&raw);
    say("ready");
    let taken = offset_of!(SlotMemory, fault_head) + offset_of!(FaultHead, taken);
    for round in 0u64..100_000 {
        raw.put(PUT, round.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        raw.put(taken, round << 60);
        raw.ring();
    }
    // messages that are none, more than are read at once
    (0..64).for_each(|length| say_bytes(&raw.socket, &vec![0xff; length]));
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

/// Fault records that no honest device writes: other endpoints' numbers in every word, no PASIDs, all
/// flags, and one that is whole.
pub(super) const FORGED: [[u64; 4]; 5] = [
    [0x20, 0x20, 0x20, 0x20],
    [u64::MAX, 0, u64::MAX, u64::MAX],
    [0x1000, 1 << 20, 1, 0x20],
    [0x1000, u64::MAX, 1, 0x20],
    [0x2000, 0x7_ffff, 1 | 1 << 8 | 0x20 << 32, 0x20],
];

/// Puts [`FORGED`] into the fault ring, one batch at each line that it hears.
pub(crate) fn forge_faults(path: &Path) {
    let raw = join(path);
    say("ready");
    let mut put = 0;
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).unwrap() != 0 {
        for record in FORGED {
            let at = offset_of!(SlotMemory, faults) + 32 * (put % FAULT_RECORDS);
            record.iter().enumerate().for_each(|(word, value)| raw.put(at + 8 * word, *value));
            put += 1;
        }
        raw.put(PUT, put as u64);
        raw.ring();
    }
}

/// Rings the doorbell until it is killed, and claims a full ring of nonsense each time.
pub(crate) fn flood_doorbell(path: &Path) {
    let raw = join(path);
    fill_ring(&raw);
    say("ready");
    for round in 1.. {
        raw.put(PUT, round * FAULT_RECORDS as u64);
        raw.ring();
    }
}

/// Says that it is in the oldest section, again and again, until it is killed.
pub(crate) fn never_leave(path: &Path) {
    let raw = join(path);
    raw.put(DEVICE_LINE + offset_of!(DeviceLine, slots_used), 1);
    raw.put(offset_of!(SlotMemory, readers), 1);
    say("ready");
    loop {
        raw.put(0, 0);
        raw.put(offset_of!(SlotMemory, readers), 1);
    }
}

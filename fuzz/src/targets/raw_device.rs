//! A device process that speaks the socket's protocol by hand and writes what it likes.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::{MaybeUninit, offset_of};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketAddrUnix,
    SocketType, connect, recvmsg, sendmsg, socket,
};
use viommu_iotlb::abi::{DeviceLine, FaultHead, SlotMemory, VERSION};

use crate::Input;

/// A connection that has said HELLO.
#[derive(Debug)]
pub(crate) struct Caller {
    socket: OwnedFd,
}

/// A connection that was welcomed.
#[derive(Debug)]
pub(crate) struct Raw {
    socket: OwnedFd,
    slot: File,
    doorbell: OwnedFd,
}

/// Where words of the slot memory are that mean something.
const PLACES: [usize; 8] = [
    offset_of!(SlotMemory, readers),
    offset_of!(SlotMemory, pins),
    offset_of!(SlotMemory, faults),
    offset_of!(SlotMemory, device) + offset_of!(DeviceLine, put),
    offset_of!(SlotMemory, device) + offset_of!(DeviceLine, slots_used),
    offset_of!(SlotMemory, device) + offset_of!(DeviceLine, pins_used),
    offset_of!(SlotMemory, fault_head) + offset_of!(FaultHead, taken),
    0,
];

const VALUES: [u64; 8] = [0, 1, 2, 256, 257, 1 << 63, u64::MAX - 1, u64::MAX];

impl Caller {
    pub(crate) fn new(path: &Path) -> Self {
        let socket = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let caller = Self { socket };
        let hello = [1u32.to_le_bytes(), VERSION.to_le_bytes()].concat();
        send(&caller.socket, &[&hello[..], b"viotlb\0\x01"].concat());
        caller
    }

    /// What the daemon gave; `None` if it refused.
    pub(crate) fn welcomed(self) -> Option<Raw> {
        let mut bytes = [0; 64];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        recvmsg(&self.socket, &mut slices, &mut control, flags).ok()?;
        let mut fds = Vec::new();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(sent) = message {
                fds.extend(sent);
            }
        }
        let [_region, slot, doorbell] = <[OwnedFd; 3]>::try_from(fds).ok()?;
        Some(Raw { socket: self.socket, slot: slot.into(), doorbell })
    }
}

/// A socket that is shut or full is the daemon's right.
fn send(socket: &OwnedFd, bytes: &[u8]) {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _refused = sendmsg(socket, &[IoSlice::new(bytes)], &mut Default::default(), flags);
}

impl Raw {
    /// Changes a word of the slot memory.
    pub(crate) fn forge(&self, input: &mut Input<'_>) {
        let place = input.pick(&PLACES) + 8 * usize::from(input.u8());
        let value = if input.u8() & 1 == 0 { input.pick(&VALUES) } else { input.u64() };
        self.slot.write_all_at(&value.to_le_bytes(), place as u64).unwrap();
    }

    pub(crate) fn ring(&self) {
        let _full = rustix::io::write(&self.doorbell, &1u64.to_ne_bytes());
    }

    /// Sends something, of a kind that exists more often than not.
    pub(crate) fn say(&self, input: &mut Input<'_>) {
        let mut bytes = u32::from(input.u8() % 10).to_le_bytes().to_vec();
        bytes.extend((0..input.u8() % 64).map(|_| input.u8()));
        if input.u8() & 1 == 0 {
            // as long as FUNCTION_RESET and FUNCTION_STARTED are
            bytes.resize(8, 0);
        }
        send(&self.socket, &bytes);
    }
}

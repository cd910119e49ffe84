//! The messages of the device socket: one fixed-size packet each, on `SOCK_SEQPACKET`.
//!
//! ```text
//! device                          daemon
//! HELLO {version}         ->
//!                         <-      WELCOME {endpoint, ..} + [region, slot, doorbell]
//!                         <-   or REFUSED {version, reason}, and the socket is closed
//! FUNCTION_RESET {n}      ->
//!                         <-      DONE {n}, after the endpoint's old translations are out of use
//! FUNCTION_STARTED {n}    ->
//!                         <-      DONE {n}
//!                         <-      REVOKE: a drain waits for this process
//! ```
//!
//! HELLO and REFUSED have the same bytes in every version.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::abi;

/// Descriptors that come with a WELCOME.
pub(crate) const WELCOME_FDS: usize = 3;

/// No message is longer.
const LONGEST: usize = 64;

const HELLO: u32 = 1;
const WELCOME: u32 = 2;
const REFUSED: u32 = 3;
const FUNCTION_RESET: u32 = 4;
const FUNCTION_STARTED: u32 = 5;
const DONE: u32 = 6;
const REVOKE: u32 = 7;

/// Tells an unrelated client from a device.
const HELLO_MAGIC: u64 = abi::MAGIC;

#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct HelloWire {
    kind: u32,
    version: u32,
    magic: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RefusedWire {
    kind: u32,
    version: u32,
    reason: u32,
    reserved: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct WelcomeWire {
    kind: u32,
    version: u32,
    endpoint: u32,
    pasid_bits: u32,
    root: u64,
    region_bytes: u64,
    slot_bytes: u64,
    root_config: u32,
    reserved: u32,
}

/// FUNCTION_RESET, FUNCTION_STARTED, DONE (a sequence number) and REVOKE (0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ShortWire {
    kind: u32,
    sequence: u32,
}

/// Why a daemon has no place for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RefusedReason {
    /// Another version of this protocol.
    Version,
    /// The endpoint is cut off until the IOMMU is reset.
    CutOff,
    /// The endpoint has as many connections as it may have.
    Full,
    /// A reason that this version does not know.
    Other(u32),
}

impl RefusedReason {
    const fn raw(self) -> u32 {
        match self {
            Self::Version => 1,
            Self::CutOff => 2,
            Self::Full => 3,
            Self::Other(raw) => raw,
        }
    }

    const fn from_raw(raw: u32) -> Self {
        match raw {
            1 => Self::Version,
            2 => Self::CutOff,
            3 => Self::Full,
            other => Self::Other(other),
        }
    }
}

/// What a device needs to know about its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Welcome {
    pub(crate) endpoint: u32,
    pub(crate) pasid_bits: u32,
    /// Address of the root table, or of the stream table, of the endpoint's segment.
    pub(crate) root: u64,
    /// SMMUv3: what `STRTAB_BASE_CFG` says of the stream table.
    pub(crate) root_config: u32,
    pub(crate) region_bytes: u64,
    pub(crate) slot_bytes: u64,
}

impl Welcome {
    const fn wire(&self) -> WelcomeWire {
        let Self { endpoint, pasid_bits, root, root_config, region_bytes, slot_bytes } = *self;
        WelcomeWire {
            kind: WELCOME,
            version: abi::VERSION,
            endpoint,
            pasid_bits,
            root,
            region_bytes,
            slot_bytes,
            root_config,
            reserved: 0,
        }
    }
}

impl From<WelcomeWire> for Welcome {
    fn from(wire: WelcomeWire) -> Self {
        let WelcomeWire { endpoint, pasid_bits, root, root_config, region_bytes, .. } = wire;
        let slot_bytes = wire.slot_bytes;
        Self { endpoint, pasid_bits, root, root_config, region_bytes, slot_bytes }
    }
}

/// A message, either way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Message {
    Hello { version: u32 },
    Welcome(Welcome),
    Refused { version: u32, reason: RefusedReason },
    FunctionReset { sequence: u32 },
    FunctionStarted { sequence: u32 },
    Done { sequence: u32 },
    Revoke,
}

impl Message {
    fn short(kind: u32, sequence: u32) -> Vec<u8> {
        ShortWire { kind, sequence }.as_bytes().to_vec()
    }

    fn encode(&self) -> Vec<u8> {
        match *self {
            Self::Hello { version } => {
                HelloWire { kind: HELLO, version, magic: HELLO_MAGIC }.as_bytes().to_vec()
            }
            Self::Welcome(welcome) => welcome.wire().as_bytes().to_vec(),
            Self::Refused { version, reason } => {
                let wire =
                    RefusedWire { kind: REFUSED, version, reason: reason.raw(), reserved: 0 };
                wire.as_bytes().to_vec()
            }
            Self::FunctionReset { sequence } => Self::short(FUNCTION_RESET, sequence),
            Self::FunctionStarted { sequence } => Self::short(FUNCTION_STARTED, sequence),
            Self::Done { sequence } => Self::short(DONE, sequence),
            Self::Revoke => Self::short(REVOKE, 0),
        }
    }

    /// The message in `bytes`; `None` for anything else, a byte too many included.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let (kind, _) = u32::read_from_prefix(bytes).ok()?;
        match kind {
            HELLO => {
                let wire = HelloWire::read_from_bytes(bytes).ok()?;
                (wire.magic == HELLO_MAGIC).then_some(Self::Hello { version: wire.version })
            }
            WELCOME => {
                let wire = WelcomeWire::read_from_bytes(bytes).ok()?;
                (wire.version == abi::VERSION).then_some(Self::Welcome(wire.into()))
            }
            REFUSED => {
                let wire = RefusedWire::read_from_bytes(bytes).ok()?;
                let reason = RefusedReason::from_raw(wire.reason);
                Some(Self::Refused { version: wire.version, reason })
            }
            _ => Self::decode_short(ShortWire::read_from_bytes(bytes).ok()?),
        }
    }

    fn decode_short(ShortWire { kind, sequence }: ShortWire) -> Option<Self> {
        match kind {
            FUNCTION_RESET => Some(Self::FunctionReset { sequence }),
            FUNCTION_STARTED => Some(Self::FunctionStarted { sequence }),
            DONE => Some(Self::Done { sequence }),
            REVOKE => Some(Self::Revoke),
            _ => None,
        }
    }

    /// Sends the message with `fds`, never waiting.
    ///
    /// # Errors
    /// `WouldBlock` if the peer does not read; what the kernel says.
    pub(crate) fn send(&self, socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = self.encode();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(WELCOME_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
        Ok(())
    }
}

/// What came out of a socket.
#[derive(Debug)]
pub(crate) enum Received {
    /// A message and its descriptors.
    Message(Message, Vec<OwnedFd>),
    /// Bytes that are no message.
    Garbage,
    /// Nothing more to read now.
    Empty,
    /// The peer is gone.
    Closed,
}

/// Takes one packet out of `socket`. Waits only if `flags` and the socket say so.
pub(crate) fn receive(socket: impl AsFd, flags: RecvFlags) -> Received {
    let mut bytes = [0; LONGEST];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(WELCOME_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(&mut bytes)];
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = loop {
        match rustix::net::recvmsg(&socket, &mut slices, &mut control, flags) {
            Ok(received) => break received,
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Received::Empty,
            Err(_) => return Received::Closed,
        }
    };
    // collected before anything else: what is not taken here would leak
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            fds.extend(sent);
        }
    }
    if received.bytes == 0 {
        return Received::Closed;
    }
    match bytes.get(..received.bytes).and_then(Message::decode) {
        Some(message) => Received::Message(message, fds),
        None => Received::Garbage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Message; 7] = [
        Message::Hello { version: 9 },
        Message::Welcome(Welcome {
            endpoint: 0x18,
            pasid_bits: 20,
            root: 1 << 51,
            root_config: 0x1_0188,
            region_bytes: 1 << 30,
            slot_bytes: 0x6000,
        }),
        Message::Refused { version: 2, reason: RefusedReason::Version },
        Message::FunctionReset { sequence: 1 },
        Message::FunctionStarted { sequence: 2 },
        Message::Done { sequence: u32::MAX },
        Message::Revoke,
    ];

    #[test]
    fn every_message_survives_its_bytes_and_no_other_length_is_one() {
        for message in ALL {
            let mut bytes = message.encode();
            assert!(bytes.len() < LONGEST);
            assert_eq!(Message::decode(&bytes), Some(message));
            bytes.push(0);
            assert_eq!(Message::decode(&bytes), None, "{message:?} and a byte");
            bytes.truncate(bytes.len() - 2);
            assert_eq!(Message::decode(&bytes), None, "{message:?} less a byte");
        }
        assert_eq!(Message::decode(&[]), None);
    }

    #[test]
    fn hello_and_refused_keep_their_bytes_in_every_version() {
        let hello = Message::Hello { version: 1 }.encode();
        assert_eq!(hello, b"\x01\0\0\0\x01\0\0\0viotlb\0\x01");
        let refused = Message::Refused { version: 1, reason: RefusedReason::CutOff }.encode();
        assert_eq!(refused, b"\x03\0\0\0\x01\0\0\0\x02\0\0\0\0\0\0\0");
    }
}

//! The structures of the extension (`docs/aux-domains.md`): little-endian, packed.
//!
//! As in the parent module, each holds one direction of a request.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Head;

/// Readable part of AUX_ENABLE and AUX_DISABLE.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct AuxSwitchRequest {
    pub(in crate::protocol) head: Head,
    pub(in crate::protocol) endpoint: U32,
    pub(in crate::protocol) reserved: [u8; 8],
}

/// Readable part of AUX_ATTACH.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct AuxAttachRequest {
    pub(in crate::protocol) head: Head,
    pub(in crate::protocol) domain: U32,
    pub(in crate::protocol) endpoint: U32,
    pub(in crate::protocol) pasid: U32,
    pub(in crate::protocol) flags: U32,
    pub(in crate::protocol) reserved: [u8; 4],
}

/// What the device writes for AUX_ATTACH before the tail.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct AuxAttachReply {
    pub(in crate::protocol) pasid: U32,
    pub(in crate::protocol) reserved: [u8; 4],
}

/// Readable part of AUX_DETACH.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct AuxDetachRequest {
    pub(in crate::protocol) head: Head,
    pub(in crate::protocol) domain: U32,
    pub(in crate::protocol) endpoint: U32,
    pub(in crate::protocol) pasid: U32,
    pub(in crate::protocol) reserved: [u8; 8],
}

/// Readable part of GET_ATTR.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct GetAttrRequest {
    pub(in crate::protocol) head: Head,
    pub(in crate::protocol) domain: U32,
    pub(in crate::protocol) endpoint: U32,
    pub(in crate::protocol) attr: U16,
    pub(in crate::protocol) reserved: [u8; 10],
}

/// What the device writes for GET_ATTR before the tail.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct GetAttrReply {
    pub(in crate::protocol) value: U64,
}

/// Readable part of BIND_TABLE.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct BindTableRequest {
    pub(in crate::protocol) head: Head,
    pub(in crate::protocol) domain: U32,
    pub(in crate::protocol) format: U16,
    pub(in crate::protocol) reserved: [u8; 2],
    pub(in crate::protocol) flags: U32,
    pub(in crate::protocol) root: U64,
    pub(in crate::protocol) arg0: U64,
    pub(in crate::protocol) arg1: U64,
    pub(in crate::protocol) parent: U32,
    pub(in crate::protocol) reserved1: [u8; 20],
}

/// Readable part of UNBIND_TABLE.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct UnbindTableRequest {
    pub(in crate::protocol) head: Head,
    pub(in crate::protocol) domain: U32,
    pub(in crate::protocol) reserved: [u8; 8],
}

/// Readable part of INVALIDATE; `virt_end` is inclusive.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct InvalidateRequest {
    pub(in crate::protocol) head: Head,
    pub(in crate::protocol) scope: U16,
    pub(in crate::protocol) flags: U16,
    pub(in crate::protocol) domain: U32,
    pub(in crate::protocol) pasid: U32,
    pub(in crate::protocol) virt_start: U64,
    pub(in crate::protocol) virt_end: U64,
    pub(in crate::protocol) asid: U32,
    pub(in crate::protocol) reserved: [u8; 12],
}

/// Property AUX.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct AuxProperty {
    pub(in crate::protocol) kind: U16,
    pub(in crate::protocol) length: U16,
    pub(in crate::protocol) pasid_bits: u8,
    pub(in crate::protocol) reserved: [u8; 3],
    pub(in crate::protocol) flags: U32,
}

/// Property TABLE_FORMAT.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(in crate::protocol) struct TableFormatProperty {
    pub(in crate::protocol) kind: U16,
    pub(in crate::protocol) length: U16,
    pub(in crate::protocol) format: U16,
    pub(in crate::protocol) input_bits: u8,
    pub(in crate::protocol) output_bits: u8,
    pub(in crate::protocol) page_size_mask: U64,
    pub(in crate::protocol) flags: U64,
}

const _: () = {
    assert!(size_of::<AuxSwitchRequest>() == 16 && size_of::<UnbindTableRequest>() == 16);
    assert!(size_of::<AuxAttachRequest>() == 24 && size_of::<AuxAttachReply>() == 8);
    assert!(size_of::<AuxDetachRequest>() == 24);
    assert!(size_of::<GetAttrRequest>() == 24 && size_of::<GetAttrReply>() == 8);
    assert!(size_of::<BindTableRequest>() == 64 && size_of::<InvalidateRequest>() == 48);
    assert!(size_of::<AuxProperty>() == 12 && size_of::<TableFormatProperty>() == 24);
};

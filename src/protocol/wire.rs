//! The structures as they lie in guest memory (virtio 1.4, 5.13.4 and 5.13.6): little-endian,
//! packed.
//!
//! Each is named after the specification's, and holds only one direction: what the device reads of
//! a request, or what it writes. Those of the extension are in [`aux`].

pub(super) mod aux;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `struct virtio_iommu_req_head`; `reserved` is ignored (O3).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Head {
    pub(super) kind: u8,
    pub(super) reserved: [u8; 3],
}

/// `struct virtio_iommu_req_tail`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Tail {
    pub(super) status: u8,
    pub(super) reserved: [u8; 3],
}

/// Readable part of `struct virtio_iommu_req_attach`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct AttachRequest {
    pub(super) head: Head,
    pub(super) domain: U32,
    pub(super) endpoint: U32,
    pub(super) flags: U32,
    pub(super) reserved: [u8; 4],
}

/// Readable part of `struct virtio_iommu_req_detach`; `reserved` is ignored (D1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct DetachRequest {
    pub(super) head: Head,
    pub(super) domain: U32,
    pub(super) endpoint: U32,
    pub(super) reserved: [u8; 8],
}

/// Readable part of `struct virtio_iommu_req_map`; `virt_end` is inclusive.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct MapRequest {
    pub(super) head: Head,
    pub(super) domain: U32,
    pub(super) virt_start: U64,
    pub(super) virt_end: U64,
    pub(super) phys_start: U64,
    pub(super) flags: U32,
}

/// Readable part of `struct virtio_iommu_req_unmap`; `virt_end` is inclusive.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct UnmapRequest {
    pub(super) head: Head,
    pub(super) domain: U32,
    pub(super) virt_start: U64,
    pub(super) virt_end: U64,
    pub(super) reserved: [u8; 4],
}

/// Readable part of `struct virtio_iommu_req_probe`; `reserved` is ignored (P1).
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ProbeRequest {
    pub(super) head: Head,
    pub(super) endpoint: U32,
    pub(super) reserved: [u8; 64],
}

/// `struct virtio_iommu_probe_resv_mem`; `end` is inclusive.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct ResvMemProperty {
    pub(super) kind: U16,
    pub(super) length: U16,
    pub(super) subtype: u8,
    pub(super) reserved: [u8; 3],
    pub(super) start: U64,
    pub(super) end: U64,
}

/// `struct virtio_iommu_fault`; `pasid` is `reserved1` to a driver without the extension.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Fault {
    pub(super) reason: u8,
    pub(super) reserved: [u8; 3],
    pub(super) flags: U32,
    pub(super) endpoint: U32,
    pub(super) pasid: U32,
    pub(super) address: U64,
}

/// `struct virtio_iommu_config`; both ends are inclusive.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(super) struct Config {
    pub(super) page_size_mask: U64,
    pub(super) input_start: U64,
    pub(super) input_end: U64,
    pub(super) domain_start: U32,
    pub(super) domain_end: U32,
    pub(super) probe_size: U32,
    pub(super) bypass: u8,
    pub(super) reserved: [u8; 3],
}

const _: () = {
    assert!(size_of::<Head>() == 4 && size_of::<Tail>() == 4);
    assert!(size_of::<AttachRequest>() == 20 && size_of::<DetachRequest>() == 20);
    assert!(size_of::<MapRequest>() == 36 && size_of::<UnmapRequest>() == 28);
    assert!(size_of::<ProbeRequest>() == 72 && size_of::<ResvMemProperty>() == 24);
    assert!(size_of::<Fault>() == 24 && size_of::<Config>() == 40);
};

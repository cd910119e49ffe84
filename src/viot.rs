//! The ACPI table that tells a guest which functions are behind the IOMMU (VIOT, ACPI 6.5, 5.2.30).
//!
//! For a VMM that makes none for us. The table has one node for the IOMMU, a PCI function, and one
//! for each range of functions behind it. An endpoint's id is its segment and requester id, as
//! everywhere in this project.

use viommu_pasid::EndpointId;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{Immutable, IntoBytes};

use crate::config::FunctionRange;

/// The highest requester id of a segment.
const LAST_BDF: u32 = 0xffff;
/// Offset of the IOMMU's node, the first one; the ranges' nodes name it.
const IOMMU_NODE: u16 = 48;
/// Where the checksum is.
const CHECKSUM_AT: usize = 9;
/// A PCI range node.
const NODE_PCI_RANGE: u8 = 1;
/// A virtio-iommu on PCI.
const NODE_VIRTIO_PCI: u8 = 3;

/// The table's header, ACPI's and VIOT's own.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Header {
    signature: [u8; 4],
    length: U32,
    revision: u8,
    checksum: u8,
    oem_id: [u8; 6],
    oem_table_id: [u8; 8],
    oem_revision: U32,
    creator_id: [u8; 4],
    creator_revision: U32,
    node_count: U16,
    node_offset: U16,
    reserved: [u8; 8],
}

/// The node of a virtio-iommu on PCI.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct IommuNode {
    kind: u8,
    reserved: u8,
    length: U16,
    segment: U16,
    bdf: U16,
    reserved1: [u8; 8],
}

/// The node of a range of PCI functions; both ends are inclusive.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct RangeNode {
    kind: u8,
    reserved: u8,
    length: U16,
    endpoint_start: U32,
    segment_start: U16,
    segment_end: U16,
    bdf_start: U16,
    bdf_end: U16,
    output_node: U16,
    reserved1: [u8; 6],
}

const _: () = {
    assert!(size_of::<Header>() == 48 && size_of::<IommuNode>() == 16);
    assert!(size_of::<RangeNode>() == 24);
};

/// Functions that make no table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ViotError {
    /// An endpoint would have two nodes.
    #[error("{0} is in two of the ranges: name each function once")]
    Overlap(EndpointId),
    /// Nothing is behind the IOMMU.
    #[error("nothing is behind the IOMMU {0} but itself: name another function")]
    Nothing(EndpointId),
    /// More nodes than the table can count; each segment of a range takes one.
    #[error("the ranges take more nodes than the {max} that the table can count", max = u16::MAX)]
    TooManyNodes,
}

/// The whole table, checksum included, for the virtio-iommu at `iommu` and `endpoints` behind it.
///
/// The IOMMU's own function is left out of the ranges: it is not behind itself, and Linux refuses a
/// table that says so.
///
/// # Errors
/// [`ViotError`].
pub fn table(iommu: EndpointId, endpoints: &[FunctionRange]) -> Result<Vec<u8>, ViotError> {
    check_disjoint(endpoints)?;
    let mut nodes = 0_u16;
    let mut body = Vec::new();
    let without_iommu = endpoints.iter().flat_map(|range| without(range, iommu));
    for piece in without_iommu.flat_map(by_segment) {
        nodes = nodes.checked_add(1).ok_or(ViotError::TooManyNodes)?;
        body.extend_from_slice(range_node(&piece).as_bytes());
    }
    if nodes == 0 {
        return Err(ViotError::Nothing(iommu));
    }
    let nodes = nodes.checked_add(1).ok_or(ViotError::TooManyNodes)?;
    let length = u32::try_from(size_of::<Header>() + size_of::<IommuNode>() + body.len())
        .map_err(|_| ViotError::TooManyNodes)?;
    let mut table = header(length, nodes).as_bytes().to_vec();
    table.extend_from_slice(iommu_node(iommu).as_bytes());
    table.append(&mut body);
    let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = table.get_mut(CHECKSUM_AT) {
        *checksum = sum.wrapping_neg();
    }
    Ok(table)
}

fn check_disjoint(ranges: &[FunctionRange]) -> Result<(), ViotError> {
    let mut sorted: Vec<_> = ranges.iter().collect();
    sorted.sort_by_key(|range| range.first());
    for (lower, upper) in sorted.iter().zip(sorted.iter().skip(1)) {
        if upper.first() <= lower.last() {
            return Err(ViotError::Overlap(upper.first()));
        }
    }
    Ok(())
}

/// What is left of `range` without `hole`: nothing, one piece or two.
fn without(range: &FunctionRange, hole: EndpointId) -> impl Iterator<Item = FunctionRange> + use<> {
    let (first, last) = (range.first(), range.last());
    let pieces = if first <= hole && hole <= last {
        let below = hole.raw().checked_sub(1).map(EndpointId::new);
        let above = hole.raw().checked_add(1).map(EndpointId::new);
        [
            below.and_then(|below| FunctionRange::new(first, below)),
            above.and_then(|above| FunctionRange::new(above, last)),
        ]
    } else {
        [Some(*range), None]
    };
    pieces.into_iter().flatten()
}

/// `range` cut at the ends of segments: a node's bus, device and function go from one to another on
/// each of its segments alike, which is not what a range of ids means.
fn by_segment(range: FunctionRange) -> impl Iterator<Item = FunctionRange> {
    (range.first().segment()..=range.last().segment()).filter_map(move |segment| {
        let start = u32::from(segment) << 16;
        let first = range.first().max(EndpointId::new(start));
        let last = range.last().min(EndpointId::new(start | LAST_BDF));
        FunctionRange::new(first, last)
    })
}

fn header(length: u32, nodes: u16) -> Header {
    Header {
        signature: *b"VIOT",
        length: U32::new(length),
        revision: 0,
        checksum: 0,
        oem_id: *b"VIOMMU",
        oem_table_id: *b"VHOSTUSR",
        oem_revision: U32::new(1),
        creator_id: *b"VIOM",
        creator_revision: U32::new(1),
        node_count: U16::new(nodes),
        node_offset: U16::new(IOMMU_NODE),
        reserved: [0; 8],
    }
}

fn iommu_node(iommu: EndpointId) -> IommuNode {
    IommuNode {
        kind: NODE_VIRTIO_PCI,
        reserved: 0,
        length: U16::new(16),
        segment: U16::new(iommu.segment()),
        bdf: U16::new(iommu.bdf()),
        reserved1: [0; 8],
    }
}

/// The node of a range that lies on one segment.
fn range_node(range: &FunctionRange) -> RangeNode {
    RangeNode {
        kind: NODE_PCI_RANGE,
        reserved: 0,
        length: U16::new(24),
        endpoint_start: U32::new(range.first().raw()),
        segment_start: U16::new(range.first().segment()),
        segment_end: U16::new(range.last().segment()),
        bdf_start: U16::new(range.first().bdf()),
        bdf_end: U16::new(range.last().bdf()),
        output_node: U16::new(IOMMU_NODE),
        reserved1: [0; 6],
    }
}

#[cfg(test)]
mod tests;

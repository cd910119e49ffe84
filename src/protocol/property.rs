//! What PROBE tells about an endpoint.

use viommu_pgtable::IovaRange;
use zerocopy::little_endian::{U16, U64};

use super::wire::ResvMemProperty;

/// `VIRTIO_IOMMU_PROBE_T_RESV_MEM`.
const RESV_MEM: u16 = 1;
/// What `length` says: the property without type and length (P5).
const RESV_MEM_LENGTH: u16 = 20;
/// Bytes that one reserved region takes in the properties of a PROBE.
pub const RESV_MEM_BYTES: usize = size_of::<ResvMemProperty>();

/// What a reserved region is for (virtio 1.4, 5.13.6.7.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResvKind {
    /// Never to be mapped; accesses go nowhere.
    Reserved,
    /// The doorbell of message-signalled interrupts; accesses are not translated.
    Msi,
}

/// A region of an endpoint's IOVAs that no MAP may touch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ResvMem {
    /// What it is for.
    pub kind: ResvKind,
    /// Where it is.
    pub range: IovaRange,
}

impl ResvMem {
    /// The property's bytes.
    #[must_use]
    pub fn encode(&self) -> [u8; RESV_MEM_BYTES] {
        let subtype = match self.kind {
            ResvKind::Reserved => 0,
            ResvKind::Msi => 1,
        };
        let property = ResvMemProperty {
            kind: U16::new(RESV_MEM),
            length: U16::new(RESV_MEM_LENGTH),
            subtype,
            reserved: [0; 3],
            start: U64::new(self.range.start().raw()),
            end: U64::new(self.range.last().raw()),
        };
        zerocopy::transmute!(property)
    }
}

#[cfg(test)]
mod tests {
    use viommu_pgtable::Iova;

    use super::*;

    #[test]
    fn an_msi_window_is_encoded_as_the_specification_lays_it_out() {
        let range = IovaRange::new(Iova::new(0xfee0_0000), Iova::new(0xfeef_ffff)).unwrap();
        let bytes = ResvMem { kind: ResvKind::Msi, range }.encode();
        assert_eq!(
            bytes,
            [
                1, 0, 20, 0, 1, 0, 0, 0, 0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0xff, 0xff, 0xef, 0xfe, 0,
                0, 0, 0
            ]
        );
    }
}

//! What PROBE tells about an endpoint.

use bitflags::bitflags;
use viommu_backend::{EndpointCapabilities, FirstFormat, TableFormat};
use viommu_pgtable::IovaRange;
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use super::wire::{self, ResvMemProperty};

/// `VIRTIO_IOMMU_PROBE_T_RESV_MEM`.
const RESV_MEM: u16 = 1;
/// What `length` says: the property without type and length (P5).
const RESV_MEM_LENGTH: u16 = 20;
/// Property AUX of the extension (`docs/aux-domains.md`, 5), and what its `length` says.
const AUX: u16 = 0xf00;
const AUX_LENGTH: u16 = 8;
/// Property TABLE_FORMAT, likewise.
const TABLE_FORMAT: u16 = 0xf01;
const TABLE_FORMAT_LENGTH: u16 = 20;
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

bitflags! {
    /// What an endpoint's PASIDs can be used for: flags of property AUX.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    pub struct AuxFlags: u32 {
        /// Each PASID may have another second level.
        const OWN_S2 = 1 << 0;
        /// BIND_TABLE with PARENT.
        const PARENT = 1 << 1;
        /// BIND_TABLE with IDENTITY_S2.
        const IDENTITY_S2 = 1 << 2;
        /// The device chooses PASIDs if asked.
        const PASID_ANY = 1 << 3;
    }
}

/// Property AUX: the endpoint can have PASIDs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuxProperty {
    /// Width of its PASIDs, bits; 1 to 20.
    pub pasid_bits: u8,
    /// What they can be used for.
    pub flags: AuxFlags,
}

impl AuxProperty {
    /// The property of an endpoint with these capabilities; `None` if it has no PASIDs.
    #[must_use]
    pub fn of(endpoint: &EndpointCapabilities) -> Option<Self> {
        let mut flags = AuxFlags::PASID_ANY;
        flags.set(AuxFlags::OWN_S2, endpoint.own_second_level);
        flags.set(AuxFlags::PARENT, endpoint.parent);
        flags.set(AuxFlags::IDENTITY_S2, endpoint.identity);
        (endpoint.pasid_bits > 0).then_some(Self { pasid_bits: endpoint.pasid_bits, flags })
    }

    fn to_wire(self) -> wire::aux::AuxProperty {
        wire::aux::AuxProperty {
            kind: U16::new(AUX),
            length: U16::new(AUX_LENGTH),
            pasid_bits: self.pasid_bits,
            reserved: [0; 3],
            flags: U32::new(self.flags.bits()),
        }
    }
}

/// Property TABLE_FORMAT: a table of this kind can be bound.
fn format_to_wire(format: &TableFormat) -> wire::aux::TableFormatProperty {
    let number = match format.format {
        FirstFormat::VtdFirst => 1,
        FirstFormat::ArmStage1 => 2,
    };
    wire::aux::TableFormatProperty {
        kind: U16::new(TABLE_FORMAT),
        length: U16::new(TABLE_FORMAT_LENGTH),
        format: U16::new(number),
        input_bits: format.input_bits,
        output_bits: format.output_bits,
        page_size_mask: U64::new(format.page_size_mask),
        flags: U64::new(0),
    }
}

/// All that a PROBE tells of one endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Properties<'a> {
    /// Reserved regions.
    pub regions: &'a [ResvMem],
    /// What its PASIDs can be used for.
    pub aux: Option<AuxProperty>,
    /// Tables that can be bound.
    pub formats: &'a [TableFormat],
}

impl Properties<'_> {
    /// Bytes that the properties take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let aux = self.aux.map_or(0, |_| size_of::<wire::aux::AuxProperty>());
        let formats = self.formats.len() * size_of::<wire::aux::TableFormatProperty>();
        self.regions.len() * RESV_MEM_BYTES + aux + formats
    }

    /// Writes the properties one after the other; what follows them in `bytes` stays. One for which
    /// no room is left is not written, nor is any after it.
    pub(super) fn encode(&self, mut bytes: &mut [u8]) {
        let mut put = |property: &[u8]| {
            let Some((room, rest)) =
                std::mem::take(&mut bytes).split_at_mut_checked(property.len())
            else {
                return;
            };
            room.copy_from_slice(property);
            bytes = rest;
        };
        self.regions.iter().for_each(|region| put(&region.encode()));
        if let Some(aux) = self.aux {
            put(aux.to_wire().as_bytes());
        }
        self.formats.iter().for_each(|format| put(format_to_wire(format).as_bytes()));
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

    #[test]
    fn an_endpoint_with_pasids_tells_their_width_and_the_tables_that_it_takes() {
        let format = |format, input_bits| TableFormat {
            format,
            input_bits,
            output_bits: 52,
            page_size_mask: 0x4020_1000,
        };
        let endpoint = EndpointCapabilities {
            pasid_bits: 20,
            own_second_level: false,
            parent: true,
            identity: true,
            formats: vec![format(FirstFormat::VtdFirst, 57), format(FirstFormat::ArmStage1, 48)],
        };
        let properties = Properties {
            regions: &[],
            aux: AuxProperty::of(&endpoint),
            formats: &endpoint.formats,
        };
        let mut bytes = [0; 60];
        assert_eq!(properties.bytes(), bytes.len());
        properties.encode(&mut bytes);
        assert_eq!(bytes[..12], [0, 0xf, 8, 0, 20, 0, 0, 0, 0b1110, 0, 0, 0]);
        let mask = [0, 0x10, 0x20, 0x40, 0, 0, 0, 0];
        assert_eq!(bytes[12..20], [1, 0xf, 20, 0, 1, 0, 57, 52]);
        assert_eq!(bytes[36..44], [1, 0xf, 20, 0, 2, 0, 48, 52]);
        for at in [20, 44] {
            assert_eq!((&bytes[at..at + 8], &bytes[at + 8..at + 16]), (&mask[..], &[0; 8][..]));
        }
    }

    #[test]
    fn an_endpoint_without_pasids_tells_nothing_of_them() {
        assert_eq!(AuxProperty::of(&EndpointCapabilities::default()), None);
    }
}

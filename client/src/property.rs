//! What PROBE tells of an endpoint (virtio 1.4, 5.13.6.7; `docs/aux-domains.md`).

use std::ops::RangeInclusive;

use crate::bytes::{u8_at, u16_at, u32_at, u64_at};

const RESV_MEM: u16 = 1;
const AUX: u16 = 0xf00;
const TABLE_FORMAT: u16 = 0xf01;

/// Bytes of a property's head: its type and its length.
const HEAD_BYTES: usize = 4;

/// What can be done with the PASIDs of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AuxFlags(pub u32);

impl AuxFlags {
    /// Each PASID may have another second level.
    pub const OWN_S2: Self = Self(1 << 0);
    /// Tables can be bound with PARENT.
    pub const PARENT: Self = Self(1 << 1);
    /// Tables can be bound with IDENTITY_S2.
    pub const IDENTITY_S2: Self = Self(1 << 2);
    /// The device can choose a PASID.
    pub const PASID_ANY: Self = Self(1 << 3);

    /// True if all flags of `others` are set.
    #[must_use]
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

/// A property.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Property {
    /// IOVAs that cannot be mapped.
    ReservedMemory {
        /// 0 reserved, 1 the window of message-signalled interrupts.
        subtype: u8,
        /// Which.
        iovas: RangeInclusive<u64>,
    },
    /// AUX: the endpoint can hold PASIDs.
    Aux {
        /// How wide.
        pasid_bits: u8,
        /// What can be done with them.
        flags: AuxFlags,
    },
    /// TABLE_FORMAT: a table that can be bound.
    TableFormat {
        /// Its number.
        format: u16,
        /// Width of its input, bits.
        input_bits: u8,
        /// Width of its output, bits.
        output_bits: u8,
        /// Sizes of its pages, one bit each.
        page_size_mask: u64,
    },
    /// Another one.
    Other {
        /// Its type.
        kind: u16,
        /// What follows its head.
        body: Vec<u8>,
    },
}

impl Property {
    /// The properties in a PROBE's answer; `None` if one runs past the end or is too short for what it
    /// says it is.
    #[must_use]
    pub fn list(bytes: &[u8]) -> Option<Vec<Self>> {
        let mut properties = Vec::new();
        let mut rest = bytes;
        // type 0 ends the list, where the room was not used up
        while rest.len() >= HEAD_BYTES && u16_at(rest, 0) & 0xfff != 0 {
            let (kind, length) = (u16_at(rest, 0) & 0xfff, usize::from(u16_at(rest, 2)));
            let (body, behind) = rest.get(HEAD_BYTES..)?.split_at_checked(length)?;
            properties.push(Self::of(kind, body)?);
            rest = behind;
        }
        Some(properties)
    }

    fn of(kind: u16, body: &[u8]) -> Option<Self> {
        let bytes = body.len();
        match kind {
            RESV_MEM if bytes == 20 => Some(Self::ReservedMemory {
                subtype: u8_at(body, 0),
                iovas: u64_at(body, 4)..=u64_at(body, 12),
            }),
            AUX if bytes == 8 => {
                let flags = AuxFlags(u32_at(body, 4));
                Some(Self::Aux { pasid_bits: u8_at(body, 0), flags })
            }
            TABLE_FORMAT if bytes == 20 => Some(Self::TableFormat {
                format: u16_at(body, 0),
                input_bits: u8_at(body, 2),
                output_bits: u8_at(body, 3),
                page_size_mask: u64_at(body, 4),
            }),
            RESV_MEM | AUX | TABLE_FORMAT => None,
            kind => Some(Self::Other { kind, body: body.to_vec() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn properties_are_read_until_the_room_or_the_list_ends() {
        let mut bytes = vec![0, 0x0f, 8, 0, 20, 0, 0, 0, 0xf, 0, 0, 0];
        bytes.extend([1, 0x0f, 20, 0, 1, 0, 48, 46, 0, 0x10, 0x20, 0x40]);
        bytes.extend([0; 12]);
        bytes.extend([1, 0, 20, 0, 1, 0, 0, 0]);
        bytes.extend([0xfee0_0000u64, 0xfeef_ffff].into_iter().flat_map(u64::to_le_bytes));
        bytes.extend([9, 0, 2, 0, 7, 8]);
        let page_size_mask = 0x4020_1000;
        let expected = [
            Property::Aux { pasid_bits: 20, flags: AuxFlags(0xf) },
            Property::TableFormat { format: 1, input_bits: 48, output_bits: 46, page_size_mask },
            Property::ReservedMemory { subtype: 1, iovas: 0xfee0_0000..=0xfeef_ffff },
            Property::Other { kind: 9, body: vec![7, 8] },
        ];
        assert_eq!(Property::list(&bytes).unwrap(), expected);
        bytes.extend([0; 64]);
        assert_eq!(Property::list(&bytes).unwrap(), expected);
    }

    #[test]
    fn a_property_that_runs_past_the_end_or_is_too_short_is_none() {
        assert_eq!(Property::list(&[0, 0x0f, 8, 0, 20, 0, 0]), None);
        assert_eq!(Property::list(&[0, 0x0f, 4, 0, 20, 0, 0, 0]), None);
        assert_eq!(Property::list(&[]).unwrap(), []);
    }
}

//! What is offered and agreed on, in vhost-user's words.

use std::fmt;

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};

use crate::protocol::Features;

/// Protocol features offered.
///
/// CONFIG and MQ are needed (QEMU refuses to start without CONFIG, and takes one queue without MQ).
/// Left out on purpose: STATUS, whose GET_STATUS the vhost crate does not know.
pub(super) const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::CONFIG
    .union(VhostUserProtocolFeatures::MQ)
    .union(VhostUserProtocolFeatures::REPLY_ACK)
    .union(VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS)
    .union(VhostUserProtocolFeatures::RESET_DEVICE);

/// Bit 30: vhost-user's own, never shown to the driver.
const TRANSPORT: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// All feature bits offered to the front-end, by a device that offers its driver `device`. Not among
/// them: ACCESS_PLATFORM (33), for which QEMU would want to be our IOMMU.
pub(super) const fn offered(device: Features) -> u64 {
    device.bits() | TRANSPORT
}

/// What SET_FEATURES and SET_PROTOCOL_FEATURES brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Negotiated {
    /// With the driver.
    pub(super) driver: Features,
    /// Whether rings wait for SET_VRING_ENABLE: bit 30.
    pub(super) enable_first: bool,
    /// With the front-end.
    pub(super) protocol: u64,
}

impl Negotiated {
    /// Takes SET_FEATURES from a driver that was offered `device`; `None` if a bit was not offered.
    pub(super) fn with_features(self, bits: u64, device: Features) -> Option<Self> {
        let all_offered = bits & !offered(device) == 0;
        all_offered.then_some(Self {
            driver: Features::from_bits_truncate(bits),
            enable_first: bits & TRANSPORT != 0,
            protocol: self.protocol,
        })
    }
}

/// `driver: INPUT_RANGE VERSION_1; front-end: MQ CONFIG`.
impl fmt::Display for Negotiated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("driver:")?;
        for (name, _) in self.driver.iter_names() {
            write!(f, " {name}")?;
        }
        f.write_str("; front-end:")?;
        for (name, _) in VhostUserProtocolFeatures::from_bits_truncate(self.protocol).iter_names() {
            write!(f, " {name}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_linux_accepts_is_named() {
        let agreed = Negotiated { protocol: 0x201, ..Negotiated::default() }
            .with_features(0x1_7000_0057, Features::STANDARD)
            .unwrap();
        assert!(agreed.enable_first);
        assert_eq!(
            agreed.to_string(),
            "driver: INPUT_RANGE DOMAIN_RANGE MAP_UNMAP PROBE BYPASS_CONFIG RING_INDIRECT_DESC \
             RING_EVENT_IDX VERSION_1; front-end: MQ CONFIG"
        );
    }

    #[test]
    fn a_bit_that_was_not_offered_is_refused() {
        let with = |bit: u8, device| Negotiated::default().with_features(1 << bit, device);
        for bit in [3, 7, 26, 33, 50, 51, 52, 63] {
            assert_eq!(with(bit, Features::STANDARD), None, "bit {bit}");
        }
        let extended = Features::STANDARD | Features::AUX;
        assert_eq!(with(51, extended), None);
        assert_eq!(with(50, extended).map(|agreed| agreed.driver), Some(Features::AUX));
    }
}

//! The modes of a VT-d unit.

use std::fmt;

use super::condition::Condition;

/// How the unit translates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Legacy mode: a second level of so many bits.
    Legacy(u8),
    /// Scalable mode: a second level of so many bits.
    ScalableSecond(u8),
    /// Scalable mode: a first level of 48 bits.
    ScalableFirst,
}

impl Mode {
    /// All modes that QEMU offers: it has no 57-bit tables and no nesting.
    pub const ALL: [Self; 5] = [
        Self::Legacy(39),
        Self::Legacy(48),
        Self::ScalableSecond(39),
        Self::ScalableSecond(48),
        Self::ScalableFirst,
    ];

    /// Width of addresses: of the input, and, in QEMU, of the host too.
    #[must_use]
    pub const fn bits(self) -> u8 {
        match self {
            Self::Legacy(bits) | Self::ScalableSecond(bits) => bits,
            Self::ScalableFirst => 48,
        }
    }

    /// True in scalable mode.
    #[must_use]
    pub const fn is_scalable(self) -> bool {
        !matches!(self, Self::Legacy(_))
    }

    /// QEMU's device. Snoop control is on because our second level ignores the SNP bit, as units
    /// with it do.
    #[must_use]
    pub fn device(self) -> String {
        let bits = self.bits();
        let mode = match self {
            Self::Legacy(_) => "",
            Self::ScalableSecond(_) => ",scalable-mode=on",
            Self::ScalableFirst => ",scalable-mode=on,fsts=on",
        };
        format!("intel-iommu,intremap=off,snoop-control=on,aw-bits={bits}{mode}")
    }

    /// The manual's fault reason.
    #[must_use]
    pub const fn reason(self, condition: Condition) -> u8 {
        if self.is_scalable() { condition.scalable() } else { condition.legacy() }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Legacy(bits) => write!(f, "legacy, second level, {bits} bits"),
            Self::ScalableSecond(bits) => write!(f, "scalable, second level, {bits} bits"),
            Self::ScalableFirst => f.write_str("scalable, first level, 48 bits"),
        }
    }
}

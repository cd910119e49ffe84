//! The registers of virtio-pci's common configuration: which one an address names.

/// A register of the common configuration (virtio 1.4, 4.1.4.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CommonRegister {
    DeviceFeatureSelect,
    DeviceFeature,
    DriverFeatureSelect,
    DriverFeature,
    ConfigurationVector,
    QueueCount,
    Status,
    Generation,
    QueueSelect,
    QueueSize,
    QueueVector,
    QueueEnable,
    QueueNotifyOffset,
    QueueDescriptors,
    QueueAvailable,
    QueueUsed,
}

impl CommonRegister {
    /// The registers in order, with their widths in bytes; there are no gaps between them.
    const ALL: [(Self, u64); 16] = [
        (Self::DeviceFeatureSelect, 4),
        (Self::DeviceFeature, 4),
        (Self::DriverFeatureSelect, 4),
        (Self::DriverFeature, 4),
        (Self::ConfigurationVector, 2),
        (Self::QueueCount, 2),
        (Self::Status, 1),
        (Self::Generation, 1),
        (Self::QueueSelect, 2),
        (Self::QueueSize, 2),
        (Self::QueueVector, 2),
        (Self::QueueEnable, 2),
        (Self::QueueNotifyOffset, 2),
        (Self::QueueDescriptors, 8),
        (Self::QueueAvailable, 8),
        (Self::QueueUsed, 8),
    ];

    /// The register that holds the byte at `offset`, and which of its bytes that is. An access
    /// reaches no further than one register.
    pub(crate) fn at(offset: u64) -> Option<(Self, u64)> {
        let mut start = 0;
        for (register, bytes) in Self::ALL {
            if offset < start + bytes {
                return Some((register, offset - start));
            }
            start += bytes;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registers_lie_where_the_standard_says() {
        let at = |offset| CommonRegister::at(offset);
        assert_eq!(at(0x00), Some((CommonRegister::DeviceFeatureSelect, 0)));
        assert_eq!(at(0x10), Some((CommonRegister::ConfigurationVector, 0)));
        assert_eq!(at(0x14), Some((CommonRegister::Status, 0)));
        assert_eq!(at(0x15), Some((CommonRegister::Generation, 0)));
        assert_eq!(at(0x16), Some((CommonRegister::QueueSelect, 0)));
        assert_eq!(at(0x1e), Some((CommonRegister::QueueNotifyOffset, 0)));
        assert_eq!(at(0x20), Some((CommonRegister::QueueDescriptors, 0)));
        assert_eq!(at(0x34), Some((CommonRegister::QueueUsed, 4)));
        assert_eq!((at(0x38), at(u64::MAX)), (None, None));
    }
}

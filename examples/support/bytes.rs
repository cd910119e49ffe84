//! Little-endian registers in byte arrays, and accesses that may cover a part of one.

/// The 16-bit number at `at`; bytes past the end count as zero.
pub(crate) fn read_u16(bytes: &[u8], at: usize) -> u16 {
    let byte = |at| bytes.get(at).copied().unwrap_or(0);
    u16::from_le_bytes([byte(at), byte(at + 1)])
}

/// Copies `value` to `at`; what would lie past the end is left out.
pub(crate) fn write_le(bytes: &mut [u8], at: usize, value: &[u8]) {
    for (byte, new) in bytes.iter_mut().skip(at).zip(value) {
        *byte = *new;
    }
}

/// Answers a read of `data.len()` bytes at `offset` inside the register `value`; what lies past the
/// register's last byte reads as zero.
pub(crate) fn read_register(value: u64, offset: u64, data: &mut [u8]) {
    let bytes = value.to_le_bytes();
    let start = usize::try_from(offset).unwrap_or(usize::MAX);
    for (n, byte) in data.iter_mut().enumerate() {
        *byte = start.checked_add(n).and_then(|at| bytes.get(at)).copied().unwrap_or(0);
    }
}

/// The register `value` after a write of `data` at `offset` inside it: a guest may write a 64-bit
/// register in two halves.
pub(crate) fn merge_register(value: u64, offset: u64, data: &[u8]) -> u64 {
    let mut bytes = value.to_le_bytes();
    write_le(&mut bytes, usize::try_from(offset).unwrap_or(usize::MAX), data);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_of_a_register_make_the_whole() {
        let low = merge_register(0, 0, &0x5566_7788u32.to_le_bytes());
        assert_eq!(merge_register(low, 4, &0x1122_3344u32.to_le_bytes()), 0x1122_3344_5566_7788);
        let mut half = [0; 4];
        read_register(0x1122_3344_5566_7788, 4, &mut half);
        assert_eq!(u32::from_le_bytes(half), 0x1122_3344);
    }

    #[test]
    fn what_lies_past_the_end_is_zero_and_is_not_written() {
        assert_eq!((read_u16(&[1, 2, 3], 1), read_u16(&[1, 2, 3], 2)), (0x0302, 3));
        let mut data = [9; 4];
        read_register(u64::MAX, 6, &mut data);
        assert_eq!(data, [0xff, 0xff, 0, 0]);
        assert_eq!(merge_register(0, 7, &[1, 2, 3]), 1 << 56);
        assert_eq!(merge_register(5, u64::MAX, &[1]), 5);
    }
}

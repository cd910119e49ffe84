//! Bytes as a source of decisions.

/// What is left of an input. Past its end everything is zero, so every input means something.
#[derive(Debug, Clone)]
pub struct Input<'a> {
    bytes: &'a [u8],
    taken: usize,
}

impl<'a> Input<'a> {
    /// From the first byte on.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, taken: 0 }
    }

    /// True if nothing is left: time to stop.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// What is left, all of it.
    #[must_use]
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.bytes)
    }

    fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let (now, later) = self.bytes.split_at(N.min(self.bytes.len()));
        taken[..now.len()].copy_from_slice(now);
        self.bytes = later;
        self.taken += N;
        taken
    }

    /// The next byte.
    pub fn u8(&mut self) -> u8 {
        let [byte] = self.take();
        byte
    }

    /// The next two bytes, little-endian.
    pub fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }

    /// The next four bytes, little-endian.
    pub fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take())
    }

    /// The next eight bytes, little-endian.
    pub fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.take())
    }

    /// What is left, as words. They begin at a multiple of 8, as those do that are changed.
    pub fn words(&mut self) -> Vec<u64> {
        while !self.taken.is_multiple_of(8) {
            self.u8();
        }
        self.rest().chunks_exact(8).map(|word| Self::new(word).u64()).collect()
    }

    /// One of several, by one byte.
    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::from(self.u8()) % of.len()]
    }
}

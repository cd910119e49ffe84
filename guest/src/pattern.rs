//! Content that tells, at every place, where it belongs.
//!
//! Each 8-byte word is a mix of a seed and of the word's own place, so a block that is lost,
//! stale, doubled or moved differs from what should stand there, and the first wrong byte names
//! the place. Two seeds have nothing in common.

/// Bytes of one word; offsets and lengths are multiples of it.
pub const WORD_BYTES: u64 = 8;

/// The word that stands at byte offset `index * 8`.
///
/// The mixing is SplitMix64's finalizer (Steele, Lea, Flood: "Fast splittable pseudorandom number
/// generators", 2014), a bijection: no two places of one seed below 2^64 words are alike.
#[must_use]
pub const fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Writes the content that begins at byte `offset_bytes` into `out`.
///
/// `offset_bytes` and the length are multiples of [`WORD_BYTES`]; what is left over at the end is
/// not written.
pub fn fill(seed: u64, offset_bytes: u64, out: &mut [u8]) {
    let first = offset_bytes / WORD_BYTES;
    for (index, place) in (first..).zip(out.chunks_exact_mut(8)) {
        place.copy_from_slice(&word(seed, index).to_le_bytes());
    }
}

/// The byte offset of the first word of `bytes` that is not the content of its place, which begins
/// at byte `offset_bytes`.
#[must_use]
pub fn first_difference(seed: u64, offset_bytes: u64, bytes: &[u8]) -> Option<u64> {
    let first = offset_bytes / WORD_BYTES;
    let wrong = (first..)
        .zip(bytes.chunks_exact(8))
        .find(|(index, found)| word(seed, *index).to_le_bytes() != *found);
    wrong.map(|(index, _)| index * WORD_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_whatever_the_pieces_it_is_written_in() {
        let mut whole = [0; 64];
        fill(7, 4096, &mut whole);
        let mut halves = [0; 64];
        let (low, high) = halves.split_at_mut(24);
        fill(7, 4096, low);
        fill(7, 4096 + 24, high);
        assert_eq!(whole, halves);
        assert_eq!(first_difference(7, 4096, &whole), None);
    }

    #[test]
    fn the_first_wrong_word_is_named() {
        let mut bytes = [0; 64];
        fill(7, 512, &mut bytes);
        bytes[41] ^= 1;
        assert_eq!(first_difference(7, 512, &bytes), Some(512 + 40));
    }

    #[test]
    fn a_moved_block_and_another_seed_differ_from_the_start() {
        let mut bytes = [0; 64];
        fill(7, 0, &mut bytes);
        assert_eq!(first_difference(7, 512, &bytes), Some(512));
        assert_eq!(first_difference(8, 0, &bytes), Some(0));
    }
}

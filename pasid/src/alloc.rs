//! Which PASIDs of an endpoint are taken.

use std::collections::BTreeMap;
use std::fmt;

use crate::Pasid;

/// PASIDs of a word of the bitmap, log2.
const WORD_LG2: u32 = 6;
/// PASIDs of a chunk, log2: one word can say which of its words are full.
const CHUNK_LG2: u32 = 2 * WORD_LG2;
/// Words of a chunk.
const CHUNK_WORDS: usize = 1 << (CHUNK_LG2 - WORD_LG2);
/// Chunks of 20 bits of PASIDs.
const CHUNKS: usize = 1 << (PASID_BITS as u32 - CHUNK_LG2);
/// Words that say which chunks are full.
const SUMMARY_WORDS: usize = CHUNKS >> WORD_LG2;
/// PCIe 6.0, 6.20.
const PASID_BITS: u8 = 20;

const _: () = assert!(CHUNK_WORDS == 64 && CHUNKS == 256);
const _: () = assert!(Pasid::MAX.raw() == (1 << PASID_BITS) - 1);

/// 4096 PASIDs in a row, of which at least one is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chunk {
    /// PASIDs that are taken.
    taken: u32,
    /// Bit n: all of `words[n]` is taken.
    full: u64,
    /// One bit for each PASID: taken.
    words: [u64; CHUNK_WORDS],
}

impl Chunk {
    /// Chunk `number`, nothing taken. PASID 0 is no PASID: its bit is always set.
    fn new(number: u32) -> Self {
        let mut chunk = Self { taken: 0, full: 0, words: [0; CHUNK_WORDS] };
        if let ([first, ..], 0) = (&mut chunk.words, number) {
            *first = 1;
        }
        chunk
    }

    /// The lowest PASID that is free, counted from the start of the chunk.
    fn lowest_free(&self) -> Option<u32> {
        let word = self.full.trailing_ones();
        let bits = self.words.get(usize::try_from(word).ok()?)?;
        Some(word << WORD_LG2 | bits.trailing_ones())
    }

    fn is_taken(&self, offset: u32) -> bool {
        let (word, bit) = place(offset);
        self.words.get(word).is_some_and(|bits| bits & bit != 0)
    }

    fn take(&mut self, offset: u32) {
        let (word, bit) = place(offset);
        let Some(bits) = self.words.get_mut(word) else { return };
        *bits |= bit;
        self.full |= u64::from(*bits == u64::MAX) << word;
        self.taken += 1;
    }

    fn release(&mut self, offset: u32) {
        let (word, bit) = place(offset);
        let Some(bits) = self.words.get_mut(word) else { return };
        *bits &= !bit;
        self.full &= !(1 << word);
        self.taken -= 1;
    }
}

/// The word and the bit in it that stand for `offset`.
const fn place(offset: u32) -> (usize, u64) {
    // widening: below 64
    let word = (offset >> WORD_LG2) as usize % CHUNK_WORDS;
    (word, 1 << (offset % (1 << WORD_LG2)))
}

/// Why a PASID could not be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReserveError {
    /// It is taken.
    Taken {
        /// The PASID.
        pasid: Pasid,
    },
    /// The endpoint's PASIDs have fewer bits.
    TooWide {
        /// The PASID.
        pasid: Pasid,
    },
}

impl fmt::Display for ReserveError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Taken { pasid } => write!(f, "pasid {pasid} is taken"),
            Self::TooWide { pasid } => write!(f, "pasid {pasid} has too many bits"),
        }
    }
}

impl std::error::Error for ReserveError {}

/// The PASIDs of one endpoint, free or taken.
///
/// 0 is never given out: it is the endpoint's untagged traffic. The lowest free number comes first,
/// so numbers stay small and tables dense. All operations take one ordered lookup among at most 256
/// chunks, and are O(1) otherwise. A chunk of 4096 PASIDs takes 528 bytes, and only chunks in which
/// something is taken exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allocator {
    bits: u8,
    taken: u32,
    /// One bit for each chunk: all of it is taken.
    full: [u64; SUMMARY_WORDS],
    /// Chunks with something taken, by PASID >> 12.
    chunks: BTreeMap<u32, Chunk>,
}

impl Allocator {
    /// All PASIDs of `pasid_bits` bits, free; 0: there are none. More than 20 is 20.
    #[must_use]
    pub const fn new(pasid_bits: u8) -> Self {
        let bits = if pasid_bits > PASID_BITS { PASID_BITS } else { pasid_bits };
        Self { bits, taken: 0, full: [0; SUMMARY_WORDS], chunks: BTreeMap::new() }
    }

    /// How many PASIDs the endpoint has, free or taken.
    #[must_use]
    pub const fn capacity(&self) -> u32 {
        (1 << self.bits) - 1
    }

    /// How many are taken.
    #[must_use]
    pub const fn taken(&self) -> u32 {
        self.taken
    }

    /// True if `pasid` is taken.
    #[must_use]
    pub fn is_taken(&self, pasid: Pasid) -> bool {
        let (chunk, offset) = split(pasid.raw());
        self.chunks.get(&chunk).is_some_and(|chunk| chunk.is_taken(offset))
    }

    /// The lowest free PASID, which [`allocate`](Self::allocate) would take; `None` if all are
    /// taken.
    #[must_use]
    pub fn lowest_free(&self) -> Option<Pasid> {
        let (summary, bits) = (0..).zip(&self.full).find(|(_, bits)| **bits != u64::MAX)?;
        let number: u32 = summary << WORD_LG2 | bits.trailing_ones();
        let offset = match self.chunks.get(&number) {
            Some(chunk) => chunk.lowest_free()?,
            None => u32::from(number == 0),
        };
        Pasid::new(number << CHUNK_LG2 | offset).filter(|pasid| self.has(*pasid))
    }

    /// Takes the lowest free PASID; `None` if all are taken.
    pub fn allocate(&mut self) -> Option<Pasid> {
        let pasid = self.lowest_free()?;
        self.take(pasid);
        Some(pasid)
    }

    /// Takes `pasid`.
    ///
    /// # Errors
    /// If it is taken, or wider than the endpoint's PASIDs; nothing changes.
    pub fn reserve(&mut self, pasid: Pasid) -> Result<(), ReserveError> {
        if !self.has(pasid) {
            return Err(ReserveError::TooWide { pasid });
        }
        if self.is_taken(pasid) {
            return Err(ReserveError::Taken { pasid });
        }
        self.take(pasid);
        Ok(())
    }

    /// Frees `pasid`; true if it was taken.
    pub fn release(&mut self, pasid: Pasid) -> bool {
        let (number, offset) = split(pasid.raw());
        let Some(chunk) = self.chunks.get_mut(&number).filter(|chunk| chunk.is_taken(offset))
        else {
            return false;
        };
        chunk.release(offset);
        if chunk.taken == 0 {
            self.chunks.remove(&number);
        }
        self.mark(number, false);
        self.taken -= 1;
        true
    }

    /// True if `pasid` is one of the endpoint's, free or taken.
    #[must_use]
    pub const fn has(&self, pasid: Pasid) -> bool {
        pasid.raw() <= self.capacity()
    }

    /// Takes a PASID that is free.
    fn take(&mut self, pasid: Pasid) {
        let (number, offset) = split(pasid.raw());
        let chunk = self.chunks.entry(number).or_insert_with(|| Chunk::new(number));
        chunk.take(offset);
        let full = chunk.full == u64::MAX;
        self.mark(number, full);
        self.taken += 1;
    }

    /// Notes whether all of chunk `number` is taken.
    fn mark(&mut self, number: u32, full: bool) {
        let (word, bit) = place(number);
        if let Some(bits) = self.full.get_mut(word) {
            *bits = if full { *bits | bit } else { *bits & !bit };
        }
    }
}

/// The chunk of `raw`, and where it is in the chunk.
const fn split(raw: u32) -> (u32, u32) {
    (raw >> CHUNK_LG2, raw % (1 << CHUNK_LG2))
}

#[cfg(test)]
mod tests;

//! New inputs out of old ones.

/// A fixed sequence of numbers; a seed decides which (xorshift).
#[derive(Debug, Clone)]
pub struct Random(u64);

/// Words that sit at edges: of sizes, of pages, of address spaces, and entries that are present.
const INTERESTING: [u64; 20] = [
    0,
    1,
    3,
    7,
    0x67,
    0x83,
    0xfff,
    0x1000,
    0x7ff,
    1 << 12 | 3,
    1 << 12 | 0x403,
    1 << 21,
    1 << 30,
    1 << 39,
    1 << 47,
    1 << 51,
    1 << 63,
    u64::MAX - 0xfff,
    u64::MAX,
    0xffff_ffff,
];

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        // neighbouring seeds lead far apart; zero would stay zero
        Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() >> 33).unwrap_or(0) % end
    }
}

/// The input after `parent`: changed in up to eight places, perhaps joined with `other`, at most `longest`
/// bytes long.
#[must_use]
pub fn mutate(parent: &[u8], other: &[u8], longest: usize, random: &mut Random) -> Vec<u8> {
    let mut bytes = parent.to_vec();
    for _ in 0..=random.below(8) {
        change(&mut bytes, other, random);
    }
    bytes.truncate(longest);
    bytes
}

fn change(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    let at = random.below(bytes.len() + 1);
    let run = 1 << random.below(6);
    let value = random.next().to_le_bytes();
    match random.below(10) {
        0 => put(bytes, at, &value[..1]),
        1 => flip(bytes, at, random.below(8)),
        2 => put(bytes, at & !7, &value),
        3 | 4 => put(bytes, at & !7, &INTERESTING[random.below(INTERESTING.len())].to_le_bytes()),
        5 => combine(bytes, at & !7, INTERESTING[random.below(INTERESTING.len())]),
        6 => drop(bytes.drain(at..(at + run).min(bytes.len()))),
        7 => insert(bytes, at, &value.repeat(4)[..run.min(32)]),
        8 => {
            let from = random.below(bytes.len() + 1);
            let copy = bytes[from..(from + run).min(bytes.len())].to_vec();
            put(bytes, at, &copy);
        }
        _ => {
            let from = random.below(other.len() + 1);
            insert(bytes, at, &other[from..(from + 4 * run).min(other.len())]);
        }
    }
}

/// Overwrites, and grows where there is nothing yet.
fn put(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    bytes.resize(bytes.len().max(at + what.len()), 0);
    bytes[at..at + what.len()].copy_from_slice(what);
}

fn insert(bytes: &mut Vec<u8>, at: usize, what: &[u8]) {
    bytes.splice(at..at, what.iter().copied());
}

fn flip(bytes: &mut [u8], at: usize, bit: usize) {
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << bit;
    }
}

/// Flips a word's bits that are set in `with`: addresses stay what they are while flags change.
fn combine(bytes: &mut Vec<u8>, at: usize, with: u64) {
    let mut word = [0; 8];
    let there = bytes.get(at..(at + 8).min(bytes.len())).unwrap_or_default();
    word[..there.len()].copy_from_slice(there);
    put(bytes, at, &(u64::from_le_bytes(word) ^ with).to_le_bytes());
}

//! Where a reader's walks can begin: the tables of level 0 that they came through before.
//!
//! A miss of the private TLB then costs the load of one entry. It matters when more pages are in use than
//! the TLB holds: a table stands for 512 of them.
//!
//! A shortcut is forgotten with the epoch, as translations are, for the table may be used for something
//! else after the drain that began it. Within an epoch the daemon may have unlinked the table, which is
//! empty then, and linked another in its place. So a shortcut's answer counts only if it is a page; else
//! the whole walk decides.

use std::cell::Cell;

use viommu_pasid::Shortcut;

/// Shortcuts that a reader remembers: 8 GiB of IOVAs in 4 KiB pages fit without a conflict. 128 KiB.
const ENTRIES: usize = 1 << 12;

/// The span of a table of level 0 with 4 KiB pages. The daemon writes no tables of others.
const SPAN_LG2: u8 = 21;

/// Bits of a span's number.
const SPAN_BITS: u32 = 64 - SPAN_LG2 as u32;

#[derive(Debug, Clone, Copy)]
struct Entry {
    epoch: u64,
    /// The span's number, and the tag above it.
    key: u64,
    shortcut: Shortcut,
}

const _: () = assert!(size_of::<Option<Entry>>() == 32, "two of them to a cache line");

/// The shortcuts that a reader remembers: direct-mapped.
pub(crate) struct Shortcuts {
    entries: Box<[Cell<Option<Entry>>]>,
}

/// What tells spans apart: `tag` is below 2^21.
const fn key(tag: u32, iova: u64) -> u64 {
    iova >> SPAN_LG2 | (tag as u64) << SPAN_BITS
}

impl Shortcuts {
    pub(crate) fn new() -> Self {
        Self { entries: vec![Cell::new(None); ENTRIES].into_boxed_slice() }
    }

    /// Neighbouring spans have neighbouring places; tags are spread.
    #[inline]
    fn place(&self, key: u64) -> Option<&Cell<Option<Entry>>> {
        let tag = key >> SPAN_BITS;
        let index = key ^ key >> 12 ^ tag.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        self.entries.get(usize::try_from(index & (ENTRIES as u64 - 1)).ok()?)
    }

    /// The shortcut for `iova` that was noted in `epoch`.
    #[inline]
    pub(crate) fn find(&self, epoch: u64, tag: u32, iova: u64) -> Option<Shortcut> {
        let key = key(tag, iova);
        let known = self.place(key)?.get()?;
        (known.key == key && known.epoch == epoch).then_some(known.shortcut)
    }

    /// Notes where a walk of `iova` in `epoch` could have begun.
    pub(crate) fn insert(&self, epoch: u64, tag: u32, iova: u64, shortcut: Shortcut) {
        let key = key(tag, iova);
        if shortcut.span_lg2() == SPAN_LG2
            && let Some(place) = self.place(key)
        {
            place.set(Some(Entry { epoch, key, shortcut }));
        }
    }
}

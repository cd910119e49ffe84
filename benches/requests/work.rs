//! Which pages are mapped and unmapped, in which order.

use crate::support::wire::{READ, WRITE, map, unmap};

pub(crate) const PAGE: u64 = 4096;

/// The domain that all requests name.
pub(crate) const DOMAIN: u32 = 1;

/// Where the mappings are.
const BASE: u64 = 0x10_0000_0000;

/// Pages that are mapped and unmapped, in an order of its own.
#[derive(Debug)]
pub(crate) struct Work {
    order: Vec<u64>,
    next: usize,
}

impl Work {
    /// `pages` pages, shuffled.
    pub(crate) fn new(pages: usize) -> Self {
        let mut order: Vec<_> = (0..pages as u64).collect();
        let mut state = 0x1234_5678_9abc_def1_u64;
        for end in (1..pages).rev() {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            order.swap(end, (state % (end as u64 + 1)) as usize);
        }
        Self { order, next: 0 }
    }

    /// All pages, in order of this work.
    pub(crate) fn all(&self) -> &[u64] {
        &self.order
    }

    /// The next `count` pages, at most all; after the last comes the first.
    pub(crate) fn take(&mut self, count: usize) -> Vec<u64> {
        if self.next + count > self.order.len() {
            self.next = 0;
        }
        let taken = self.order[self.next..self.next + count].to_vec();
        self.next += count;
        taken
    }
}

/// Where a page is.
pub(crate) const fn page_at(page: u64) -> u64 {
    BASE + page * PAGE
}

/// MAP of a page; neighbours lead far from each other.
pub(crate) fn map_page(page: u64) -> Vec<u8> {
    let start = page_at(page);
    let output = (page.wrapping_mul(0x9e37_79b1) & 0xff_ffff) * 2 * PAGE;
    map(DOMAIN, start, start + PAGE - 1, output, READ | WRITE)
}

/// UNMAP of a page.
pub(crate) fn unmap_page(page: u64) -> Vec<u8> {
    let start = page_at(page);
    unmap(DOMAIN, start, start + PAGE - 1)
}

/// A request of a type that does not exist, as long as a MAP.
pub(crate) fn unknown() -> Vec<u8> {
    let mut bytes = vec![0; 36];
    bytes[0] = 0xff;
    bytes
}

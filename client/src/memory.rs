//! Memory that the driver shares with devices.

use std::io;

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;

/// Guest memory: pages that stay where they are, known by their guest-physical address.
///
/// Clones are the same memory. Devices read and write it at any time, so nobody is given a reference
/// into it, only copies. Every method fails for addresses that no page of this memory has; what fails
/// has changed nothing.
pub trait Memory: Clone {
    /// A page of zeroes that nobody else has, for as long as this memory lives: its address.
    ///
    /// # Errors
    /// There is none left.
    fn page(&self) -> io::Result<u64>;

    /// Copies what is at `at` into `to`. All of it lies in one page.
    ///
    /// # Errors
    /// See above.
    fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()>;

    /// Copies `from` to `at`. All of it lies in one page.
    ///
    /// # Errors
    /// See above.
    fn write(&self, at: u64, from: &[u8]) -> io::Result<()>;

    /// The two bytes at `at`, as one: an index that the device stored. What it wrote before is seen by
    /// reads that follow.
    ///
    /// # Errors
    /// See above; `at` is a multiple of 2.
    fn load_index(&self, at: u64) -> io::Result<u16>;

    /// Stores two bytes at `at`, as one, after everything that was written before.
    ///
    /// # Errors
    /// See above; `at` is a multiple of 2.
    fn store_index(&self, at: u64, value: u16) -> io::Result<()>;

    /// The eight bytes at `at`, as one: an entry of a page table, which a device may be changing.
    ///
    /// # Errors
    /// See above; `at` is a multiple of 8.
    fn load_entry(&self, at: u64) -> io::Result<u64>;

    /// Stores eight bytes at `at`, as one: an entry of a page table that a device may be walking. All
    /// that was written before is seen by who sees the entry.
    ///
    /// # Errors
    /// See above; `at` is a multiple of 8.
    fn store_entry(&self, at: u64, value: u64) -> io::Result<()>;
}

#[cfg(test)]
pub(crate) mod testing {
    use std::cell::RefCell;
    use std::collections::BTreeMap;
    use std::rc::Rc;

    use super::*;

    /// Pages of this process, for tests of one thread; the first is at 0x10000.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Heap(Rc<RefCell<BTreeMap<u64, Box<[u8; PAGE_BYTES]>>>>);

    fn inside_page(at: u64) -> usize {
        usize::try_from(at).unwrap() % PAGE_BYTES
    }

    impl Memory for Heap {
        fn page(&self) -> io::Result<u64> {
            let mut pages = self.0.borrow_mut();
            let at = (0x10 + pages.len() as u64) * PAGE_BYTES as u64;
            pages.insert(at, Box::new([0; PAGE_BYTES]));
            Ok(at)
        }

        fn read(&self, at: u64, to: &mut [u8]) -> io::Result<()> {
            let inside = inside_page(at);
            let pages = self.0.borrow();
            let page = pages.get(&(at - inside as u64)).ok_or(io::ErrorKind::NotFound)?;
            to.copy_from_slice(&page[inside..inside + to.len()]);
            Ok(())
        }

        fn write(&self, at: u64, from: &[u8]) -> io::Result<()> {
            let inside = inside_page(at);
            let mut pages = self.0.borrow_mut();
            let page = pages.get_mut(&(at - inside as u64)).ok_or(io::ErrorKind::NotFound)?;
            page[inside..inside + from.len()].copy_from_slice(from);
            Ok(())
        }

        fn load_index(&self, at: u64) -> io::Result<u16> {
            let mut raw = [0; 2];
            self.read(at, &mut raw)?;
            Ok(u16::from_le_bytes(raw))
        }

        fn store_index(&self, at: u64, value: u16) -> io::Result<()> {
            self.write(at, &value.to_le_bytes())
        }

        fn load_entry(&self, at: u64) -> io::Result<u64> {
            let mut raw = [0; 8];
            self.read(at, &mut raw)?;
            Ok(u64::from_le_bytes(raw))
        }

        fn store_entry(&self, at: u64, value: u64) -> io::Result<()> {
            self.write(at, &value.to_le_bytes())
        }
    }
}

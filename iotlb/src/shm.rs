//! Shared memory: sealed memfds and typed, bounds-checked, atomic access to their mappings.
//!
//! The only place of this crate that dereferences a raw pointer. What it hands out are references
//! to atomics, so that another process may change the words at any time without harm.
#![expect(unsafe_code, reason = "mappings that another process changes meanwhile")]

use std::io;
use std::marker::PhantomData;
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{MapFlags, ProtFlags};

use crate::abi::{PAGE_LEN, RegionHeader, SlotMemory};

/// Words of a page.
const PAGE_WORDS: usize = PAGE_LEN / 8;

/// What a mapping of ours allows us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// Loads only; only relaxed loads are defined on such memory.
    ReadOnly,
    /// Loads and stores.
    ReadWrite,
}

/// Makes a sparse memfd of `len` bytes. It may be sealed once its own mapping exists.
pub(crate) fn create(name: &str, len: usize) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let bytes = u64::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    Ok(fd)
}

/// Fixes the size for good, so that no access to a mapping can fault; with `read_only` nobody gets
/// a writable mapping from now on, either (mappings made before stay writable).
pub(crate) fn seal(fd: &OwnedFd, read_only: bool) -> io::Result<()> {
    let mut seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
    if read_only {
        seals |= SealFlags::FUTURE_WRITE;
    }
    rustix::fs::fcntl_add_seals(fd, seals)?;
    Ok(())
}

/// A mapped file, from its first byte on.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: 1. the mapping belongs to the process, not to a thread: `map` made it, `drop` ends it;
// 2. all access goes through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `len` bytes of `fd`.
    ///
    /// # Errors
    /// If the file is shorter than `len`: loads would fault. Also what the kernel says. That it stays
    /// so long is [`check_sealed`](Self::check_sealed)'s to see, where another process made it.
    pub(crate) fn map(fd: impl AsFd, len: usize, rights: Rights) -> io::Result<Self> {
        let size = rustix::fs::fstat(&fd)?.st_size;
        if usize::try_from(size).is_ok_and(|size| size < len) || len == 0 {
            let text = format!("shared memory of {size:#x} bytes, {len:#x} needed");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let prot = match rights {
            Rights::ReadOnly => ProtFlags::READ,
            Rights::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: 1. the address is the kernel's choice: nothing that exists is replaced.
        let at = unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, flags, fd, 0) }?;
        let start = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, len })
    }

    /// Fails unless the size of `fd` is sealed.
    pub(crate) fn check_sealed(fd: impl AsFd) -> io::Result<()> {
        let seals = rustix::fs::fcntl_get_seals(fd)?;
        if seals.contains(SealFlags::SHRINK) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "shared memory that can shrink"))
    }

    /// The word at `offset` bytes; `None` if that is no multiple of 8 or not inside.
    #[inline]
    pub(crate) fn word(&self, offset: u64) -> Option<&AtomicU64> {
        let offset = usize::try_from(offset).ok()?;
        if !offset.is_multiple_of(8) || offset >= self.len & !7 {
            return None;
        }
        // SAFETY: 1. `offset` is below `len`, the length that `map` mapped.
        let at = unsafe { self.start.add(offset) }.cast::<AtomicU64>();
        // SAFETY: 1. eight bytes from there are inside: `len & !7` and `offset` are multiples of 8;
        // 2. aligned: the mapping starts at a page; 3. every bit pattern is a value; 4. it lives as
        // long as `self`; 5. whoever changes it, in this process or another, does so atomically.
        Some(unsafe { at.as_ref() })
    }

    /// The words of the page that begins at `offset` bytes; `None` if that is no multiple of a page
    /// or not inside as a whole.
    pub(crate) fn page(&self, offset: u64) -> Option<&[AtomicU64; PAGE_WORDS]> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(PAGE_LEN)?;
        if !offset.is_multiple_of(PAGE_LEN) || end > self.len {
            return None;
        }
        // SAFETY: 1. `offset` is below `len`, the length that `map` mapped.
        let at = unsafe { self.start.add(offset) }.cast::<[AtomicU64; PAGE_WORDS]>();
        // SAFETY: 1. a page from there is inside, as checked; 2. aligned: the mapping starts at a
        // page; 3. every bit pattern is a value; 4. it lives as long as `self`; 5. whoever changes
        // it, in this process or another, does so atomically.
        Some(unsafe { at.as_ref() })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: 1. `map` made exactly this mapping; 2. references into it borrow from `self`.
        let ended = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
        debug_assert!(ended.is_ok(), "munmap: {ended:?}");
    }
}

/// A layout of shared memory.
///
/// # Safety
/// The implementor consists of atomic integers only, needs at most page alignment, and has no
/// padding.
pub(crate) unsafe trait Layout {}

// SAFETY: 1. all its fields are arrays of atomics or atomics; `abi` asserts its size.
unsafe impl Layout for RegionHeader {}
// SAFETY: 1. all its fields are structs or arrays of atomics; `abi` asserts its size.
unsafe impl Layout for SlotMemory {}

/// A mapping whose first bytes are a `T`.
#[derive(Debug)]
pub(crate) struct Shared<T> {
    mapping: Arc<Mapping>,
    layout: PhantomData<T>,
}

impl<T: Layout> Shared<T> {
    /// Sees `mapping` as a `T`; `None` if it is too short.
    pub(crate) fn new(mapping: Arc<Mapping>) -> Option<Self> {
        (size_of::<T>() <= mapping.len).then_some(Self { mapping, layout: PhantomData })
    }
}

impl<T: Layout> Deref for Shared<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        let at = self.mapping.start.cast::<T>();
        // SAFETY: 1. `new` checked the length; 2. aligned: the mapping starts at a page; 3. `T` is
        // atomics only, says its `Layout`: any bytes are a value and others may change them; 4. the
        // mapping lives as long as `self`.
        unsafe { at.as_ref() }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn a_word_is_found_inside_the_mapping_only() {
        let fd = create("test", 4096).unwrap();
        let mapping = Mapping::map(&fd, 4096, Rights::ReadWrite).unwrap();
        mapping.word(4088).unwrap().store(7, Ordering::Relaxed);
        assert_eq!(mapping.word(4088).unwrap().load(Ordering::Relaxed), 7);
        for outside in [4096, 4089, 4, u64::MAX, u64::MAX - 7] {
            assert!(mapping.word(outside).is_none(), "{outside:#x}");
        }
    }

    #[test]
    fn a_page_is_found_inside_the_mapping_only() {
        let fd = create("test", 8192).unwrap();
        let mapping = Mapping::map(&fd, 8192, Rights::ReadWrite).unwrap();
        mapping.page(4096).unwrap()[511].store(7, Ordering::Relaxed);
        assert_eq!(mapping.word(8184).unwrap().load(Ordering::Relaxed), 7);
        for outside in [8192, 8, 4104, u64::MAX, u64::MAX - 4095] {
            assert!(mapping.page(outside).is_none(), "{outside:#x}");
        }
    }

    #[test]
    fn a_file_shorter_than_its_mapping_is_refused() {
        let fd = create("test", 4096).unwrap();
        let error = Mapping::map(&fd, 8192, Rights::ReadOnly).unwrap_err();
        assert_eq!(error.to_string(), "shared memory of 0x1000 bytes, 0x2000 needed");
    }

    #[test]
    fn after_the_seal_nobody_gets_a_writable_mapping_not_even_through_proc() {
        use std::os::fd::AsRawFd;
        let fd = create("test", 4096).unwrap();
        assert!(Mapping::check_sealed(&fd).is_err());
        let ours = Mapping::map(&fd, 4096, Rights::ReadWrite).unwrap();
        seal(&fd, true).unwrap();
        Mapping::check_sealed(&fd).unwrap();
        ours.word(0).unwrap().store(1, Ordering::Relaxed);
        let theirs = Mapping::map(&fd, 4096, Rights::ReadOnly).unwrap();
        assert_eq!(theirs.word(0).unwrap().load(Ordering::Relaxed), 1);
        assert!(Mapping::map(&fd, 4096, Rights::ReadWrite).is_err());
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        if let Ok(again) = std::fs::File::options().read(true).write(true).open(path) {
            assert!(Mapping::map(&again, 4096, Rights::ReadWrite).is_err());
            assert!(std::io::Write::write(&mut &again, b"x").is_err());
            assert!(again.set_len(0).is_err());
        }
    }
}

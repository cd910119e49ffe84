//! Mapped memory: a function's registers, and pages that devices reach. The only unsafe code here.
#![expect(
    unsafe_code,
    reason = "registers, and memory that a device writes behind the compiler's back"
)]

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap, mmap_anonymous, munmap};

/// Memory of this process that others access at any time: no reference to its content is ever made,
/// values are copied in and out. An access outside of it, or not aligned to its size, is an error.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<c_void>,
    bytes: usize,
}

// SAFETY: 1. the mapping belongs to no thread; 2. all accesses are volatile or atomic, and the memory is
// shared with devices anyway: who uses it orders what needs an order.
unsafe impl Send for Mapping {}
// SAFETY: as for `Send`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// All of a BAR's file.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn of_bar(file: &File) -> io::Result<Self> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let none = std::ptr::null_mut();
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let base = unsafe { mmap(none, bytes, access, MapFlags::SHARED, file, 0) }?;
        Self::new(base, bytes)
    }

    /// Zeroes that stay in memory, in small pages: a large one would be put together by moving them.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn locked(bytes: usize) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        let none = std::ptr::null_mut();
        // SAFETY: no address is asked for, so nothing that exists is replaced.
        let base = unsafe { mmap_anonymous(none, bytes, access, MapFlags::SHARED) }?;
        let mapping = Self::new(base, bytes)?;
        // SAFETY: 1. exactly the bytes that were mapped; 2. the advice changes no content.
        unsafe { madvise(base, bytes, Advice::LinuxNoHugepage) }?;
        // SAFETY: exactly the bytes that were mapped.
        unsafe { mlock(base, bytes) }?;
        Ok(mapping)
    }

    fn new(base: *mut c_void, bytes: usize) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or_else(|| io::Error::other("mapped at address 0"))?;
        Ok(Self { base, bytes })
    }

    /// Where it begins for this process.
    pub(super) fn address(&self) -> usize {
        self.base.addr().get()
    }

    /// The place of a `T` at `offset`.
    fn at<T>(&self, offset: usize) -> io::Result<NonNull<T>> {
        let end = offset.checked_add(size_of::<T>()).filter(|end| *end <= self.bytes);
        if end.is_none() || !offset.is_multiple_of(align_of::<T>()) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: `offset` is inside the mapping, as was just checked.
        Ok(unsafe { self.base.byte_add(offset) }.cast())
    }

    /// Reads a register, or bytes of memory.
    pub(super) fn read<T: Register>(&self, offset: usize) -> io::Result<T> {
        let at = self.at(offset)?;
        // SAFETY: 1. `at` is inside the mapping and aligned; 2. it lives as long as `self`; 3. any bytes
        // are a `T`, as `Register` says.
        Ok(unsafe { at.read_volatile() })
    }

    /// Writes a register, or bytes of memory.
    pub(super) fn write<T: Register>(&self, offset: usize, value: T) -> io::Result<()> {
        let at = self.at(offset)?;
        // SAFETY: as in `read`; no reference to what is overwritten exists.
        unsafe { at.write_volatile(value) };
        Ok(())
    }

    /// Loads an index with acquire ordering: partner of the device's release store.
    pub(super) fn load_index(&self, offset: usize) -> io::Result<u16> {
        let at = self.at::<u16>(offset)?;
        // SAFETY: 1. inside the mapping, aligned, alive for the borrow; 2. whoever else writes these two
        // bytes does so atomically (virtio 1.4, 2.7.8).
        let index = unsafe { AtomicU16::from_ptr(at.as_ptr()) };
        // Acquire: what the device wrote before it stored the index is seen
        Ok(index.load(Ordering::Acquire))
    }

    /// Stores an index with release ordering: partner of the device's acquire load.
    pub(super) fn store_index(&self, offset: usize, value: u16) -> io::Result<()> {
        let at = self.at::<u16>(offset)?;
        // SAFETY: as in `load_index`.
        let index = unsafe { AtomicU16::from_ptr(at.as_ptr()) };
        // Release: the device's load of the index sees what was written before
        index.store(value, Ordering::Release);
        Ok(())
    }

    /// Loads an entry of a page table.
    pub(super) fn load_entry(&self, offset: usize) -> io::Result<u64> {
        let at = self.at::<u64>(offset)?;
        // SAFETY: 1. inside the mapping, aligned, alive for the borrow; 2. walkers change entries
        // atomically, as hardware does.
        let entry = unsafe { AtomicU64::from_ptr(at.as_ptr()) };
        // Acquire: pairs with a walker's exchange that sets a flag
        Ok(entry.load(Ordering::Acquire))
    }

    /// Stores an entry of a page table.
    pub(super) fn store_entry(&self, offset: usize, value: u64) -> io::Result<()> {
        let at = self.at::<u64>(offset)?;
        // SAFETY: as in `load_entry`.
        let entry = unsafe { AtomicU64::from_ptr(at.as_ptr()) };
        // Release: a walker that loads the entry sees the table that it leads to
        entry.store(value, Ordering::Release);
        Ok(())
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: 1. exactly what was mapped; 2. no reference into it exists.
        // What cannot be unmapped stays, which harms nobody.
        let _ = unsafe { munmap(self.base.as_ptr(), self.bytes) };
    }
}

/// Numbers that any bytes are one of.
pub(super) trait Register: Copy {}

impl Register for u8 {}
impl Register for u16 {}
impl Register for u32 {}
impl Register for u64 {}

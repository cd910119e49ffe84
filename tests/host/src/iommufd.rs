//! iommufd and VFIO devices by descriptor, written down from linux/iommufd.h and linux/vfio.h.
#![expect(unsafe_code, reason = "ioctls")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::pci::Function;

/// Requests of `ioctl`.
const BIND: u32 = 0x3b76;
const ATTACH: u32 = 0x3b77;
const FEATURE: u32 = 0x3b75;
const IOAS_ALLOC: u32 = 0x3b81;
const IOAS_MAP_FILE: u32 = 0x3b8f;
const IOAS_UNMAP: u32 = 0x3b86;

/// Flags of IOAS_MAP_FILE: at the place that is asked for, to be written and read.
const FIXED_WRITE_READ: u32 = 7;

/// Flags of FEATURE: get a dma-buf.
const GET_DMA_BUF: u32 = 1 << 16 | 11;

/// How a descriptor is opened: to be read and written.
const READ_WRITE: u32 = 2;

/// iommufd. What we start inherits its descriptor.
#[derive(Debug)]
pub(crate) struct Iommufd(File);

/// An address space (IOAS), by its number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Space(u32);

/// Part of a file: its first byte.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Place<'a> {
    pub(crate) file: &'a File,
    pub(crate) at: u64,
}

impl Iommufd {
    /// Opens it.
    ///
    /// # Errors
    /// The kernel has none.
    pub(crate) fn open() -> io::Result<Self> {
        open("/dev/iommu").map(Self)
    }

    /// An address space with nothing in it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn space(&self) -> io::Result<Space> {
        let mut alloc = [12, 0, 0];
        call(&self.0, IOAS_ALLOC, &mut alloc)?;
        let [_, _, ioas] = alloc;
        Ok(Space(ioas))
    }

    /// Maps `bytes` bytes of a file at `iova`, to be read and written.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn map(
        &self,
        Space(ioas): Space,
        Place { file, at }: Place<'_>,
        (iova, bytes): (u64, u64),
    ) -> io::Result<()> {
        let ([start, more], [length, longer]) = (halves(at), halves(bytes));
        let ([low, high], file) = (halves(iova), descriptor(file));
        let mut map = [40, FIXED_WRITE_READ, ioas, file, start, more, length, longer, low, high];
        call(&self.0, IOAS_MAP_FILE, &mut map).map(drop)
    }

    /// Unmaps what [`Iommufd::map`] mapped.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn unmap(&self, Space(ioas): Space, (iova, bytes): (u64, u64)) -> io::Result<()> {
        let ([low, high], [length, longer]) = (halves(iova), halves(bytes));
        let mut unmap = [24, ioas, low, high, length, longer];
        call(&self.0, IOAS_UNMAP, &mut unmap).map(drop)
    }
}

impl AsRawFd for Iommufd {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// A function by VFIO's descriptor of it, bound to an iommufd. What we start inherits it.
#[derive(Debug)]
pub(crate) struct Device(File);

impl Device {
    /// Opens and binds a function that vfio-pci has.
    ///
    /// # Errors
    /// The kernel has no such descriptors, or refuses.
    pub(crate) fn bind(function: &Function, iommufd: &Iommufd) -> io::Result<Self> {
        let mut names = fs::read_dir(function.file("vfio-dev"))?;
        let name = names.next().ok_or(io::ErrorKind::NotFound)??.file_name();
        let device = open(&format!("/dev/vfio/devices/{}", name.to_string_lossy()))?;
        call(&device, BIND, &mut [24, 0, descriptor(&iommufd.0), 0, 0, 0])?;
        Ok(Self(device))
    }

    /// Attaches it; what was attached is replaced.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn attach(&self, Space(ioas): Space) -> io::Result<()> {
        call(&self.0, ATTACH, &mut [16, 0, ioas, 0]).map(drop)
    }

    /// A dma-buf of the first `bytes` bytes of its first BAR.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn registers(&self, bytes: u64) -> io::Result<File> {
        let [low, high] = halves(bytes);
        let mut feature = [40, GET_DMA_BUF, 0, READ_WRITE, 0, 1, 0, 0, low, high];
        let raw = call(&self.0, FEATURE, &mut feature)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(unsafe { File::from_raw_fd(raw) })
    }

    /// The descriptor.
    pub(crate) const fn file(&self) -> &File {
        &self.0
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

/// Opens a file that what we start inherits.
fn open(path: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    fcntl_setfd(file.as_fd(), FdFlags::empty())?;
    Ok(file)
}

/// A descriptor as structures have it.
fn descriptor(file: &File) -> u32 {
    file.as_raw_fd().cast_unsigned()
}

/// The low and the high word.
const fn halves(number: u64) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h] = number.to_le_bytes();
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}

/// One call with a structure of 32-bit words, the first of which is the structure's size; what it returns.
fn call<const N: usize>(file: &File, request: u32, words: &mut [u32; N]) -> io::Result<i32> {
    let (file, request) = (file.as_raw_fd(), request as libc::Ioctl);
    // SAFETY: 1. the file is open; 2. each caller above passes the structure of the request, its size
    // first and no pointer in it, so the kernel stays inside `words`.
    let done = unsafe { libc::ioctl(file, request, words.as_mut_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done) }
}

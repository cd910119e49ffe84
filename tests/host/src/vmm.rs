//! What a VMM does with a device before it shares it, written down from linux/iommufd.h and linux/vfio.h.
#![expect(unsafe_code, reason = "ioctls")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{FdFlags, fcntl_setfd};

use crate::pci::Function;
use crate::ram::{RAM_BYTES, Ram};

/// Requests of `ioctl`.
const BIND: u32 = 0x3b76;
const ATTACH: u32 = 0x3b77;
const IOAS_ALLOC: u32 = 0x3b81;
const IOAS_MAP_FILE: u32 = 0x3b8f;

/// Flags of IOAS_MAP_FILE: at the place that is asked for, to be written and read.
const FIXED_WRITE_READ: u32 = 7;

/// A VMM with one device, attached to all of guest memory at its own addresses: what QEMU has when it is
/// ready. What we start inherits both descriptors.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) iommufd: File,
    pub(crate) device: File,
}

impl Vmm {
    /// Opens and binds `function`, and attaches it to `ram`.
    ///
    /// # Errors
    /// The kernel has no iommufd, or refuses.
    pub(crate) fn new(function: &Function, ram: &Ram) -> io::Result<Self> {
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
        let iommufd = open("/dev/iommu")?;
        let mut names = fs::read_dir(function.file("vfio-dev"))?;
        let name = names.next().ok_or(io::ErrorKind::NotFound)??.file_name();
        let device = open(&format!("/dev/vfio/devices/{}", name.to_string_lossy()))?;
        let memory = ram.memfd();
        let descriptor = |file: &File| file.as_raw_fd().cast_unsigned();
        call(&device, BIND, &mut [24, 0, descriptor(&iommufd), 0, 0, 0])?;
        let mut alloc = [12, 0, 0];
        call(&iommufd, IOAS_ALLOC, &mut alloc)?;
        let [_, _, ioas] = alloc;
        let bytes = u32::try_from(RAM_BYTES).map_err(io::Error::other)?;
        let file = descriptor(memory.file());
        let mut map = [40, FIXED_WRITE_READ, ioas, file, 0, 0, bytes, 0, 0, 0];
        call(&iommufd, IOAS_MAP_FILE, &mut map)?;
        call(&device, ATTACH, &mut [16, 0, ioas, 0])?;
        for file in [&iommufd, &device] {
            fcntl_setfd(file.as_fd(), FdFlags::empty())?;
        }
        Ok(Self { iommufd, device })
    }
}

/// One call with a structure of 32-bit words; the first is the structure's size.
fn call<const N: usize>(file: &File, request: u32, words: &mut [u32; N]) -> io::Result<()> {
    let (file, request) = (file.as_raw_fd(), request as libc::Ioctl);
    // SAFETY: 1. the file is open; 2. each caller above passes the structure of the request, its size
    // first and no pointer in it, so the kernel stays inside `words`.
    let done = unsafe { libc::ioctl(file, request, words.as_mut_ptr()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

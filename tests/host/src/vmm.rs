//! What a VMM does with a device before it shares it, written down from linux/iommufd.h and linux/vfio.h.
#![expect(unsafe_code, reason = "ioctls")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;

use rustix::io::{FdFlags, fcntl_setfd};

use crate::pci::Function;
use crate::ram::{RAM_BYTES, Ram};

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

/// Where a device's descriptor has its configuration space, and the command register in that (linux/vfio.h;
/// PCI 3.0, 6.2.2).
const COMMAND_AT: u64 = 7 << 40 | 4;

/// A VMM with devices, attached to all of guest memory at its own addresses: what QEMU has when it is
/// ready. What we start inherits all descriptors.
#[derive(Debug)]
pub(crate) struct Vmm {
    pub(crate) iommufd: File,
    pub(crate) devices: Vec<File>,
    ioas: u32,
}

impl Vmm {
    /// Opens and binds `functions`, and attaches them to `ram`.
    ///
    /// # Errors
    /// The kernel has no iommufd, or refuses.
    pub(crate) fn new(functions: &[&Function], ram: &Ram) -> io::Result<Self> {
        let iommufd = open("/dev/iommu")?;
        let memory = ram.memfd();
        let mut alloc = [12, 0, 0];
        call(&iommufd, IOAS_ALLOC, &mut alloc)?;
        let [_, _, ioas] = alloc;
        let vmm = Self { iommufd, devices: Vec::new(), ioas };
        vmm.map(memory.file(), (0, RAM_BYTES))?;
        functions.iter().try_fold(vmm, |vmm, function| vmm.with(function))
    }

    /// Binds and attaches one more.
    fn with(mut self, function: &Function) -> io::Result<Self> {
        let mut names = fs::read_dir(function.file("vfio-dev"))?;
        let name = names.next().ok_or(io::ErrorKind::NotFound)??.file_name();
        let device = open(&format!("/dev/vfio/devices/{}", name.to_string_lossy()))?;
        call(&device, BIND, &mut [24, 0, descriptor(&self.iommufd), 0, 0, 0])?;
        call(&device, ATTACH, &mut [16, 0, self.ioas, 0])?;
        self.devices.push(device);
        Ok(self)
    }

    /// Has `bytes` bytes of a device's first BAR at `gpa`, as QEMU has when the guest lets the device
    /// decode addresses.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn show_registers(&self, device: usize, gpa: u64, bytes: u64) -> io::Result<()> {
        let device = self.devices.get(device).ok_or(io::ErrorKind::NotFound)?;
        let [low, high] = halves(bytes);
        let mut feature = [40, GET_DMA_BUF, 0, READ_WRITE, 0, 1, 0, 0, low, high];
        let raw = call(device, FEATURE, &mut feature)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        let buffer = unsafe { File::from_raw_fd(raw) };
        self.map(&buffer, (gpa, bytes))
    }

    /// Ends [`Vmm::show_registers`], as QEMU does when the guest does not let the device decode any more.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn hide_registers(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        let ([low, high], [length, more]) = (halves(gpa), halves(bytes));
        let mut unmap = [24, self.ioas, low, high, length, more];
        call(&self.iommufd, IOAS_UNMAP, &mut unmap).map(drop)
    }

    /// Lets a device decode addresses and master the bus, or neither, by its own descriptor.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn enable(&self, device: usize, enabled: bool) -> io::Result<()> {
        let device = self.devices.get(device).ok_or(io::ErrorKind::NotFound)?;
        let command: u16 = if enabled { 6 } else { 0 };
        device.write_all_at(&command.to_le_bytes(), COMMAND_AT)
    }

    /// Maps `bytes` bytes of a file at `gpa`.
    fn map(&self, file: &File, (gpa, bytes): (u64, u64)) -> io::Result<()> {
        let ([low, high], [length, more]) = (halves(gpa), halves(bytes));
        let file = descriptor(file);
        let mut map = [40, FIXED_WRITE_READ, self.ioas, file, 0, 0, length, more, low, high];
        call(&self.iommufd, IOAS_MAP_FILE, &mut map).map(drop)
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

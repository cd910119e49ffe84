//! A type1 container without a daemon: what mapping costs where nothing else is between a program and
//! the kernel.
#![expect(unsafe_code, reason = "VFIO's ioctls, which no safe crate has for containers")]

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vfio_bindings::bindings::vfio::{vfio_iommu_type1_dma_map, vfio_iommu_type1_dma_unmap};

use crate::pci::Function;
use crate::ram::Ram;

/// The first of VFIO's request numbers: `_IO(';', 100)` (linux/vfio.h).
const BASE: libc::Ioctl = 0x3b64;

/// `VFIO_TYPE1v2_IOMMU`.
const TYPE1_V2: libc::c_ulong = 3;

/// The device may read and write.
const READ_WRITE: u32 = 3;

/// A container with one function in it. The kernel takes all mappings away when it goes.
#[derive(Debug)]
pub(crate) struct Container {
    container: File,
    _group: File,
    _device: OwnedFd,
}

impl Container {
    /// A container for a function that vfio-pci has; it is powered up.
    ///
    /// # Errors
    /// The kernel has no type1, or the group is not viable.
    pub(crate) fn open(function: &Function) -> io::Result<Self> {
        let link = std::fs::read_link(function.file("iommu_group"))?;
        let number = link.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
        let (container, group) = (open("/dev/vfio/vfio")?, open(&format!("/dev/vfio/{number}"))?);
        let mut descriptor: RawFd = container.as_raw_fd();
        with_struct(&group, 4, &mut descriptor)?;
        set_iommu(&container)?;
        let device = device(&group, &CString::new(function.address())?)?;
        Ok(Self { container, _group: group, _device: device })
    }

    /// VFIO_IOMMU_MAP_DMA of guest memory.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn map(&self, iova: u64, ram: &Ram, gpa: u64, bytes: u64) -> io::Result<()> {
        let mut map = vfio_iommu_type1_dma_map {
            argsz: size::<vfio_iommu_type1_dma_map>(),
            flags: READ_WRITE,
            vaddr: ram.address(gpa, bytes)?,
            iova,
            size: bytes,
        };
        with_struct(&self.container, 13, &mut map)
    }

    /// VFIO_IOMMU_UNMAP_DMA.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn unmap(&self, iova: u64, bytes: u64) -> io::Result<()> {
        let argsz = size::<vfio_iommu_type1_dma_unmap>();
        let mut unmap =
            vfio_iommu_type1_dma_unmap { argsz, iova, size: bytes, ..Default::default() };
        with_struct(&self.container, 14, &mut unmap)
    }
}

/// A request that takes a structure, which the kernel reads and may answer in.
fn with_struct<T>(file: &File, request: libc::Ioctl, argument: &mut T) -> io::Result<()> {
    // SAFETY: 1. `file` is open for the call; 2. each caller passes the structure that linux/vfio.h gives
    // for the request, with its size in `argsz` where it has one, so the kernel stays inside `argument`.
    // 3. Memory that a device may write through it is guest memory, which nobody borrows.
    let result =
        unsafe { libc::ioctl(file.as_raw_fd(), BASE + request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// VFIO_SET_IOMMU on a container that has a group.
fn set_iommu(container: &File) -> io::Result<()> {
    // SAFETY: 1. `container` is open for the call; 2. the request takes a number, so the kernel follows no
    // pointer.
    let result = unsafe { libc::ioctl(container.as_raw_fd(), BASE + 2, TYPE1_V2) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// VFIO_GROUP_GET_DEVICE_FD: the device of that PCI address.
fn device(group: &File, name: &CString) -> io::Result<OwnedFd> {
    // SAFETY: 1. `group` is open for the call; 2. the request reads a string, which `name` is.
    let result = unsafe { libc::ioctl(group.as_raw_fd(), BASE + 6, name.as_ptr()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) })
}

/// The size of a structure as its `argsz` says it.
fn size<T>() -> u32 {
    // no structure of VFIO is larger than a few hundred bytes
    u32::try_from(std::mem::size_of::<T>()).unwrap_or(u32::MAX)
}

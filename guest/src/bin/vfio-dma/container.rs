//! A VFIO group in a type1 container: what a user-space driver has of the IOMMU.

use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;

use crate::sys;

/// `VFIO_TYPE1v2_IOMMU`: unmapping never splits a mapping.
const TYPE1_V2: u32 = 3;

/// `VFIO_GROUP_FLAGS_VIABLE`: all devices of the group are bound to VFIO.
const VIABLE: u32 = 1;

/// What a device may do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rights {
    /// It may read.
    Read,
    /// It may write.
    Write,
    /// Both.
    ReadWrite,
}

/// A container with one group in it. The kernel takes all mappings away when it goes.
#[derive(Debug)]
pub(crate) struct Container {
    container: File,
    group: File,
}

impl Container {
    /// Opens the group and gives it a domain of its own.
    ///
    /// # Errors
    /// The group is not viable, or the kernel has no type1 IOMMU for it.
    pub(crate) fn open(group: &str) -> io::Result<Self> {
        let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
        let container = open("/dev/vfio/vfio")?;
        let group = open(&format!("/dev/vfio/{group}"))?;
        if sys::group_flags(&group)? & VIABLE == 0 {
            return Err(io::Error::other("the group is not viable"));
        }
        if !sys::has_extension(&container, TYPE1_V2)? {
            return Err(io::Error::other("no type1v2 IOMMU"));
        }
        sys::set_container(&group, &container)?;
        sys::set_iommu(&container, TYPE1_V2)?;
        Ok(Self { container, group })
    }

    /// The page sizes that the IOMMU has, as a mask.
    pub(crate) fn page_sizes(&self) -> io::Result<u64> {
        sys::page_sizes(&self.container)
    }

    /// The device of that PCI address.
    pub(crate) fn device(&self, address: &str) -> io::Result<File> {
        let name = CString::new(address).map_err(io::Error::other)?;
        sys::device(&self.group, &name)
    }

    /// Lets the device reach one page at `iova`.
    pub(crate) fn map(&self, iova: u64, page: &sys::Page, rights: Rights) -> io::Result<()> {
        let flags = match rights {
            Rights::Read => 1,
            Rights::Write => 2,
            Rights::ReadWrite => 3,
        };
        sys::map_page(&self.container, iova, page, flags)
    }

    /// Takes the mappings in `bytes` bytes from `iova` away.
    ///
    /// # Errors
    /// Less was unmapped than asked for.
    pub(crate) fn unmap(&self, iova: u64, bytes: u64) -> io::Result<()> {
        let unmapped = sys::unmap(&self.container, iova, bytes)?;
        if unmapped == bytes {
            return Ok(());
        }
        Err(io::Error::other(format!("unmapped {unmapped:#x} bytes of {bytes:#x} at {iova:#x}")))
    }
}

//! Devices' registers as dma-bufs, which IOAS_MAP_FILE takes as it takes memory.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use viommu_pasid::EndpointId;

use super::sys::{FilePart, Iommufd};
use super::{Device, Space};
use crate::HostError;
use crate::vfio::sys::dma_buf;
use crate::vfio::{BarWindow, Ram, Region, VfioError};

/// The registers that the windows show. One whose registers this kernel cannot map is told of and left out:
/// what leads there is refused.
///
/// # Errors
/// A window that no BAR fills, or of a device that is not among `devices`.
pub(super) fn open(
    iommufd: &Iommufd,
    devices: &BTreeMap<EndpointId, Device>,
    windows: &[BarWindow],
) -> Result<Ram, VfioError> {
    let mut registers = Vec::new();
    for window in windows {
        let no_device = VfioError::NoWindowDevice { window: *window };
        let device = devices.get(&window.endpoint).ok_or(no_device)?;
        let cdev = device.cdev.as_fd();
        window.locate(cdev)?;
        let found = dma_buf(cdev, window.bar.into(), (window.offset, window.bytes()));
        let tried = found.map_err(told("VFIO_DEVICE_FEATURE_DMA_BUF")).and_then(|buffer| {
            try_to_map(iommufd, device.id, (&buffer, window))?;
            Region::registers(window, (buffer.as_fd(), 0))
        });
        match tried {
            Ok(region) => registers.push(region),
            Err(error) => log::warn!(
                "{window}: {error}: a MAP that leads there is refused; it needs Linux 7.0 with \
                 CONFIG_VFIO_PCI_DMABUF, or --host-iommu type1"
            ),
        }
    }
    Ok(Ram::of(registers))
}

/// Maps a dma-buf for the device's IOMMU and forgets it again. An older kernel takes it into an address
/// space as if it were memory, and refuses it where there is a table to fill.
fn try_to_map(
    iommufd: &Iommufd,
    device: Option<u32>,
    (buffer, window): (&OwnedFd, &BarWindow),
) -> Result<(), HostError> {
    let mut space = Space::new(iommufd)?;
    let part = FilePart { file: buffer.as_fd(), start: 0, bytes: window.bytes() };
    let tabled = device.map_or(Ok(()), |id| space.add_table(iommufd, id));
    let mapped = tabled.and_then(|()| {
        iommufd.map_file_anywhere(space.ioas, part).map_err(told("IOAS_MAP_FILE of a dma-buf"))
    });
    space.destroy(iommufd);
    mapped
}

/// A refusal, with the call.
fn told(call: &'static str) -> impl FnOnce(io::Error) -> HostError {
    move |source| HostError::Refused { call, source }
}

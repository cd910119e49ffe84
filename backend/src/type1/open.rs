//! Opening devices with their groups, and what there is to know of them before a guest comes.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use viommu_pasid::EndpointId;

use super::container::{Container, Windows};
use super::info::Info;
use super::sys::Window;
use super::{Type1Kernel, sys};
use crate::vfio::sys::announce_release;
use crate::vfio::sysfs::{Groups, Sysfs, gaps};
use crate::vfio::{
    BarWindow, Counters, Leaving, OnStart, Opened, PciAddress, Ram, Reach, Region, Reserved, Start,
    VFIO_PCI, Vfio, VfioError,
};
use crate::{Capabilities, HostError, ioctl};

/// Where groups are.
const GROUPS: &str = "/dev/vfio";
/// What makes a container when it is opened.
const CONTAINER: &str = "/dev/vfio/vfio";

/// Opens devices, each with a container of its own; `windows` are where the guest sees registers of theirs.
///
/// # Errors
/// [`VfioError`].
pub fn open(
    devices: Vec<(EndpointId, PciAddress)>,
    windows: &[BarWindow],
) -> Result<Opened, VfioError> {
    let mut groups = Groups::default();
    let mut leaving = Leaving::new()
        .map_err(|source| VfioError::Open { path: PathBuf::from("epoll"), source })?;
    let (mut containers, mut found) = (BTreeMap::new(), Vec::new());
    let (mut page_size_mask, mut reach) = (u64::MAX, Reach::default());
    for (endpoint, address) in devices {
        let (container, info, known) = open_one(address, &mut groups)?;
        let setup =
            |call| move |source| VfioError::Refused { device: address.to_string(), call, source };
        let wish = leaving.watch(endpoint).map_err(setup("eventfd"))?;
        announce_release(container.as_fd(), wish).map_err(setup("VFIO_DEVICE_SET_IRQS"))?;
        page_size_mask &= info.page_size_mask;
        if !info.usable.is_empty() {
            reach.narrow(&info.usable);
        }
        found.push((endpoint, info.usable, known));
        containers.insert(endpoint, container);
    }
    // an older kernel does not say what is usable
    let told = |(endpoint, usable, known): (_, Vec<_>, Vec<_>)| {
        (endpoint, if usable.is_empty() { known } else { gaps(&usable, &known, reach.last()) })
    };
    let reserved: BTreeMap<_, _> = found.into_iter().map(told).collect();
    let capabilities =
        Capabilities { page_size_mask, input_bits: reach.bits(), output_last: u64::MAX };
    let endpoints: Vec<_> = reserved.keys().copied().collect();
    let (registers, windows) = registers(&containers, windows)?;
    let kernel = Type1Kernel { containers, windows, capabilities, counters: Counters::default() };
    let start = Start { leaving: Some(leaving), on_start: OnStart::Boot, registers };
    Ok(Opened { vfio: Vfio::over(Box::new(kernel), endpoints, start), reserved })
}

/// The registers that the windows show, and where they are in our address space: a container maps what
/// lies there.
fn registers(
    containers: &BTreeMap<EndpointId, Container>,
    windows: &[BarWindow],
) -> Result<(Ram, Windows), VfioError> {
    let (mut registers, mut mapped) = (Vec::new(), Windows::new());
    for window in windows {
        let no_device = VfioError::NoWindowDevice { window: *window };
        let device = containers.get(&window.endpoint).ok_or(no_device)?.as_fd();
        let offset = window.locate(device)?;
        let setup = |error| VfioError::Setup { what: "a window over registers", error };
        let region = Region::registers(window, (device, offset)).map_err(setup)?;
        let memory = Window::new(device, offset, region.bytes())
            .map_err(|source| setup(HostError::Refused { call: "mmap", source }))?;
        mapped.insert(region.gpa(), memory);
        registers.push(region);
    }
    Ok((Ram::of(registers), mapped))
}

fn open_one(
    address: PciAddress,
    groups: &mut Groups,
) -> Result<(Container, Info, Vec<Reserved>), VfioError> {
    let device = || address.to_string();
    let no_device = |source| VfioError::NoDevice { device: device(), source };
    let sysfs = Sysfs::at(address).map_err(no_device)?;
    let driver = sysfs.driver();
    if driver.as_deref() != Some(VFIO_PCI) {
        return Err(VfioError::NotVfio { device: device(), driver });
    }
    let group = groups.take(&sysfs)?;
    let open =
        |path: PathBuf| ioctl::open(&path).map_err(|source| VfioError::Open { path, source });
    let (container, group) = (open(CONTAINER.into())?, open(Path::new(GROUPS).join(group))?);
    let refused =
        |call| move |source| VfioError::Refused { device: address.to_string(), call, source };
    if !sys::is_viable(&group).map_err(refused("VFIO_GROUP_GET_STATUS"))? {
        return Err(VfioError::NotViable { device: device() });
    }
    sys::set_container(&group, &container).map_err(refused("VFIO_GROUP_SET_CONTAINER"))?;
    sys::set_type1(&container).map_err(refused("VFIO_SET_IOMMU"))?;
    let opened = sys::device(&group, &device()).map_err(refused("VFIO_GROUP_GET_DEVICE_FD"))?;
    let info = Info::parse(&sys::info(&container).map_err(refused("VFIO_IOMMU_GET_INFO"))?);
    let known = sysfs.reserved().map_err(no_device)?;
    let limit = usize::try_from(info.mappings).unwrap_or(usize::MAX);
    Ok((Container::new(container, limit, (group, opened)), info, known))
}

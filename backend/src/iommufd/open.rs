//! Getting devices, and what there is to know of them before a guest comes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::MemfdFlags;
use viommu_pasid::EndpointId;
use viommu_pgtable::{Access, Iova};

use super::sys::{Cdev, FilePart, Iommufd, NEEDED, Usable};
use super::{Device, Identity, IommufdKernel, Space, registers};
use crate::vfio::sysfs::{Groups, Sysfs, gaps};
use crate::vfio::{
    BarWindow, Counters, Leaving, OnStart, Opened, PciAddress, Pin, Place, Reach, Reserved, Start,
    VFIO_PCI, Vfio, VfioError,
};
use crate::{Capabilities, ioctl};

/// The kernel's file.
const IOMMUFD: &str = "/dev/iommu";
/// A page of every kernel that this runs on is this long, or several of it, bytes.
const PAGE_BYTES: u64 = 4096;
/// The largest page that a kernel has, bytes: what [`probe`] maps.
const PROBE_BYTES: u64 = 64 << 10;

/// Whose the devices are.
#[derive(Debug)]
pub enum Devices {
    /// Ours: we open and bind them.
    Ours {
        /// Where they are.
        devices: Vec<(EndpointId, PciAddress)>,
        /// Where the guest sees registers of theirs.
        registers: Vec<BarWindow>,
    },
    /// The VMM's: it binds them to this iommufd, of which it holds the same file.
    Given {
        /// The iommufd.
        iommufd: OwnedFd,
        /// The devices' descriptors, out of `/dev/vfio/devices`.
        devices: Vec<(EndpointId, OwnedFd)>,
    },
}

/// Whether the kernel has iommufd, and a descriptor of its own for the device at `address`.
#[must_use]
pub fn serves(address: PciAddress) -> bool {
    let cdev = Sysfs::at(address).ok().and_then(|sysfs| sysfs.cdev());
    cdev.is_some() && Path::new(IOMMUFD).exists()
}

/// Opens devices, or takes them over.
///
/// # Errors
/// [`VfioError`].
pub fn open(devices: Devices, pin: Pin, on_start: OnStart) -> Result<Opened, VfioError> {
    match devices {
        Devices::Ours { devices, registers } => ours(devices, &registers, pin),
        Devices::Given { iommufd, devices } => given(Iommufd(iommufd), devices, on_start),
    }
}

/// Opens iommufd and devices for a VMM that will bind them.
///
/// # Errors
/// [`VfioError`].
pub fn descriptors(devices: &[PciAddress]) -> Result<(OwnedFd, Vec<OwnedFd>), VfioError> {
    let first = devices.first().map_or_else(String::new, PciAddress::to_string);
    let iommufd = open_iommufd(first)?;
    let mut groups = Groups::default();
    let cdevs =
        devices.iter().map(|address| open_cdev(*address, &mut groups).map(|(cdev, _)| cdev));
    Ok((iommufd, cdevs.collect::<Result<_, _>>()?))
}

fn ours(
    devices: Vec<(EndpointId, PciAddress)>,
    windows: &[BarWindow],
    pin: Pin,
) -> Result<Opened, VfioError> {
    let first = devices.first().map_or_else(String::new, |(_, address)| address.to_string());
    let iommufd = Iommufd(open_iommufd(first)?);
    probe(&iommufd)?;
    let (mut opened, mut found) = (BTreeMap::new(), Vec::new());
    let (mut common, mut groups) = (Common::default(), Groups::default());
    let mut leaving = Leaving::new().map_err(setup("epoll"))?;
    for (endpoint, address) in devices {
        let (device, usable, known) = bind(&iommufd, address, &mut groups)?;
        let wish = leaving.watch(endpoint).map_err(setup("eventfd"))?;
        device.cdev.announce_release(wish).map_err(setup("VFIO_DEVICE_SET_IRQS"))?;
        common.narrow(&usable);
        found.push((endpoint, usable.ranges, known));
        opened.insert(endpoint, device);
    }
    let last = common.reach.last();
    let told =
        |(endpoint, usable, known): (_, Vec<_>, Vec<_>)| (endpoint, gaps(&usable, &known, last));
    let reserved: BTreeMap<_, _> = found.into_iter().map(told).collect();
    let new =
        || Space::new(&iommufd).map_err(|error| VfioError::Setup { what: "address space", error });
    let (nowhere, mut space) = (Some(new()?), new()?);
    let filled = pin == Pin::Static;
    if let Some(id) = opened.values().find_map(|device: &Device| device.id).filter(|_| filled) {
        // the kernel pins what an address space maps only while a table has it, attached or not
        space
            .add_table(&iommufd, id)
            .map_err(|error| VfioError::Setup { what: "table of guest memory", error })?;
    }
    let registers = registers::open(&iommufd, &opened, windows)?;
    let identity = Identity::Ours { space, pin, regions: Vec::new(), filled };
    let kernel = kernel(iommufd, opened, (nowhere, identity), common.capabilities());
    let endpoints: Vec<_> = reserved.keys().copied().collect();
    let start = Start { leaving: Some(leaving), on_start: OnStart::Boot, registers };
    Ok(Opened { vfio: Vfio::over(Box::new(kernel), endpoints, start), reserved })
}

/// A refusal of what every device needs.
fn setup(call: &'static str) -> impl FnOnce(io::Error) -> VfioError {
    move |source| VfioError::Refused { device: "VFIO".to_owned(), call, source }
}

fn given(
    iommufd: Iommufd,
    devices: Vec<(EndpointId, OwnedFd)>,
    on_start: OnStart,
) -> Result<Opened, VfioError> {
    if !iommufd.is_one() {
        return Err(VfioError::NotIommufd);
    }
    let (mut opened, mut reserved) = (BTreeMap::new(), BTreeMap::new());
    let mut groups = Groups::default();
    for (endpoint, cdev) in devices {
        let no_device = |source| VfioError::NoDevice { device: format!("{endpoint}'s"), source };
        let sysfs = Sysfs::of(cdev.as_fd()).map_err(|_| VfioError::NotCdev { endpoint })?;
        groups.take(&sysfs)?;
        reserved.insert(endpoint, sysfs.reserved().map_err(no_device)?);
        let cdev = Cdev(cdev);
        opened.insert(endpoint, Device { cdev, id: None, place: Place::Nowhere });
    }
    // What the IOMMU's width is shows when the devices are attached: `adopt` narrows this.
    let kernel = kernel(
        iommufd,
        opened,
        (None, Identity::Vmm(None)),
        Common::default().whole_capabilities(),
    );
    let endpoints: Vec<_> = reserved.keys().copied().collect();
    let start = Start { on_start, ..Start::default() };
    Ok(Opened { vfio: Vfio::over(Box::new(kernel), endpoints, start), reserved })
}

fn kernel(
    iommufd: Iommufd,
    devices: BTreeMap<EndpointId, Device>,
    (nowhere, identity): (Option<Space>, Identity),
    capabilities: Capabilities,
) -> IommufdKernel {
    let (bound, domains) = (Vec::new(), BTreeMap::new());
    let counters = Counters::default();
    IommufdKernel { iommufd, devices, bound, nowhere, identity, domains, capabilities, counters }
}

/// Binds one device, and attaches it to an empty address space, for only then the kernel tells what the
/// device can use.
fn bind(
    iommufd: &Iommufd,
    address: PciAddress,
    groups: &mut Groups,
) -> Result<(Device, Usable, Vec<Reserved>), VfioError> {
    let (cdev, sysfs) = open_cdev(address, groups)?;
    let cdev = Cdev(cdev);
    let refused =
        |call| move |source| VfioError::Refused { device: address.to_string(), call, source };
    let id = cdev.bind(iommufd).map_err(refused("VFIO_DEVICE_BIND_IOMMUFD"))?;
    let empty = iommufd.ioas_alloc().map_err(refused("IOMMU_IOAS_ALLOC"))?;
    cdev.attach(empty).map_err(refused("VFIO_DEVICE_ATTACH_IOMMUFD_PT"))?;
    let usable = iommufd.usable(empty).map_err(refused("IOMMU_IOAS_IOVA_RANGES"))?;
    cdev.detach().map_err(refused("VFIO_DEVICE_DETACH_IOMMUFD_PT"))?;
    iommufd.destroy(empty).map_err(refused("IOMMU_DESTROY"))?;
    let no_device = |source| VfioError::NoDevice { device: address.to_string(), source };
    let known = sysfs.reserved().map_err(no_device)?;
    Ok((Device { cdev, id: Some(id), place: Place::Nowhere }, usable, known))
}

/// A device's own descriptor, and its folder in sysfs.
fn open_cdev(address: PciAddress, groups: &mut Groups) -> Result<(OwnedFd, Sysfs), VfioError> {
    let name = || address.to_string();
    let sysfs =
        Sysfs::at(address).map_err(|source| VfioError::NoDevice { device: name(), source })?;
    let driver = sysfs.driver();
    if driver.as_deref() != Some(VFIO_PCI) {
        return Err(VfioError::NotVfio { device: name(), driver });
    }
    groups.take(&sysfs)?;
    let path = sysfs.cdev().ok_or_else(|| VfioError::NoIommufd {
        device: name(),
        missing: "the device has no descriptor of its own",
    })?;
    let cdev = ioctl::open(&path).map_err(|source| VfioError::Open { path, source })?;
    Ok((cdev.into(), sysfs))
}

/// iommufd, for `device` first of all.
fn open_iommufd(device: String) -> Result<OwnedFd, VfioError> {
    let path = Path::new(IOMMUFD);
    ioctl::open(path).map(OwnedFd::from).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            VfioError::NoIommufd { device, missing: "there is no /dev/iommu" }
        }
        _ => VfioError::Open { path: path.to_owned(), source },
    })
}

/// Whether the kernel has the newest call that is needed: tried on a page of our own, because there is no
/// other way to ask.
fn probe(iommufd: &Iommufd) -> Result<(), VfioError> {
    let failed = |call| {
        move |source: io::Error| match source.raw_os_error() {
            Some(libc::ENOTTY) => VfioError::TooOld { call, since: NEEDED },
            _ => VfioError::Refused { device: IOMMUFD.to_owned(), call, source },
        }
    };
    let ioas = iommufd.ioas_alloc().map_err(failed("IOMMU_IOAS_ALLOC"))?;
    let memfd = rustix::fs::memfd_create("probe", MemfdFlags::CLOEXEC)
        .and_then(|memfd| rustix::fs::ftruncate(&memfd, PROBE_BYTES).map(|()| memfd))
        .map_err(|errno| failed("memfd_create")(errno.into()))?;
    let part = FilePart { file: memfd.as_fd(), start: 0, bytes: PROBE_BYTES };
    iommufd
        .map_file(ioas, part, Iova::new(0), Access::READ)
        .map_err(failed("IOMMU_IOAS_MAP_FILE"))?;
    iommufd.destroy(ioas).map_err(failed("IOMMU_DESTROY"))
}

/// What all devices can map.
#[derive(Debug)]
pub(super) struct Common {
    alignment: u64,
    reach: Reach,
}

impl Default for Common {
    fn default() -> Self {
        Self { alignment: PAGE_BYTES, reach: Reach::default() }
    }
}

impl Common {
    pub(super) fn narrow(&mut self, usable: &Usable) {
        self.alignment = self.alignment.max(usable.alignment);
        self.reach.narrow(&usable.ranges);
    }

    /// For guests that are told of what lies behind the last usable IOVA.
    fn capabilities(&self) -> Capabilities {
        self.with_bits(self.reach.bits())
    }

    /// For guests that are not: how far a VMM's devices reach shows after their reserved ranges were told.
    pub(super) fn whole_capabilities(&self) -> Capabilities {
        self.with_bits(self.reach.whole_bits())
    }

    fn with_bits(&self, input_bits: u8) -> Capabilities {
        let page_size_mask = self.alignment.wrapping_neg();
        Capabilities { page_size_mask, input_bits, output_last: u64::MAX }
    }
}

//! What sysfs tells of a PCI device of the host.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use viommu_pasid::EndpointId;
use viommu_pgtable::{Iova, IovaRange};

use super::VfioError;

/// The folder in which a device has its VFIO descriptors.
const CDEVS: &str = "vfio-dev";

/// A PCI function of the host: `SSSS:BB:DD.F`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress(EndpointId);

impl PciAddress {
    /// The function whose segment, bus, device and function are those that `id` has in the guest.
    #[must_use]
    pub const fn new(id: EndpointId) -> Self {
        Self(id)
    }

    fn folder(self) -> PathBuf {
        Path::new("/sys/bus/pci/devices").join(self.to_string())
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Why a range is no use for mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReservedKind {
    /// The host's interrupts go there.
    Msi,
    /// The host, or its firmware, uses it otherwise.
    Other,
}

/// IOVAs that a device must not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reserved {
    /// Which.
    pub range: IovaRange,
    /// What for.
    pub kind: ReservedKind,
}

/// A device's folder in sysfs.
#[derive(Debug)]
pub(crate) struct Sysfs(PathBuf);

impl Sysfs {
    /// The device at `address`.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn at(address: PciAddress) -> io::Result<Self> {
        address.folder().canonicalize().map(Self)
    }

    /// The device that a descriptor of `/dev/vfio/devices` is of.
    ///
    /// # Errors
    /// It is of something else.
    pub(crate) fn of(descriptor: impl AsFd) -> io::Result<Self> {
        let number = rustix::fs::fstat(descriptor)?.st_rdev;
        let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
        let entry = Path::new(&format!("/sys/dev/char/{major}:{minor}")).canonicalize()?;
        // other drivers' descriptors have devices with groups, too
        let is_vfio = entry.parent().is_some_and(|folder| folder.ends_with(CDEVS));
        if !is_vfio {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        entry.join("device").canonicalize().map(Self)
    }

    /// The driver that it is bound to.
    pub(crate) fn driver(&self) -> Option<String> {
        name_of_link(&self.0.join("driver"))
    }

    /// The path of its VFIO descriptor; `None` where the kernel has none (CONFIG_VFIO_DEVICE_CDEV).
    pub(crate) fn cdev(&self) -> Option<PathBuf> {
        let entry = fs::read_dir(self.0.join(CDEVS)).ok()?.find_map(Result::ok)?;
        Some(Path::new("/dev/vfio/devices").join(entry.file_name()))
    }

    /// Its address, as sysfs has it.
    fn name(&self) -> String {
        self.0.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// What its group must leave alone.
    ///
    /// # Errors
    /// It has no group, or sysfs cannot be read.
    pub(crate) fn reserved(&self) -> io::Result<Vec<Reserved>> {
        let text = fs::read_to_string(self.0.join("iommu_group/reserved_regions"))?;
        Ok(text.lines().filter_map(region).collect())
    }
}

/// The IOMMU groups that devices have been taken of. The kernel attaches a group as a whole, so of two
/// endpoints in one, each would have what the guest gave the other.
#[derive(Debug, Default)]
pub(crate) struct Groups(BTreeMap<String, String>);

impl Groups {
    /// The number of a device's group, of which nothing else is taken.
    ///
    /// # Errors
    /// [`VfioError::OneGroup`]; [`VfioError::NoDevice`] for a device without a group, behind no IOMMU.
    pub(crate) fn take(&mut self, device: &Sysfs) -> Result<String, VfioError> {
        let name = device.name();
        let Some(group) = name_of_link(&device.0.join("iommu_group")) else {
            let source = io::Error::new(io::ErrorKind::NotFound, "it is in no IOMMU group");
            return Err(VfioError::NoDevice { device: name, source });
        };
        match self.0.insert(group.clone(), name.clone()) {
            Some(other) => Err(VfioError::OneGroup { device: name, other, group }),
            None => Ok(group),
        }
    }
}

fn name_of_link(link: &Path) -> Option<String> {
    let target = fs::read_link(link).ok()?;
    Some(target.file_name()?.to_string_lossy().into_owned())
}

/// One line of `reserved_regions`: first, last, kind. What is relaxable binds no assigned device.
fn region(line: &str) -> Option<Reserved> {
    let mut words = line.split_whitespace();
    let mut number = || u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok();
    let (first, last) = (number()?, number()?);
    let range = IovaRange::new(Iova::new(first), Iova::new(last))?;
    match words.next()? {
        "direct-relaxable" => None,
        "msi" => Some(Reserved { range, kind: ReservedKind::Msi }),
        _ => Some(Reserved { range, kind: ReservedKind::Other }),
    }
}

/// What lies between usable ranges, which are in ascending order, and behind them up to `last`, inclusive; of
/// the kind that `known` says, and split where a known region ends inside a gap.
pub(crate) fn gaps(usable: &[IovaRange], known: &[Reserved], last: Iova) -> Vec<Reserved> {
    let mut gaps = Vec::new();
    let mut next = Some(Iova::new(0));
    for range in usable {
        if let Some(first) = next
            && let Some(last) = range.start().raw().checked_sub(1)
            && let Some(gap) = IovaRange::new(first, Iova::new(last))
        {
            fill(&mut gaps, gap, known);
        }
        next = range.last().checked_add(1);
    }
    if let Some(gap) = next.and_then(|first| IovaRange::new(first, last)) {
        fill(&mut gaps, gap, known);
    }
    gaps
}

/// One gap: the MSI window in it, and what is left of it on both sides.
fn fill(gaps: &mut Vec<Reserved>, gap: IovaRange, known: &[Reserved]) {
    let window =
        known.iter().find(|region| region.kind == ReservedKind::Msi && gap.covers(&region.range));
    let Some(window) = window else {
        gaps.push(Reserved { range: gap, kind: ReservedKind::Other });
        return;
    };
    let before = window.range.start().raw().checked_sub(1).map(Iova::new);
    let before = before.and_then(|last| IovaRange::new(gap.start(), last));
    let after = window.range.last().checked_add(1);
    let after = after.and_then(|first| IovaRange::new(first, gap.last()));
    let other = |range| Reserved { range, kind: ReservedKind::Other };
    gaps.extend(before.map(other));
    gaps.push(*window);
    gaps.extend(after.map(other));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).unwrap()
    }

    fn reserved(first: u64, last: u64, kind: ReservedKind) -> Reserved {
        Reserved { range: range(first, last), kind }
    }

    #[test]
    fn of_two_devices_in_a_group_the_second_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let device = |name: &str, group: &str| {
            let device = folder.path().join(name);
            fs::create_dir(&device).unwrap();
            let target = Path::new("../../kernel/iommu_groups").join(group);
            std::os::unix::fs::symlink(target, device.join("iommu_group")).unwrap();
            Sysfs(device)
        };
        let mut groups = Groups::default();
        assert_eq!(groups.take(&device("0000:65:00.0", "7")).unwrap(), "7");
        assert_eq!(groups.take(&device("0000:66:00.0", "8")).unwrap(), "8");
        let refused = groups.take(&device("0000:65:00.1", "7")).unwrap_err().to_string();
        let told = "0000:65:00.1 and 0000:65:00.0 are both in IOMMU group 7";
        assert!(refused.starts_with(told), "{refused}");
    }

    #[test]
    fn a_descriptor_of_something_else_is_no_device() {
        assert!(Sysfs::of(fs::File::open("/dev/null").unwrap()).is_err());
        assert!(Sysfs::of(tempfile::tempfile().unwrap()).is_err());
    }

    #[test]
    fn a_device_behind_no_iommu_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let refused = Groups::default().take(&Sysfs(folder.path().to_owned())).unwrap_err();
        assert!(matches!(refused, VfioError::NoDevice { .. }), "{refused}");
    }

    #[test]
    fn a_line_of_reserved_regions_names_its_kind() {
        assert_eq!(
            region("0x00000000fee00000 0x00000000feefffff msi"),
            Some(reserved(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi))
        );
        assert_eq!(
            region("0x000000007f000000 0x000000007fffffff direct"),
            Some(reserved(0x7f00_0000, 0x7fff_ffff, ReservedKind::Other))
        );
        assert_eq!(region("0x0000000000000000 0x0000000000ffffff direct-relaxable"), None);
        assert_eq!(region("nonsense"), None);
    }

    #[test]
    fn what_lies_between_usable_ranges_is_reserved_as_sysfs_names_it() {
        let usable = [range(0x1000, 0xfedf_ffff), range(0xff00_0000, 0xffff_ffff)];
        let msi = reserved(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi);
        assert_eq!(
            gaps(&usable, &[msi], Iova::new(0xffff_ffff)),
            [
                reserved(0, 0xfff, ReservedKind::Other),
                msi,
                reserved(0xfef0_0000, 0xfeff_ffff, ReservedKind::Other),
            ]
        );
    }

    #[test]
    fn ranges_without_a_gap_reserve_nothing() {
        assert_eq!(gaps(&[range(0, u64::MAX)], &[], Iova::new(u64::MAX)), []);
        assert_eq!(
            gaps(&[range(0, 0xfff_ffff)], &[], Iova::new(0xffff)),
            [],
            "another is narrower"
        );
    }

    #[test]
    fn what_lies_behind_the_last_usable_range_is_reserved_as_far_as_it_is_told() {
        let usable = [range(0, 0xfedf_ffff)];
        let told = Iova::new(0xffff_ffff);
        assert_eq!(
            gaps(&usable, &[], told),
            [reserved(0xfee0_0000, 0xffff_ffff, ReservedKind::Other)]
        );
        let msi = reserved(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi);
        let rest = reserved(0xfef0_0000, 0xffff_ffff, ReservedKind::Other);
        assert_eq!(gaps(&usable, &[msi], told), [msi, rest]);
    }
}

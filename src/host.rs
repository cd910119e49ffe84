//! Where translations take effect for this daemon: tables for device processes, the host's IOMMU for
//! VFIO devices.

use std::collections::BTreeMap;
use std::os::fd::{OwnedFd, RawFd};

use viommu_backend::iommufd::{self, Devices};
use viommu_backend::vfio::{self, Opened, PciAddress, Reserved, ReservedKind, Vfio, VfioError};
use viommu_backend::{HostIommu, Mixed, SoftwareIommu, type1};
use viommu_pasid::EndpointId;
use viommu_pgtable::IovaRange;

use crate::config::{Config, HostInterface, OnStart, Pin, VfioDevice};
use crate::protocol::{ResvKind, ResvMem};

/// Device processes' tables, and the host's IOMMU where there are VFIO devices.
pub type Host = Mixed<SoftwareIommu, Vfio>;

/// Inherited descriptors, by their numbers.
pub type Descriptors = BTreeMap<RawFd, OwnedFd>;

/// The numbers of all descriptors that `config` says were inherited for VFIO devices.
#[must_use]
pub fn inherited(config: &Config) -> Vec<RawFd> {
    let mut numbers: Vec<_> = config.vfio.control.into_iter().collect();
    for endpoint in &config.endpoints {
        if let Some(VfioDevice::Given { device, iommufd }) = endpoint.vfio {
            numbers.extend([device, iommufd]);
        }
    }
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Opens the VFIO devices and adds their backend to `tables`. What the host reserves is noted with the
/// endpoints, and the guest's input range is cut to what the host's IOMMU translates.
///
/// # Errors
/// [`VfioError`].
pub fn with_vfio(
    config: &mut Config,
    tables: SoftwareIommu,
    descriptors: &mut Descriptors,
) -> Result<Host, VfioError> {
    let Some(Opened { mut vfio, reserved }) = open(config, descriptors)? else {
        return Ok(Mixed::new(tables));
    };
    for endpoint in &mut config.endpoints {
        if let Some(reserved) = reserved.get(&endpoint.spec.id) {
            endpoint.spec.reserved = merge(&endpoint.spec.reserved, reserved);
        }
    }
    if config.vfio.on_start != OnStart::Boot && config.vfio.control.is_none() {
        vfio.adopt().map_err(|error| VfioError::Setup { what: "devices of the VMM", error })?;
    }
    config.settings.narrow(vfio.capabilities().input_bits);
    let endpoints: Vec<_> = vfio.endpoints().collect();
    Ok(Mixed::with(tables, vfio, endpoints))
}

fn open(config: &Config, descriptors: &mut Descriptors) -> Result<Option<Opened>, VfioError> {
    let pin = match config.vfio.pin {
        Pin::Static => vfio::Pin::Static,
        Pin::Dynamic => vfio::Pin::Dynamic,
    };
    let on_start = match config.vfio.on_start {
        OnStart::Boot => vfio::OnStart::Boot,
        OnStart::Keep => vfio::OnStart::Keep,
        OnStart::Block => vfio::OnStart::Block,
    };
    let Some(devices) = devices(config, descriptors)? else { return Ok(None) };
    let opened = match (devices, config.vfio.interface) {
        (Devices::Ours { devices, registers }, interface) if takes_type1(&devices, interface) => {
            type1::open(devices, &registers)?
        }
        (devices, _) => iommufd::open(devices, pin, on_start)?,
    };
    Ok(Some(opened))
}

/// Whether devices are opened with their groups.
fn takes_type1(devices: &[(EndpointId, PciAddress)], interface: HostInterface) -> bool {
    match interface {
        HostInterface::Iommufd => false,
        HostInterface::Type1 => true,
        HostInterface::Auto => !devices.iter().all(|(_, address)| iommufd::serves(*address)),
    }
}

/// The VFIO devices, ours or given.
fn devices(config: &Config, descriptors: &mut Descriptors) -> Result<Option<Devices>, VfioError> {
    let (mut ours, mut given, mut iommufd) = (Vec::new(), Vec::new(), None);
    let mut take = |raw| descriptors.remove(&raw).ok_or(VfioError::NoDescriptor(raw));
    for endpoint in &config.endpoints {
        let id = endpoint.spec.id;
        match endpoint.vfio {
            None => {}
            Some(VfioDevice::Address(address)) => ours.push((id, address)),
            Some(VfioDevice::Given { device, iommufd: raw }) => {
                given.push((id, take(device)?));
                if iommufd.is_none() {
                    iommufd = Some(take(raw)?);
                }
            }
        }
    }
    Ok(match iommufd {
        Some(iommufd) => Some(Devices::Given { iommufd, devices: given }),
        None if ours.is_empty() => None,
        None => Some(Devices::Ours { devices: ours, registers: config.mmio.clone() }),
    })
}

/// What a PROBE tells: the guest's own window for interrupts, and what the host reserves. Where they
/// overlap they are one window: the guest cannot use either part.
fn merge(own: &[ResvMem], host: &[Reserved]) -> Vec<ResvMem> {
    let mut merged: Vec<_> = own.to_vec();
    for region in host {
        let range = region.range;
        match merged.iter_mut().find(|own| own.range.overlaps(&range)) {
            Some(own) => own.range = union(own.range, range),
            None => {
                let first_msi = region.kind == ReservedKind::Msi && own.is_empty();
                let kind = if first_msi { ResvKind::Msi } else { ResvKind::Reserved };
                merged.push(ResvMem { kind, range });
            }
        }
    }
    merged.sort_by_key(|region| region.range.start());
    merged
}

fn union(one: IovaRange, other: IovaRange) -> IovaRange {
    let (start, last) = (one.start().min(other.start()), one.last().max(other.last()));
    IovaRange::new(start, last).unwrap_or(one)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iommu::X86_MSI_WINDOW;
    use viommu_pgtable::Iova;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(Iova::new(first), Iova::new(last)).unwrap()
    }

    fn host(first: u64, last: u64, kind: ReservedKind) -> Reserved {
        Reserved { range: range(first, last), kind }
    }

    #[test]
    fn the_window_that_both_have_is_told_once() {
        let same = host(0xfee0_0000, 0xfeef_ffff, ReservedKind::Msi);
        let low = host(0, 0xfff, ReservedKind::Other);
        let low_told = ResvMem { kind: ResvKind::Reserved, range: range(0, 0xfff) };
        assert_eq!(merge(&[X86_MSI_WINDOW], &[low, same]), [low_told, X86_MSI_WINDOW]);
    }

    #[test]
    fn windows_that_overlap_become_one() {
        let its = ResvMem { kind: ResvKind::Msi, range: range(0x808_0000, 0x809_ffff) };
        let software = host(0x800_0000, 0x80f_ffff, ReservedKind::Msi);
        let both = ResvMem { kind: ResvKind::Msi, range: range(0x800_0000, 0x80f_ffff) };
        assert_eq!(merge(&[its], &[software]), [both]);
    }

    #[test]
    fn a_host_window_elsewhere_is_reserved_and_no_second_window() {
        let elsewhere = host(0x800_0000, 0x80f_ffff, ReservedKind::Msi);
        let told = ResvMem { kind: ResvKind::Reserved, range: range(0x800_0000, 0x80f_ffff) };
        assert_eq!(merge(&[X86_MSI_WINDOW], &[elsewhere]), [told, X86_MSI_WINDOW]);
    }
}

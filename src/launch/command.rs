//! What the two are started with.

use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::Command;

use viommu_pasid::EndpointId;

use super::share::file_of;
use super::{Launch, LaunchError, system};
use crate::config::FunctionRange;
use crate::viot;

/// The daemon, with these descriptors and ends of its connections.
pub(super) fn daemon_command(
    launch: &Launch,
    (iommufd, devices): (&OwnedFd, &[OwnedFd]),
    (front_end, control): (&UnixStream, &UnixStream),
) -> Result<Command, LaunchError> {
    let ourselves = std::env::current_exe().map_err(system("finding our own program"))?;
    let mut command = Command::new(ourselves);
    command.arg("--fd").arg(front_end.as_raw_fd().to_string());
    command.arg("--vfio-control").arg(control.as_raw_fd().to_string());
    for (assigned, device) in launch.devices.iter().zip(devices) {
        let (guest, device, iommufd) = (assigned.guest, device.as_raw_fd(), iommufd.as_raw_fd());
        command.arg("--endpoint").arg(format!("{guest},vfio=fd:{device},iommufd=fd:{iommufd}"));
    }
    command.args(&launch.options);
    Ok(command)
}

/// QEMU, with the same descriptors; it starts stopped, and does not outlive us.
pub(super) fn qemu_command(
    launch: &Launch,
    (iommufd, devices): (&OwnedFd, &[OwnedFd]),
    (front_end, monitor): (&UnixStream, &UnixStream),
) -> Command {
    let mut words = launch.qemu.iter();
    let mut qemu = Command::new(words.next().map_or_else(OsString::new, OsString::clone));
    qemu.args(words).args(["-S", "-run-with", "exit-with-parent=on"]);
    qemu.arg("-chardev").arg(format!("socket,id=viommu-qmp,fd={}", monitor.as_raw_fd()));
    qemu.args(["-qmp", "chardev:viommu-qmp"]);
    qemu.arg("-chardev").arg(format!("socket,id=viommu,fd={}", front_end.as_raw_fd()));
    // 23 is the IOMMU's device type; 40 bytes are its configuration (virtio 1.4, 5.13)
    qemu.arg("-device").arg(format!(
        "vhost-user-test-device-pci,virtio-id=23,num_vqs=2,config_size=40,vq_size=256,chardev=viommu,\
         addr={}",
        place(launch.iommu)
    ));
    qemu.arg("-object").arg(format!("iommufd,id=viommu-host,fd={}", iommufd.as_raw_fd()));
    for (number, (assigned, device)) in launch.devices.iter().zip(devices).enumerate() {
        let (fd, addr) = (device.as_raw_fd(), place(assigned.guest));
        qemu.arg("-device").arg(format!(
            "vfio-pci,id=viommu-device{number},fd={fd},iommufd=viommu-host,addr={addr}"
        ));
    }
    qemu
}

/// A function of bus 0 as QEMU's `addr=` has it.
fn place(function: EndpointId) -> String {
    format!("{:x}.{:x}", function.devfn() >> 3, function.devfn() & 7)
}

/// The ACPI table, as a file.
pub(super) fn table(launch: &Launch) -> Result<Option<OwnedFd>, LaunchError> {
    if !launch.viot {
        return Ok(None);
    }
    let own = launch.devices.iter().map(|device| FunctionRange::new(device.guest, device.guest));
    let ranges: Vec<_> = own.flatten().chain(launch.others.iter().copied()).collect();
    let table = viot::table(launch.iommu, &ranges)?;
    file_of(&table).map(Some).map_err(system("a file for the ACPI table"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::launch::Assigned;
    use viommu_backend::vfio::PciAddress;

    fn launch() -> Launch {
        let device = |host, guest| Assigned {
            host: PciAddress::new(EndpointId::new(host)),
            guest: EndpointId::new(guest),
        };
        Launch {
            devices: vec![device(0x6500, 0x20), device(0x6600, 0x2b)],
            others: Vec::new(),
            iommu: EndpointId::new(8),
            viot: true,
            log_level: log::LevelFilter::Info,
            options: vec!["--boot-bypass=off".into()],
            qemu: vec!["qemu".into(), "-M".into(), "q35".into()],
        }
    }

    fn words(command: &Command) -> Vec<String> {
        command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    fn descriptor() -> OwnedFd {
        file_of(&[0]).unwrap()
    }

    #[test]
    fn qemu_starts_stopped_and_has_each_device_where_the_daemon_has_it() {
        let (iommufd, devices) = (descriptor(), [descriptor(), descriptor()]);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let qemu = words(&qemu_command(&launch(), (&iommufd, &devices), (&ours, &theirs)));
        assert_eq!(qemu[..3], ["-M", "q35", "-S"]);
        for ((number, device), addr) in devices.iter().enumerate().zip(["4.0", "5.3"]) {
            let (id, fd) = (format!("viommu-device{number}"), device.as_raw_fd());
            let wanted = format!("vfio-pci,id={id},fd={fd},iommufd=viommu-host,addr={addr}");
            assert!(qemu.contains(&wanted), "{wanted} in {qemu:?}");
        }
        let daemon = daemon_command(&launch(), (&iommufd, &devices), (&ours, &theirs)).unwrap();
        let daemon = words(&daemon);
        let (device, iommufd) = (devices[1].as_raw_fd(), iommufd.as_raw_fd());
        let wanted = format!("0000:00:05.3,vfio=fd:{device},iommufd=fd:{iommufd}");
        assert!(daemon.contains(&wanted), "{wanted} in {daemon:?}");
        assert_eq!(daemon.last().map(String::as_str), Some("--boot-bypass=off"));
    }

    #[test]
    fn the_table_is_a_file_that_reads_from_its_start() {
        let file = table(&launch()).unwrap().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(std::fs::read(path).unwrap()[..4], *b"VIOT");
    }
}

//! `launch`: a daemon and an unpatched QEMU that share the host's devices.
//!
//! QEMU wants to bind each device itself, so it gets iommufd and the devices as descriptors, of which the
//! daemon holds duplicates. It starts stopped, with all guest memory mapped for each device; once it is
//! ready the daemon puts its own tables in place of that, and only then the guest runs. So no device ever
//! sees memory that the guest did not give it.
//!
//! # Ends
//!
//! QEMU's end is the end, and its exit status ours. SIGTERM and SIGINT are passed on to QEMU. If the daemon
//! dies the devices keep their last mappings, and a guest could change nothing about them: QEMU is ended.
//! QEMU leaves the daemon before it ends, and the daemon then ends with success; so it is a daemon's failure,
//! or a QEMU that goes on without its IOMMU, which is told as one.

mod qmp;
mod share;

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::retry_on_intr;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use viommu_backend::iommufd;
use viommu_backend::vfio::{PciAddress, VfioError};
use viommu_pasid::EndpointId;

use crate::config::FunctionRange;
use crate::daemon::signal::Signals;
use crate::viot::{self, ViotError};
use qmp::{Qmp, QmpError};
use share::{Shared, exit_of, file_of};

/// How long QEMU may take to be ready, and the daemon to take the devices over: guest memory is pinned
/// meanwhile, which takes seconds for hundreds of gigabytes.
const READY_WITHIN: Duration = Duration::from_secs(120);

/// How long QEMU may take to end once it has closed its connection to the daemon: its memory is given back
/// then, which takes seconds for hundreds of gigabytes.
const LEAVES_WITHIN: Duration = Duration::from_secs(30);

/// A device of the host, and where the guest has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Assigned {
    /// Where it is on the host.
    pub host: PciAddress,
    /// Its function in the guest, on bus 0.
    pub guest: EndpointId,
}

/// What is to be started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// The devices, one at least, in the order in which QEMU gets them.
    pub devices: Vec<Assigned>,
    /// Further functions behind the IOMMU: `options` say what they are, `qemu` has them.
    pub others: Vec<FunctionRange>,
    /// The IOMMU's own function, on bus 0.
    pub iommu: EndpointId,
    /// Whether the guest is told by an ACPI table; a machine with a device tree has none.
    pub viot: bool,
    /// What is logged, here as by the daemon.
    pub log_level: log::LevelFilter,
    /// The daemon's options.
    pub options: Vec<OsString>,
    /// QEMU's program and arguments. The machine's memory has to be shared (`share=on`).
    pub qemu: Vec<OsString>,
}

/// Why it was not started, or did not go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The devices cannot be had.
    #[error(transparent)]
    Device(#[from] VfioError),
    /// No table can say where the devices are.
    #[error(transparent)]
    Viot(#[from] ViotError),
    /// The kernel refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// A program cannot be started.
    #[error("cannot start {}: {source}", program.display())]
    Start {
        /// Which.
        program: OsString,
        /// Why not.
        source: io::Error,
    },
    /// QEMU's monitor did not say what was expected.
    #[error("QEMU: {0}")]
    Qmp(#[from] QmpError),
    /// QEMU has ended before the guest ran; its own message says why.
    #[error("QEMU has ended before the guest ran ({0})")]
    QemuEnded(ExitStatus),
    /// The daemon did not take the devices over.
    #[error("the daemon does not take the devices over: {0}")]
    Refused(String),
    /// The daemon has ended before QEMU.
    #[error("the daemon has ended ({0}): QEMU was ended, too")]
    DaemonEnded(ExitStatus),
}

/// Names what was tried, in an error of the system's.
fn system(what: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::System { what, source }
}

/// A process that is killed if it is left behind.
#[derive(Debug)]
struct Process {
    child: Child,
    /// Readable when it has ended.
    ended: OwnedFd,
}

impl Process {
    fn start(mut command: Command, shared: &[&dyn Shared]) -> Result<Self, LaunchError> {
        let program = command.get_program().to_owned();
        let open: Result<Vec<_>, _> = shared.iter().map(|one| one.leave_open()).collect();
        let open = open.map_err(system("leaving descriptors open"))?;
        let child = command.spawn().map_err(|source| LaunchError::Start { program, source })?;
        drop(open);
        let ended = pidfd_open(Pid::from_child(&child), PidfdFlags::empty())
            .map_err(|errno| system("pidfd_open")(errno.into()))?;
        Ok(Self { child, ended })
    }

    fn signal(&self, signal: Signal) {
        // It may have ended, which is what the signal is for.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// How it has ended, if it has.
    fn ended_early(&mut self) -> Result<Option<ExitStatus>, LaunchError> {
        self.child.try_wait().map_err(system("waiting for a process"))
    }

    /// Waits for its end, but no longer than `limit`; whether it has ended.
    fn ends_within(&self, limit: Duration) -> Result<bool, LaunchError> {
        let limit = Timespec::try_from(limit).map_err(|_| io::ErrorKind::InvalidInput.into());
        let limit = limit.map_err(system("a limit of time"))?;
        let mut watched = [PollFd::new(&self.ended, PollFlags::IN)];
        let ready = retry_on_intr(|| poll(&mut watched, Some(&limit)));
        ready.map(|ready| ready > 0).map_err(|errno| system("poll")(errno.into()))
    }

    fn wait(&mut self) -> Result<ExitStatus, LaunchError> {
        self.child.wait().map_err(system("waiting for a process"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts both, and waits for QEMU's end.
///
/// # Errors
/// [`LaunchError`]; then nothing of it runs any more.
pub fn run(launch: &Launch) -> Result<u8, LaunchError> {
    let stop = Signals::stop().map_err(system("signals"))?;
    let addresses: Vec<_> = launch.devices.iter().map(|device| device.host).collect();
    let (iommufd, devices) = iommufd::descriptors(&addresses)?;
    let pair = || UnixStream::pair().map_err(system("socketpair"));
    let ((front, back), (control, theirs), (monitor, qemus)) = (pair()?, pair()?, pair()?);
    let mut shared: Vec<&dyn Shared> = vec![&iommufd];
    shared.extend(devices.iter().map(|device| device as &dyn Shared));

    let ours = daemon_command(launch, (&iommufd, &devices), (&back, &theirs))?;
    let mut daemon = Process::start(ours, &[&shared[..], &[&back, &theirs]].concat())?;
    let viot = table(launch)?;
    let mut command = qemu_command(launch, (&iommufd, &devices), (&front, &qemus));
    if let Some(viot) = &viot {
        command.arg("-acpitable").arg(format!("file=/proc/self/fd/{}", viot.as_raw_fd()));
        shared.push(viot);
    }
    let mut qemu = Process::start(command, &[&shared[..], &[&front, &qemus]].concat())?;
    drop((back, theirs, front, qemus));

    let monitor = match take_over(monitor, control) {
        Ok(monitor) => monitor,
        Err(error) => return Err(qemu.ended_early()?.map_or(error, LaunchError::QemuEnded)),
    };
    let ended = wait(&mut daemon, &mut qemu, stop)?;
    drop(monitor);
    Ok(exit_of(ended))
}

/// Lets QEMU get ready, the daemon take the devices over, and the guest run. Returns QEMU's monitor: it is
/// QEMU's as long as it is open.
fn take_over(monitor: UnixStream, control: UnixStream) -> Result<Qmp, LaunchError> {
    let mut qmp = Qmp::new(monitor, READY_WITHIN)?;
    // The first command is answered when the machine is made: every device is bound and attached then.
    qmp.execute("qmp_capabilities")?;
    qmp.expect_prelaunch()?;
    let answer =
        share::ask(control, "attach", READY_WITHIN).map_err(system("the daemon's socket"))?;
    match answer.as_str() {
        "ok" => {}
        other => return Err(LaunchError::Refused(other.to_owned())),
    }
    qmp.execute("cont")?;
    log::info!("the devices are the daemon's, the guest runs");
    Ok(qmp)
}

/// Waits until QEMU has ended, and passes on the wish to end.
fn wait(
    daemon: &mut Process,
    qemu: &mut Process,
    stop: Signals,
) -> Result<ExitStatus, LaunchError> {
    loop {
        let watched = [qemu.ended.as_fd(), daemon.ended.as_fd(), stop.as_fd()];
        let mut watched = watched.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
        match poll(&mut watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(system("poll")(errno.into())),
        }
        let [qemu_ended, daemon_ended, asked] =
            watched.map(|fd| fd.revents().contains(PollFlags::IN));
        if qemu_ended {
            // Its connection is closed, so the daemon ends by itself.
            let status = qemu.wait()?;
            daemon.wait()?;
            return Ok(status);
        }
        if daemon_ended {
            return without_daemon(daemon.wait()?, qemu);
        }
        if asked {
            stop.forget();
            qemu.signal(Signal::TERM);
        }
    }
}

/// What becomes of QEMU when the daemon has ended. A daemon whose front-end leaves ends by itself, and QEMU
/// leaves it before it ends: then that end is awaited. Else, and where QEMU goes on without its IOMMU, it is
/// ended, for the devices keep their last mappings.
fn without_daemon(ended: ExitStatus, qemu: &mut Process) -> Result<ExitStatus, LaunchError> {
    let within = if ended.success() { LEAVES_WITHIN } else { Duration::ZERO };
    if qemu.ends_within(within)? {
        return qemu.wait();
    }
    qemu.signal(Signal::TERM);
    qemu.wait()?;
    Err(LaunchError::DaemonEnded(ended))
}

fn daemon_command(
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

fn qemu_command(
    launch: &Launch,
    (iommufd, devices): (&OwnedFd, &[OwnedFd]),
    (front_end, monitor): (&UnixStream, &UnixStream),
) -> Command {
    let mut words = launch.qemu.iter();
    let mut qemu = Command::new(words.next().map_or_else(OsString::new, OsString::clone));
    qemu.args(words).arg("-S");
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
fn table(launch: &Launch) -> Result<Option<OwnedFd>, LaunchError> {
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

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command, &[]).unwrap()
    }

    fn status(code: i32) -> ExitStatus {
        std::os::unix::process::ExitStatusExt::from_raw(code << 8)
    }

    #[test]
    fn a_qemu_that_leaves_the_daemon_and_ends_has_its_own_status() {
        let mut qemu = shell("exit 3");
        assert_eq!(without_daemon(status(0), &mut qemu).unwrap(), status(3));
    }

    #[test]
    fn a_daemon_that_fails_takes_qemu_along() {
        // it would end by itself only long after the test
        let mut qemu = shell("exec sleep 1000");
        let told = without_daemon(status(1), &mut qemu).unwrap_err();
        assert!(matches!(told, LaunchError::DaemonEnded(ended) if ended == status(1)), "{told}");
        assert!(qemu.ended_early().unwrap().is_some());
    }

    #[test]
    fn the_table_is_a_file_that_reads_from_its_start() {
        let file = table(&launch()).unwrap().unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(std::fs::read(path).unwrap()[..4], *b"VIOT");
    }
}

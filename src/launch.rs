//! `launch`: a daemon and an unpatched QEMU that share the host's devices.
//!
//! QEMU wants to bind each device itself, so it gets iommufd and the devices as descriptors, of which the
//! daemon holds duplicates. It starts stopped, with all guest memory mapped for each device; once it is
//! ready the daemon puts its own tables in place of that, and only then the guest runs. So no device ever
//! sees memory that the guest did not give it.
//!
//! # Ends
//!
//! QEMU's end is the end, and its exit status ours. SIGTERM and SIGINT are passed on to QEMU, from its start
//! on. If the daemon dies the devices keep their last mappings, and a guest could change nothing about them:
//! QEMU is ended. QEMU leaves the daemon before it ends, and the daemon then ends with success; so it is a
//! daemon's failure, or a QEMU that goes on without its IOMMU, which is told as one.
//!
//! Our own end is QEMU's, too, whatever it is (SIGKILL, SIGHUP): QEMU asks the kernel for a SIGTERM when its
//! parent ends (`-run-with exit-with-parent=on`). The daemon's front-end leaves it then.

mod command;
mod process;
mod qmp;
mod share;
mod watch;

use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::ExitStatus;
use std::thread;
use std::time::Duration;

use viommu_backend::iommufd;
use viommu_backend::vfio::{PciAddress, VfioError};
use viommu_pasid::EndpointId;

use crate::config::FunctionRange;
use crate::daemon::signal::Signals;
use crate::viot::ViotError;
use command::{daemon_command, qemu_command, table};
use process::Process;
use qmp::{Qmp, QmpError};
use share::{Shared, exit_of};
use watch::{Beginning, Watch};

/// How long QEMU may take to be ready, and the daemon to take the devices over: guest memory is pinned
/// meanwhile, which takes seconds for hundreds of gigabytes.
const READY_WITHIN: Duration = Duration::from_secs(120);

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
    /// The thread that waited for them panicked.
    #[error("the beginning panicked")]
    Panicked,
    /// The daemon has ended before QEMU.
    #[error("the daemon has ended ({0}): QEMU was ended, too")]
    DaemonEnded(ExitStatus),
}

/// Names what was tried, in an error of the system's.
fn system(what: &'static str) -> impl FnOnce(io::Error) -> LaunchError {
    move |source| LaunchError::System { what, source }
}

/// Starts both, and waits for QEMU's end.
///
/// # Errors
/// [`LaunchError`]; then nothing of it runs any more.
pub fn run(launch: &Launch) -> Result<u8, LaunchError> {
    let stop = Signals::stop().map_err(system("signals"))?;
    let (daemon, qemu, ours) = start(launch)?;
    let ended = thread::scope(|scope| {
        let (over, its) = UnixStream::pair().map_err(system("socketpair"))?;
        let thread = scope.spawn(move || {
            let _until_it_is_over = its;
            take_over(ours)
        });
        // it is dropped before the scope waits for the thread, which then finds its connections closed
        Watch::new(qemu, daemon, Some(Beginning { thread, over })).until_the_end(stop)
    })?;
    Ok(exit_of(ended))
}

/// Our ends of the connections to what was started.
#[derive(Debug)]
struct Ours {
    /// QEMU's monitor.
    monitor: UnixStream,
    /// Where the daemon is told to attach the devices.
    control: UnixStream,
}

/// Starts the daemon and a stopped QEMU.
fn start(launch: &Launch) -> Result<(Process, Process, Ours), LaunchError> {
    let addresses: Vec<_> = launch.devices.iter().map(|device| device.host).collect();
    let (iommufd, devices) = iommufd::descriptors(&addresses)?;
    let pair = || UnixStream::pair().map_err(system("socketpair"));
    let ((front, back), (control, theirs), (monitor, qemus)) = (pair()?, pair()?, pair()?);
    let mut shared: Vec<&dyn Shared> = vec![&iommufd];
    shared.extend(devices.iter().map(|device| device as &dyn Shared));

    let ours = daemon_command(launch, (&iommufd, &devices), (&back, &theirs))?;
    let daemon = Process::start(ours, &[&shared[..], &[&back, &theirs]].concat())?;
    let viot = table(launch)?;
    let mut command = qemu_command(launch, (&iommufd, &devices), (&front, &qemus));
    if let Some(viot) = &viot {
        command.arg("-acpitable").arg(format!("file=/proc/self/fd/{}", viot.as_raw_fd()));
        shared.push(viot);
    }
    let qemu = Process::start(command, &[&shared[..], &[&front, &qemus]].concat())?;
    Ok((daemon, qemu, Ours { monitor, control }))
}

/// Lets QEMU get ready, the daemon take the devices over, and the guest run. Returns QEMU's monitor: it is
/// QEMU's as long as it is open.
fn take_over(Ours { monitor, control }: Ours) -> Result<Qmp, LaunchError> {
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

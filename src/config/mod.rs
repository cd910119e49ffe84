//! What the daemon is told to do, checked: past this nobody parses or checks an option again.
//!
//! [`crate::cli`] makes a [`Config`] of the command line. Nothing here opens or touches a file.

mod endpoint;
mod mmio;
mod number;
mod vfio;

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::time::Duration;

use viommu_backend::vfio::BarWindow;
use viommu_pasid::EndpointId;
use viommu_pgtable::{Iova, IovaRange};

pub use endpoint::{EndpointOption, FunctionError, FunctionRange, SpecError};
pub use mmio::{MmioError, mmio, windows};
pub use number::{NumberError, bytes, page_sizes, polling, window};
pub use vfio::{HostInterface, OnStart, Pin, VfioDevice, VfioOptions};

use crate::device::Polling;
use crate::iommu::{EndpointSpec, Settings};

/// Endpoints that one daemon serves at most: the functions of one PCI segment. Each may have a
/// socket, and a process has hardly more descriptors.
pub const MAX_ENDPOINTS: usize = 1 << 16;
/// Bounds of `--input-bits`: what three, four and five levels of VT-d tables translate.
pub const INPUT_BITS: [u8; 3] = [39, 48, 57];
/// Longest wait for a stuck device process, milliseconds. The guest's CPU spins meanwhile with its
/// interrupts off, so more than a minute serves nobody.
pub const MAX_STUCK_MS: u64 = 60_000;
/// Longest time to poll before sleeping, microseconds: one second keeps a CPU busy enough.
pub const MAX_POLL_US: u64 = 1_000_000;
/// Table memory comes in pages of this size, bytes.
const TABLE_PAGE_BYTES: u64 = 4096;

/// Where the front-end connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Socket {
    /// A path to listen at.
    Path(PathBuf),
    /// A descriptor that was inherited: a connection, or a socket that listens.
    Fd(RawFd),
}

/// What becomes of a device process that still uses what was withdrawn when the bound is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum StuckDevice {
    /// It is killed: nothing uses what was withdrawn afterwards.
    Kill,
    /// It is cut off, and may still use what it had: answered without the guarantee.
    Disconnect,
}

/// The structures that the software IOMMU keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Arch {
    /// Intel VT-d, scalable mode.
    Vtd,
    /// Arm SMMUv3: 39 or 48 bits, addresses below 2^47.
    #[value(name = "smmuv3")]
    SmmuV3,
}

/// An endpoint and where its device process connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointConfig {
    /// What the IOMMU knows of it.
    pub spec: EndpointSpec,
    /// Width of its PASIDs, bits, at most 20; 0 if it has none.
    pub pasid_bits: u8,
    /// The socket of its device process; without one, none can connect.
    pub socket: Option<PathBuf>,
    /// The device of the host that it is; then it has no device process.
    pub vfio: Option<VfioDevice>,
}

/// Everything that the daemon needs to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the front-end connects.
    pub socket: Socket,
    /// The endpoints, in the order of their ids; one at least.
    pub endpoints: Vec<EndpointConfig>,
    /// The software IOMMU's structures.
    pub arch: Arch,
    /// How devices of the host are served.
    pub vfio: VfioOptions,
    /// Where the guest sees registers of those that the daemon opens, by their addresses.
    pub mmio: Vec<BarWindow>,
    /// The device's properties and limits.
    pub settings: Settings,
    /// Memory for tables, bytes; a multiple of 4096.
    pub table_bytes: u64,
    /// When to look at the request queue without having been woken.
    pub polling: Polling,
    /// How long to wait for a stuck device process.
    pub stuck_after: Duration,
    /// What becomes of it then.
    pub stuck_device: StuckDevice,
    /// Whether the daemon locks itself in.
    pub sandbox: Sandbox,
    /// What is logged.
    pub log_level: log::LevelFilter,
}

/// Whether the daemon locks itself in once everything is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Sandbox {
    /// As far as the kernel lets it; what is missing is logged.
    Auto,
    /// Not at all.
    None,
}

/// Options that contradict each other or make no daemon; the message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// Nobody could connect.
    #[error("a socket is needed: --socket-path PATH or --fd N")]
    NoSocket,
    /// Two places to connect.
    #[error("--socket-path and --fd exclude each other: give one of them")]
    TwoSockets,
    /// No descriptor.
    #[error("--fd {0}: a descriptor is 0 or more")]
    Fd(RawFd),
    /// Nothing to serve.
    #[error("an endpoint is needed: --endpoint BB:DD.F[,socket=PATH]")]
    NoEndpoint,
    /// An endpoint is named by two options, or twice by one.
    #[error("endpoint {0} is named twice: name each once")]
    EndpointTwice(EndpointId),
    /// Two endpoints have one socket.
    #[error("socket {} is named for two endpoints: each needs its own", .0.display())]
    SocketTwice(PathBuf),
    /// Past [`MAX_ENDPOINTS`].
    #[error("there are more than {MAX_ENDPOINTS} endpoints")]
    TooManyEndpoints,
    /// No number of table levels.
    #[error("--input-bits {0}: the tables translate 39, 48 or 57 bits")]
    InputBits(u8),
    /// Wider than the structures translate.
    #[error("--input-bits {0}: --arch smmuv3 translates 39 or 48 bits; 57 is for vtd")]
    SmmuInputBits(u8),
    /// The window cannot be mapped.
    #[error("--iova-window {window}: it has to lie within the input range {input} (--input-bits)")]
    WindowOutside {
        /// What was asked for.
        window: IovaRange,
        /// What can be mapped.
        input: IovaRange,
    },
    /// The window's ends are no ends of pages.
    #[error(
        "--iova-window {window}: it has to start and end on pages of {granule:#x} bytes, such as \
         0x1000000-0x3effffff"
    )]
    WindowUnaligned {
        /// What was asked for.
        window: IovaRange,
        /// The smallest page size, bytes.
        granule: u64,
    },
    /// Nobody would say when.
    #[error(
        "vfio=fd:N: give --vfio-control N too, or say --on-start keep|block if a VMM runs already"
    )]
    NoControl,
    /// Something about devices of a VMM, and there are none.
    #[error("--vfio-control and --on-start are for endpoints with vfio=fd:N")]
    ControlAlone,
    /// A container is opened by who uses it.
    #[error("--host-iommu type1: descriptors are given for iommufd; take vfio=SSSS:BB:DD.F")]
    GivenToType1,
    /// Devices that cannot be in one iommufd.
    #[error("all endpoints with vfio= have to be addresses, or of one iommufd=fd:M")]
    TwoKinds,
    /// Two parts of BARs at one address.
    #[error("--mmio {one} and {other} share addresses: each needs its own")]
    MmioOverlap {
        /// The lower one.
        one: BarWindow,
        /// The other.
        other: BarWindow,
    },
    /// Registers that we cannot know, or that the VMM shows us itself.
    #[error(
        "--mmio: endpoint {0} has no vfio=SSSS:BB:DD.F; a VMM that shares its devices (vfio=fd:N) has \
         their registers in its own address space, and they need no --mmio"
    )]
    MmioEndpoint(EndpointId),
    /// Not a number of pages, or too few for a table.
    #[error(
        "--table-memory {0:#x}: it has to be a multiple of {TABLE_PAGE_BYTES} and at least \
         {MIN_TABLE_BYTES} bytes"
    )]
    TableMemory(u64),
}

/// Checks that devices which the VMM binds are said to be so, and others are not.
///
/// # Errors
/// [`ConfigError::NoControl`], [`ConfigError::ControlAlone`], [`ConfigError::TwoKinds`].
pub fn vfio(
    endpoints: &[EndpointConfig],
    options: VfioOptions,
) -> Result<VfioOptions, ConfigError> {
    let devices = || endpoints.iter().filter_map(|endpoint| endpoint.vfio);
    let iommufds: BTreeSet<_> = devices()
        .map(|device| match device {
            VfioDevice::Address(_) => None,
            VfioDevice::Given { iommufd, .. } => Some(iommufd),
        })
        .collect();
    if iommufds.len() > 1 {
        return Err(ConfigError::TwoKinds);
    }
    let given = iommufds.iter().any(Option::is_some);
    let told = options.control.is_some();
    if given && options.interface == HostInterface::Type1 {
        return Err(ConfigError::GivenToType1);
    }
    if given && !told && options.on_start == OnStart::Boot {
        return Err(ConfigError::NoControl);
    }
    if !given && (told || options.on_start != OnStart::Boot) {
        return Err(ConfigError::ControlAlone);
    }
    Ok(options)
}

/// The socket of exactly one of the two options.
///
/// # Errors
/// [`ConfigError::NoSocket`], [`ConfigError::TwoSockets`], [`ConfigError::Fd`].
pub fn socket(path: Option<PathBuf>, fd: Option<RawFd>) -> Result<Socket, ConfigError> {
    match (path, fd) {
        (Some(path), None) => Ok(Socket::Path(path)),
        (None, Some(fd)) if fd < 0 => Err(ConfigError::Fd(fd)),
        (None, Some(fd)) => Ok(Socket::Fd(fd)),
        (None, None) => Err(ConfigError::NoSocket),
        (Some(_), Some(_)) => Err(ConfigError::TwoSockets),
    }
}

/// The endpoints that `options` name, in the order of their ids. Messages to `msi_window` are
/// interrupts, for each of them.
///
/// # Errors
/// [`ConfigError`]: none, one twice, two with one socket, or too many.
pub fn endpoints(
    options: &[EndpointOption],
    msi_window: IovaRange,
) -> Result<Vec<EndpointConfig>, ConfigError> {
    let total: u64 = options.iter().map(|option| option.range.count()).sum();
    if total > MAX_ENDPOINTS as u64 {
        return Err(ConfigError::TooManyEndpoints);
    }
    let mut endpoints: Vec<_> =
        options.iter().flat_map(|option| option.endpoints(msi_window)).collect();
    if endpoints.is_empty() {
        return Err(ConfigError::NoEndpoint);
    }
    endpoints.sort_by_key(|endpoint| endpoint.spec.id);
    for (first, second) in endpoints.iter().zip(endpoints.iter().skip(1)) {
        if first.spec.id == second.spec.id {
            return Err(ConfigError::EndpointTwice(first.spec.id));
        }
    }
    let mut sockets = BTreeSet::new();
    for socket in endpoints.iter().filter_map(|endpoint| endpoint.socket.as_ref()) {
        if !sockets.insert(socket) {
            return Err(ConfigError::SocketTwice(socket.clone()));
        }
    }
    Ok(endpoints)
}

/// The IOVAs that can be mapped: `input_bits` wide, or the `window` in that.
///
/// # Errors
/// [`ConfigError`]: a width that no table has; a window outside or not on pages of
/// `page_size_mask`.
pub fn input(
    input_bits: u8,
    window: Option<IovaRange>,
    page_size_mask: u64,
) -> Result<IovaRange, ConfigError> {
    let last = Iova::new((1_u64 << input_bits.min(63)) - 1);
    let input = IovaRange::new(Iova::new(0), last)
        .filter(|_| INPUT_BITS.contains(&input_bits))
        .ok_or(ConfigError::InputBits(input_bits))?;
    let Some(window) = window else { return Ok(input) };
    if !input.covers(&window) {
        return Err(ConfigError::WindowOutside { window, input });
    }
    let granule_lg2 = page_size_mask.trailing_zeros();
    let aligned = u8::try_from(granule_lg2).is_ok_and(|lg2| lg2 < 64 && window.is_aligned(lg2));
    if !aligned {
        let granule = 1_u64.checked_shl(granule_lg2).unwrap_or(0);
        return Err(ConfigError::WindowUnaligned { window, granule });
    }
    Ok(window)
}

/// Numbers that a domain can have: all. Linux means domain 0 in a DETACH from its first domain.
pub(crate) const DOMAINS: RangeInclusive<u32> = 0..=u32::MAX;

/// The function that `text` says, `[SSSS:]BB:DD.F`, on segment 0 if it names none.
///
/// # Errors
/// [`FunctionError::Function`].
pub fn function(text: &str) -> Result<EndpointId, FunctionError> {
    endpoint::function(text, 0)
}

/// `bytes` of table memory.
///
/// # Errors
/// [`ConfigError::TableMemory`].
pub fn table_bytes(bytes: u64) -> Result<u64, ConfigError> {
    let whole = bytes >= MIN_TABLE_BYTES && bytes.is_multiple_of(TABLE_PAGE_BYTES);
    whole.then_some(bytes).ok_or(ConfigError::TableMemory(bytes))
}

/// The least memory for tables: what the structures and the reserve for attachments take, and as much
/// again, so that a guest can map something.
const MIN_TABLE_BYTES: u64 = 512 << 10;

/// Checks that `arch` translates addresses of `input_bits`.
///
/// # Errors
/// [`ConfigError::SmmuInputBits`].
pub fn width(arch: Arch, input_bits: u8) -> Result<(), ConfigError> {
    match arch {
        Arch::SmmuV3 if input_bits > SMMU_INPUT_BITS => Err(ConfigError::SmmuInputBits(input_bits)),
        Arch::Vtd | Arch::SmmuV3 => Ok(()),
    }
}

/// The widest address that SMMUv3 tables with 4 KiB pages translate.
const SMMU_INPUT_BITS: u8 = 48;

#[cfg(test)]
mod tests;

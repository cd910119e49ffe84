//! PCI functions and endpoints as people write them.

use std::path::PathBuf;

use viommu_pasid::EndpointId;
use viommu_pgtable::IovaRange;

use super::EndpointConfig;
use super::vfio::{VfioDevice, VfioWords};
use crate::iommu::EndpointSpec;

/// A text that names no function.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FunctionError {
    /// Not `[SSSS:]BB:DD.F`.
    #[error(
        "`{0}` is no PCI function: write [SSSS:]BB:DD.F in hex, such as 00:02.0; the device is at \
         most 1f, the function 7"
    )]
    Function(String),
    /// The last function is below the first.
    #[error("`{0}` ends before it starts: write the lower function first")]
    Reversed(String),
    /// Two devices at one place, or one device twice.
    #[error("`{0}`: another device, or the IOMMU, is there already, or it has no place on bus 0")]
    Taken(String),
}

/// A text that is no endpoint option; the message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    /// No function or range of them.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// Something after a comma that means nothing.
    #[error(
        "`{0}` means nothing here: write BB:DD.F[-BB:DD.F][,socket=PATH][,pasid-bits=N][,vfio=DEVICE]"
    )]
    Unknown(String),
    /// The same key again.
    #[error("{0}= is there twice")]
    Twice(&'static str),
    /// No path.
    #[error("socket= needs a path")]
    NoPath,
    /// No width of a PASID.
    #[error("pasid-bits={0}: a PASID has 1 to {MAX_PASID_BITS} bits; 0 means that there are none")]
    PasidBits(String),
    /// Page requests.
    #[error("page-request: this build serves no page requests, so it has to be left out")]
    PageRequests,
    /// Devices of the host.
    #[error("vfio={0}: write vfio=SSSS:BB:DD.F, or vfio=fd:N,iommufd=fd:M")]
    Vfio(String),
    /// An iommufd without a device of it.
    #[error("iommufd=fd:M goes with vfio=fd:N, and with nothing else")]
    IommufdAlone,
    /// One device for two functions, or two places for one.
    #[error("vfio= is for one function, without socket=: the device is the host's")]
    VfioShared,
    /// A device of the host with PASIDs.
    #[error("vfio= serves no PASIDs: leave pasid-bits out")]
    VfioPasids,
}

/// Functions from one to another, both inclusive, in the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FunctionRange {
    first: EndpointId,
    last: EndpointId,
}

impl FunctionRange {
    /// `first..=last`; `None` if `last` is below `first`.
    #[must_use]
    pub fn new(first: EndpointId, last: EndpointId) -> Option<Self> {
        (first <= last).then_some(Self { first, last })
    }

    /// The range that `text` says: one function, or two with `-` between them. The second is on the
    /// segment of the first unless it names another.
    ///
    /// # Errors
    /// [`FunctionError`].
    pub fn parse(text: &str) -> Result<Self, FunctionError> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let first = function(first, 0)?;
        let last = function(last, first.segment())?;
        Self::new(first, last).ok_or_else(|| FunctionError::Reversed(text.to_owned()))
    }

    /// The first function.
    #[must_use]
    pub const fn first(&self) -> EndpointId {
        self.first
    }

    /// The last function, inclusive.
    #[must_use]
    pub const fn last(&self) -> EndpointId {
        self.last
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        u64::from(self.last.raw() - self.first.raw()) + 1
    }

    /// Each of them.
    pub fn functions(&self) -> impl Iterator<Item = EndpointId> + use<> {
        (self.first.raw()..=self.last.raw()).map(EndpointId::new)
    }
}

/// The function that `text` says, `[SSSS:]BB:DD.F`; on `segment` if it names none.
pub(super) fn function(text: &str, segment: u16) -> Result<EndpointId, FunctionError> {
    parse_function(text, segment).ok_or_else(|| FunctionError::Function(text.to_owned()))
}

fn parse_function(text: &str, segment: u16) -> Option<EndpointId> {
    let (path, function) = text.split_once('.')?;
    let mut parts = path.rsplit(':');
    let (device, bus) = (hex(parts.next()?, 2, 0x1f)?, hex(parts.next()?, 2, 0xff)?);
    let segment = match parts.next() {
        Some(segment) => hex(segment, 4, 0xffff)?,
        None => u32::from(segment),
    };
    let function = hex(function, 1, 7)?;
    let id = segment << 16 | bus << 8 | device << 3 | function;
    parts.next().is_none().then(|| EndpointId::new(id))
}

/// 1 to `digits` hexadecimal digits, at most `max`.
fn hex(text: &str, digits: usize, max: u32) -> Option<u32> {
    let well_formed =
        (1..=digits).contains(&text.len()) && text.chars().all(|digit| digit.is_ascii_hexdigit());
    let value = well_formed.then(|| u32::from_str_radix(text, 16).ok())??;
    (value <= max).then_some(value)
}

/// The width of PCIe's PASIDs (PCIe 6.0, 6.20), bits.
const MAX_PASID_BITS: u8 = 20;

/// One `--endpoint`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointOption {
    /// Which functions.
    pub range: FunctionRange,
    /// The socket of the function; for a range, the folder of their sockets.
    socket: Option<PathBuf>,
    pasid_bits: u8,
    vfio: Option<VfioDevice>,
    is_range: bool,
}

impl EndpointOption {
    /// The option that `text` says.
    ///
    /// A path cannot have a comma.
    ///
    /// # Errors
    /// [`SpecError`].
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        let mut parts = text.split(',');
        let functions = parts.next().unwrap_or_default();
        let range = FunctionRange::parse(functions)?;
        let is_range = functions.contains('-');
        let mut option = Self { range, socket: None, pasid_bits: 0, vfio: None, is_range };
        let mut words = VfioWords::default();
        let mut pasid_bits = None;
        for part in parts {
            let (key, value) = part.split_once('=').unwrap_or((part, ""));
            match key {
                "socket" if value.is_empty() => return Err(SpecError::NoPath),
                "socket" => once(&mut option.socket, PathBuf::from(value), "socket")?,
                "pasid-bits" => once(&mut pasid_bits, parse_pasid_bits(value)?, "pasid-bits")?,
                "page-request" => return Err(SpecError::PageRequests),
                "vfio" => once(&mut words.vfio, value.to_owned(), "vfio")?,
                "iommufd" => once(&mut words.iommufd, value.to_owned(), "iommufd")?,
                _ => return Err(SpecError::Unknown(part.to_owned())),
            }
        }
        option.pasid_bits = pasid_bits.unwrap_or(0);
        option.vfio = words.device()?;
        if option.vfio.is_some() && (is_range || option.socket.is_some()) {
            return Err(SpecError::VfioShared);
        }
        if option.vfio.is_some() && option.pasid_bits > 0 {
            return Err(SpecError::VfioPasids);
        }
        Ok(option)
    }

    /// Whether it is a device of the host.
    pub(crate) fn is_vfio(&self) -> bool {
        self.vfio.is_some()
    }

    /// The endpoints that the option names. In a range, each has the socket `SSSS:BB:DD.F` in the
    /// option's folder.
    pub(super) fn endpoints(
        &self,
        msi_window: IovaRange,
    ) -> impl Iterator<Item = EndpointConfig> + '_ {
        self.range.functions().map(move |id| EndpointConfig {
            spec: EndpointSpec::with_msi_window(id, msi_window),
            pasid_bits: self.pasid_bits,
            socket: match &self.socket {
                Some(folder) if self.is_range => Some(folder.join(id.to_string())),
                socket => socket.clone(),
            },
            vfio: self.vfio,
        })
    }
}

/// A width of PASIDs, decimal.
fn parse_pasid_bits(text: &str) -> Result<u8, SpecError> {
    let bits = text.parse().ok().filter(|bits| *bits <= MAX_PASID_BITS);
    bits.ok_or_else(|| SpecError::PasidBits(text.to_owned()))
}

/// Fills `slot`, which has to be empty.
fn once<T>(slot: &mut Option<T>, value: T, key: &'static str) -> Result<(), SpecError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(SpecError::Twice(key)),
    }
}

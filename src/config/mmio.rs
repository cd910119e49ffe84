//! Where the guest sees registers of VFIO devices, as people write it.

use viommu_backend::vfio::BarWindow;
use viommu_pgtable::{AddrRange, PhysAddr};

use super::endpoint::function;
use super::number::{bytes, window};
use super::{ConfigError, EndpointConfig, FunctionError, NumberError, VfioDevice};

/// A page of every kernel is this long, or several of it, bytes: windows are whole pages, for nothing less
/// can be mapped.
const PAGE_LG2: u8 = 12;

/// BARs of a function: 0 to 5 (PCI 3.0, 6.2.5).
const BARS: u8 = 6;

/// Addresses below this can be mapped to with either architecture's tables: they are at 2^47 or above.
const END: u64 = 1 << 47;

/// A text that is no `--mmio`; the message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MmioError {
    /// No two addresses, or no offset.
    #[error(transparent)]
    Number(#[from] NumberError),
    /// No endpoint.
    #[error(transparent)]
    Function(#[from] FunctionError),
    /// A key that means nothing, or is there twice.
    #[error("`{0}`: write START-END,endpoint=[SSSS:]BB:DD.F,bar=N[,offset=BYTES], each key once")]
    Key(String),
    /// A key is missing.
    #[error("endpoint= and bar= are needed: write START-END,endpoint=[SSSS:]BB:DD.F,bar=N")]
    Incomplete,
    /// No number of a BAR.
    #[error("bar={0}: a function has BARs 0 to 5; a 64-bit one is named by its first number")]
    Bar(String),
    /// Parts of pages.
    #[error("`{0}`: the window and the offset have to be whole pages of 4096 bytes")]
    Unaligned(String),
    /// Where tables may be.
    #[error("`{0}`: the window has to end below 0x800000000000")]
    TooHigh(String),
}

/// The window that one `--mmio` says.
///
/// # Errors
/// [`MmioError`].
pub fn mmio(text: &str) -> Result<BarWindow, MmioError> {
    let mut parts = text.split(',');
    let addresses = window(parts.next().unwrap_or_default())?;
    let (mut endpoint, mut bar, mut offset) = (None, None, None);
    for part in parts {
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        let seen = match key {
            "endpoint" => endpoint.replace(function(value, 0)?).is_some(),
            "bar" => bar.replace(parse_bar(value)?).is_some(),
            "offset" => offset.replace(bytes(value)?).is_some(),
            _ => true,
        };
        if seen {
            return Err(MmioError::Key(part.to_owned()));
        }
    }
    let (Some(endpoint), Some(bar)) = (endpoint, bar) else { return Err(MmioError::Incomplete) };
    let offset = offset.unwrap_or(0);
    if !addresses.is_aligned(PAGE_LG2) || offset.trailing_zeros() < PAGE_LG2.into() {
        return Err(MmioError::Unaligned(text.to_owned()));
    }
    if addresses.last().raw() >= END {
        return Err(MmioError::TooHigh(text.to_owned()));
    }
    let (start, last) = (addresses.start().raw(), addresses.last().raw());
    let gpa = AddrRange::<PhysAddr>::new(PhysAddr::new(start), PhysAddr::new(last));
    let gpa = gpa.ok_or_else(|| MmioError::Unaligned(text.to_owned()))?;
    Ok(BarWindow { gpa, endpoint, bar, offset })
}

fn parse_bar(text: &str) -> Result<u8, MmioError> {
    let bar = text.parse().ok().filter(|bar| *bar < BARS && text.len() == 1);
    bar.ok_or_else(|| MmioError::Bar(text.to_owned()))
}

/// Checks that windows over registers lie beside each other, and are of devices that the daemon opens.
///
/// # Errors
/// [`ConfigError::MmioOverlap`], [`ConfigError::MmioEndpoint`].
pub fn windows(
    mut windows: Vec<BarWindow>,
    endpoints: &[EndpointConfig],
) -> Result<Vec<BarWindow>, ConfigError> {
    windows.sort_by_key(|window| window.gpa.start());
    for (one, next) in windows.iter().zip(windows.iter().skip(1)) {
        if one.gpa.overlaps(&next.gpa) {
            return Err(ConfigError::MmioOverlap { one: *one, other: *next });
        }
    }
    for window in &windows {
        let is_it = |endpoint: &&EndpointConfig| endpoint.spec.id == window.endpoint;
        match endpoints.iter().find(is_it).and_then(|endpoint| endpoint.vfio) {
            Some(VfioDevice::Address(_)) => {}
            Some(VfioDevice::Given { .. }) | None => {
                return Err(ConfigError::MmioEndpoint(window.endpoint));
            }
        }
    }
    Ok(windows)
}

#[cfg(test)]
mod tests;

//! Numbers as people write them.

use std::time::Duration;

use viommu_pgtable::{Iova, IovaRange};

use super::MAX_POLL_US;
use crate::device::Polling;

/// A text that is no such number; the message says what would be one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    /// No number at all, or too large for 64 bits.
    #[error("`{0}` is no number of 64 bits: write 4096, 0x1000, 4K, 2M or 1G")]
    Number(String),
    /// A page size that is no power of two.
    #[error("`{0}` is no page size, for it is no power of two: write 4K+2M+1G, or a mask in hex")]
    PageSize(String),
    /// Pages of no size.
    #[error("a page size is needed: write 4K+2M+1G, or a mask in hex such as 0x40201000")]
    NoPageSize,
    /// No two numbers.
    #[error("`{0}` is no window: write its first and last address, such as 0x1000000-0x3effffff")]
    Window(String),
    /// The last address is below the first.
    #[error("`{0}` ends before it starts: write the first address, then the last")]
    Reversed(String),
    /// No time to poll.
    #[error(
        "`{0}` is no time to poll: write auto, 0 to sleep at once, or up to {MAX_POLL_US} microseconds"
    )]
    Polling(String),
}

/// A number of bytes: decimal or 0x, perhaps with K, M or G (powers of 1024) after it.
///
/// # Errors
/// [`NumberError::Number`].
pub fn bytes(text: &str) -> Result<u64, NumberError> {
    let (digits, unit) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (text.get(..at), 1_u64 << 10),
        Some((at, 'm' | 'M')) => (text.get(..at), 1 << 20),
        Some((at, 'g' | 'G')) => (text.get(..at), 1 << 30),
        _ => (Some(text), 1),
    };
    digits
        .and_then(number)
        .and_then(|number| number.checked_mul(unit))
        .ok_or_else(|| NumberError::Number(text.to_owned()))
}

/// Page sizes, one bit each: sizes with `+` between them, or one hexadecimal mask.
///
/// # Errors
/// [`NumberError`].
pub fn page_sizes(text: &str) -> Result<u64, NumberError> {
    let mut mask = 0;
    let alone = !text.contains('+');
    for part in text.split('+') {
        let size = bytes(part)?;
        let is_mask = alone && hexadecimal(part).is_some();
        if size != 0 && !size.is_power_of_two() && !is_mask {
            return Err(NumberError::PageSize(part.to_owned()));
        }
        mask |= size;
    }
    if mask == 0 { Err(NumberError::NoPageSize) } else { Ok(mask) }
}

/// `START-END`, both inclusive.
///
/// # Errors
/// [`NumberError`].
pub fn window(text: &str) -> Result<IovaRange, NumberError> {
    let (start, last) = text.split_once('-').ok_or_else(|| NumberError::Window(text.to_owned()))?;
    let (start, last) = (Iova::new(bytes(start)?), Iova::new(bytes(last)?));
    IovaRange::new(start, last).ok_or_else(|| NumberError::Reversed(text.to_owned()))
}

/// `auto`, or microseconds.
///
/// # Errors
/// [`NumberError::Polling`].
pub fn polling(text: &str) -> Result<Polling, NumberError> {
    let micros = number(text).filter(|micros| *micros <= MAX_POLL_US);
    match (text, micros) {
        ("auto", _) => Ok(Polling::Adaptive),
        (_, Some(micros)) => Ok(Polling::Fixed(Duration::from_micros(micros))),
        (_, None) => Err(NumberError::Polling(text.to_owned())),
    }
}

/// Decimal, or hexadecimal after 0x. No sign, no separator.
fn number(text: &str) -> Option<u64> {
    let (digits, radix) = hexadecimal(text).map_or((text, 10), |digits| (digits, 16));
    let all_digits = !digits.is_empty() && digits.chars().all(|digit| digit.is_digit(radix));
    all_digits.then(|| u64::from_str_radix(digits, radix).ok()).flatten()
}

/// What follows 0x.
fn hexadecimal(text: &str) -> Option<&str> {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))
}

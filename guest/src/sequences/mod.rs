//! The sequences of requests that auxiliary domains are for, with real DMA.
//!
//! Each is a function over a [`Bench`]: a driver of the IOMMU and DMA engines behind it. So it is the
//! same sequence in a test, where a VMM is played, and inside a guest. Each begins and ends with
//! nothing attached, and says what it saw.
//!
//! | number | what it shows |
//! | --- | --- |
//! | 1 | two domains behind PASIDs that the device chose; untagged DMA beside them |
//! | 2 | the same IOVA in two domains; one domain on two endpoints and several PASIDs |
//! | 3 | nested: each domain has its own second level |
//! | 4 | nested: one domain is the second level of several PASIDs and endpoints |
//! | 5 | a table with guest-physical output that changes under way |
//! | 6 | one domain replaces another under DMA load |
//! | 7 | a private PASID: map, DMA, unmap, nothing bound |
//! | 8 | guests' tables that are no tables |

mod bench;
mod hostile;
mod nested;
mod plain;
mod replace;
mod shared;
mod table;

pub use bench::{Bench, Device, Flavour, Wrong};

use viommu_client::{Function, Transport};

/// A sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// Its number.
    pub number: u8,
    /// Its title.
    pub title: &'static str,
}

/// All of them. The last is no sequence of requests, but what no table of a guest's may do.
pub const SEQUENCES: [Sequence; 8] = [
    Sequence { number: 1, title: "two domains, PASIDs chosen by the device, untagged DMA beside" },
    Sequence { number: 2, title: "single level, one domain on two endpoints and several PASIDs" },
    Sequence { number: 3, title: "nested, each domain its own second level" },
    Sequence { number: 4, title: "nested, one second level for several PASIDs and endpoints" },
    Sequence { number: 5, title: "shared virtual addressing, the table changes under way" },
    Sequence { number: 6, title: "replacement under DMA load" },
    Sequence { number: 7, title: "private PASID: map, DMA, unmap" },
    Sequence { number: 8, title: "malformed tables" },
];

/// Runs sequence `number`; what it saw, in a few words.
///
/// # Errors
/// [`Wrong`]: what it saw was something else.
pub fn run<T: Transport, F: Function>(
    number: u8,
    bench: &mut Bench<T, F>,
) -> Result<String, Wrong> {
    bench.forget_faults()?;
    match number {
        1 => plain::two_domains_behind_chosen_pasids(bench),
        2 => plain::one_iova_in_two_domains(bench),
        3 => nested::own_second_levels(bench),
        4 => nested::one_second_level_for_all(bench),
        5 => shared::a_table_that_changes(bench),
        6 => replace::under_load(bench),
        7 => plain::private_pasid(bench),
        8 => hostile::tables_that_are_none(bench),
        _ => Err(Wrong::NoSuchSequence(number)),
    }
}

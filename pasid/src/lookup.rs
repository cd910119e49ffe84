//! One question for both architectures: where do the requests of (endpoint, PASID) go?

use std::fmt;

use viommu_pgtable::PhysAddr;

use crate::smmuv3::{self, ContextDescriptor, Stage2, StreamRoot};
use crate::space::{Space, Spaces};
use crate::vtd::{self, FirstLevel, SecondLevel, Translation};
use crate::{EndpointId, Pasid};

/// Where the structures of one PCI segment start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structures {
    /// VT-d, scalable mode: the root table.
    Vtd {
        /// Its address.
        root: PhysAddr,
    },
    /// SMMUv3: the stream table.
    SmmuV3(StreamRoot),
}

/// A first-level (stage 1) table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstTable {
    /// VT-d.
    Vtd(FirstLevel),
    /// Arm, 64-bit.
    Arm(ContextDescriptor),
}

/// A second-level (stage 2) table. It lies in [`Space::Tables`], always.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecondTable {
    /// VT-d.
    Vtd(SecondLevel),
    /// Arm, 64-bit.
    Arm(Stage2),
}

/// What requests go through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// Nothing: their address is the output.
    PassThrough,
    /// A first level alone.
    First {
        /// The table.
        table: FirstTable,
        /// What its root and its entries lead into: [`Space::Tables`] or [`Space::Guest`].
        space: Space,
    },
    /// A second level alone.
    Second(SecondTable),
    /// A first level in [`Space::SecondLevel`], then a second level.
    Nested {
        /// The first.
        first: FirstTable,
        /// The second.
        second: SecondTable,
    },
}

/// A request that found no way to its page tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LookupFault {
    /// In VT-d's structures.
    Vtd(vtd::LookupFault),
    /// In SMMUv3's structures.
    SmmuV3(smmuv3::LookupFault),
}

impl LookupFault {
    /// The address of the entry that was wrong.
    #[must_use]
    pub const fn entry_at(&self) -> PhysAddr {
        match self {
            Self::Vtd(fault) => fault.entry_at,
            Self::SmmuV3(fault) => fault.entry_at,
        }
    }
}

impl fmt::Display for LookupFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vtd(fault) => fault.fmt(f),
            Self::SmmuV3(fault) => fault.fmt(f),
        }
    }
}

impl std::error::Error for LookupFault {}

/// Finds how requests of `endpoint`, tagged with `pasid` or untagged, are translated. `structures`
/// are those of the endpoint's segment.
///
/// Takes at most 14 loads, of which at most 5 through a second level.
///
/// # Errors
/// The first entry on the way that is missing, not present or malformed.
pub fn lookup<S: Spaces + ?Sized>(
    spaces: &S,
    structures: &Structures,
    endpoint: EndpointId,
    pasid: Option<Pasid>,
) -> Result<Route, LookupFault> {
    match structures {
        Structures::Vtd { root } => {
            let entry = vtd::lookup(spaces.tables(), *root, endpoint.bdf(), pasid);
            Ok(vtd_route(spaces, entry.map_err(LookupFault::Vtd)?.translation))
        }
        Structures::SmmuV3(root) => {
            let route = smmuv3::lookup(spaces, root, u32::from(endpoint.bdf()), pasid);
            route.map_err(LookupFault::SmmuV3)
        }
    }
}

fn vtd_route<S: Spaces + ?Sized>(spaces: &S, translation: Translation) -> Route {
    match translation {
        Translation::PassThrough => Route::PassThrough,
        Translation::FirstLevel(first) => {
            Route::First { table: FirstTable::Vtd(first), space: spaces.space_of(first.root) }
        }
        Translation::SecondLevel { root, width } => {
            Route::Second(SecondTable::Vtd(SecondLevel { root, width }))
        }
        Translation::Nested { first, second } => {
            Route::Nested { first: FirstTable::Vtd(first), second: SecondTable::Vtd(second) }
        }
    }
}

#[cfg(test)]
mod tests;

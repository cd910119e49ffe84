//! From (endpoint, PASID) to a page table, and through it: the one place that knows formats.

use viommu_pasid::Pasid;
use viommu_pasid::vtd::{self, LookupFaultKind, Translation};
use viommu_pgtable::vtd_second::VtdSecond;
use viommu_pgtable::{Access, Iova, PhysAddr, walk};

use crate::abi::Arch;
use crate::fault::FaultReason;
use crate::view::View;

/// Leaf sizes that a second-level table may hold: 4 KiB, 2 MiB, 1 GiB.
const LEAF_SIZES: u64 = 1 << 12 | 1 << 21 | 1 << 30;

/// Passed-through addresses are remembered in blocks of this size, where they fit below the tables.
const IDENTITY_LG2: u32 = 30;

/// How the accesses of one (endpoint, PASID) are translated.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Path {
    /// Not at all.
    Identity,
    /// Through a VT-d second-level table.
    VtdSecond { format: VtdSecond, root: PhysAddr },
}

/// Where a page of IOVAs leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leaf {
    /// Where the address itself leads.
    pub(crate) oa: u64,
    /// Size of the page, bytes.
    pub(crate) size_lg2: u32,
    /// What is allowed.
    pub(crate) access: Access,
}

/// Finds the path of (`bdf`, `pasid`), starting at the root table `root`.
pub(crate) fn find(
    view: &View,
    root: PhysAddr,
    bdf: u16,
    pasid: Option<Pasid>,
) -> Result<Path, FaultReason> {
    match view.arch() {
        Arch::Vtd => find_vtd(view, root, bdf, pasid),
    }
}

fn find_vtd(
    view: &View,
    root: PhysAddr,
    bdf: u16,
    pasid: Option<Pasid>,
) -> Result<Path, FaultReason> {
    let entry = vtd::lookup(view, root, bdf, pasid).map_err(|fault| match fault.kind {
        LookupFaultKind::NoMemory
        | LookupFaultKind::RootMalformed
        | LookupFaultKind::ContextMalformed
        | LookupFaultKind::DirectoryMalformed
        | LookupFaultKind::EntryMalformed => FaultReason::Malformed,
        LookupFaultKind::RootNotPresent
        | LookupFaultKind::ContextNotPresent
        | LookupFaultKind::PasidNotEnabled
        | LookupFaultKind::PasidTooWide
        | LookupFaultKind::DirectoryNotPresent
        | LookupFaultKind::EntryNotPresent => FaultReason::NotAttached,
    })?;
    match entry.translation {
        Translation::PassThrough => Ok(Path::Identity),
        Translation::SecondLevel { root, width } => {
            let format = VtdSecond::new(width.bits(), LEAF_SIZES).ok_or(FaultReason::Malformed)?;
            Ok(Path::VtdSecond { format, root })
        }
        // no writer makes these yet; refusing is what an unknown entry gets
        Translation::FirstLevel(_) | Translation::Nested { .. } => Err(FaultReason::Malformed),
    }
}

/// Follows `iova` along `path`.
pub(crate) fn follow(
    view: &View,
    path: Path,
    iova: u64,
    access: Access,
) -> Result<Leaf, FaultReason> {
    match path {
        Path::Identity => identity(view.table_base().raw(), iova),
        Path::VtdSecond { format, root } => {
            let found =
                walk(&format, view, root, Iova::new(iova), access).map_err(FaultReason::Mapping)?;
            Ok(Leaf { oa: found.oa.raw(), size_lg2: found.size_lg2.into(), access: found.access })
        }
    }
}

/// All addresses below the tables lead to themselves, in blocks that do not reach the tables.
fn identity(table_base: u64, iova: u64) -> Result<Leaf, FaultReason> {
    let block_end = (iova | ((1 << IDENTITY_LG2) - 1)).checked_add(1);
    let size_lg2 = match block_end {
        Some(end) if end <= table_base => IDENTITY_LG2,
        // `table_base` is a multiple of 4096
        _ if iova < table_base => 12,
        _ => return Err(FaultReason::OutOfRange),
    };
    Ok(Leaf { oa: iova, size_lg2, access: Access::all() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passed_through_addresses_stop_where_tables_begin() {
        let base = (5 << 30) + 0x3000;
        let leaf = |iova| identity(base, iova).map(|leaf| (leaf.oa, leaf.size_lg2));
        assert_eq!(leaf(0x1234), Ok((0x1234, 30)));
        assert_eq!(leaf((5 << 30) - 1), Ok(((5 << 30) - 1, 30)));
        assert_eq!(leaf(base - 1), Ok((base - 1, 12)));
        assert_eq!(leaf(base), Err(FaultReason::OutOfRange));
        assert_eq!(leaf(u64::MAX), Err(FaultReason::OutOfRange));
    }
}

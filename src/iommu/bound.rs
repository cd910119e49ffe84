//! Tables of the guest's that are bound to domains: who can use them.

use viommu_backend::{DomainId, EndpointCapabilities, FirstFormat, Output, TableFormat};
use viommu_pasid::FirstTable;
use viommu_pasid::smmuv3::{ContextControls, ContextDescriptor, Stage1Table, Stage1Tables};
use viommu_pasid::vtd::{FirstControls, FirstLevel};
use viommu_pgtable::{ArmStage1, Format, PhysAddr};

use crate::protocol::{GuestTable, Status};

/// Alignment of a VT-d root table.
const VTD_ROOT_LG2: u8 = 12;
/// The one size of page that a VT-d first level needs.
const VTD_GRANULE: u64 = 1 << VTD_ROOT_LG2;
/// Alignment of TTBR0: a smaller first table lies at a multiple of this (Arm ARM, D24.2 TTBR0_EL1).
const TTBR_LG2: u8 = 6;

/// What a table asks of an endpoint that is to use it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Needs {
    format: FirstFormat,
    input_bits: u8,
    granule: u64,
}

impl Needs {
    /// Those of `table`; `None` if its format can be bound to no domain.
    pub(super) fn of(table: &GuestTable) -> Option<Self> {
        match *table {
            GuestTable::VtdFirst { five_levels, .. } => Some(Self {
                format: FirstFormat::VtdFirst,
                input_bits: if five_levels { 57 } else { 48 },
                granule: VTD_GRANULE,
            }),
            GuestTable::ArmStage1 { tcr, .. } => {
                let geometry = ArmStage1::from_tcr(tcr, ARM_OUTPUT_BITS).ok()?.geometry();
                Some(Self {
                    format: FirstFormat::ArmStage1,
                    input_bits: geometry.input_bits,
                    granule: 1_u64.checked_shl(geometry.granule_lg2.into())?,
                })
            }
            GuestTable::Unknown => None,
        }
    }

    /// What the endpoint offers for such tables, with the output that is wanted of them.
    pub(super) fn met_by<'a>(
        &self,
        endpoint: &'a EndpointCapabilities,
        output: Output,
    ) -> Option<&'a TableFormat> {
        let output_offered = match output {
            Output::GuestPhysical => endpoint.identity,
            Output::Through(_) => endpoint.parent,
        };
        endpoint.formats.iter().find(|offer| {
            output_offered
                && offer.format == self.format
                && offer.input_bits >= self.input_bits
                && offer.page_size_mask & self.granule != 0
        })
    }
}

/// The widest output that an Arm table can name.
const ARM_OUTPUT_BITS: u8 = 48;

/// A bound table, as far as requests are judged by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bound {
    /// Who can use it.
    pub(super) needs: Needs,
    /// Width of its output, bits.
    pub(super) output_bits: u8,
    /// Where its output goes.
    pub(super) output: Output,
}

impl Bound {
    /// True if an endpoint with these capabilities can use it.
    pub(super) fn fits(&self, endpoint: &EndpointCapabilities) -> bool {
        self.needs
            .met_by(endpoint, self.output)
            .is_some_and(|offer| offer.output_bits >= self.output_bits)
    }

    /// The domain whose mappings translate its output.
    pub(super) const fn second_level(&self) -> Option<DomainId> {
        match self.output {
            Output::GuestPhysical => None,
            Output::Through(parent) => Some(parent),
        }
    }
}

/// The table as a host is told of it, for endpoints with an output of `output_bits`. The table may
/// say that its own is wider, as an Arm IPS can be; what leads above the endpoint's then faults.
///
/// # Errors
/// RANGE: its root is misaligned or above the output.
pub(super) fn first_table(table: &GuestTable, output_bits: u8) -> Result<FirstTable, Status> {
    let reachable = |root: PhysAddr, align_lg2| {
        let above = root.raw().checked_shr(output_bits.into()).unwrap_or(0);
        if above == 0 && root.is_aligned(align_lg2) { Ok(root) } else { Err(Status::RANGE) }
    };
    match *table {
        GuestTable::VtdFirst { root, five_levels } => {
            let root = reachable(root, VTD_ROOT_LG2)?;
            let controls = FirstControls::default();
            Ok(FirstTable::Vtd(FirstLevel { root, five_levels, controls }))
        }
        GuestTable::ArmStage1 { root, tcr, mair } => {
            let root = reachable(root, TTBR_LG2)?;
            let format = ArmStage1::from_tcr(tcr, ARM_OUTPUT_BITS).map_err(|_| Status::INVAL)?;
            let table = Stage1Table::new(root, format).ok_or(Status::RANGE)?;
            Ok(FirstTable::Arm(ContextDescriptor {
                tables: Stage1Tables::lower_only(table),
                asid: 0,
                mair,
                controls: ContextControls::default(),
            }))
        }
        GuestTable::Unknown => Err(Status::UNSUPP),
    }
}

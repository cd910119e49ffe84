//! Endpoints and domains: what the state machine remembers.

use viommu_backend::{DomainId, Target};
use viommu_pgtable::IovaRange;

use super::store::Mappings;
use crate::protocol::ResvMem;

/// What the device process last said of its function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    /// It may do DMA.
    Started,
    /// It was reset and does no DMA until it is started again.
    Quiesced,
}

/// One endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    /// What a PROBE tells.
    pub(super) reserved: Vec<ResvMem>,
    /// Its domain, by the guest's requests.
    pub(super) attached: Option<DomainId>,
    /// Where the host sends its DMA: what the last call that the host accepted said.
    pub(super) target: Target,
    /// What its device process said.
    pub(super) function: Function,
    /// While parked: treated as if attached to nothing, so that firmware can use the device.
    pub(super) lent_to_firmware: bool,
}

impl Endpoint {
    /// An endpoint that is attached to nothing, before the host was told of it.
    pub(super) const fn new(reserved: Vec<ResvMem>) -> Self {
        Self {
            reserved,
            attached: None,
            target: Target::Blocked,
            function: Function::Started,
            lent_to_firmware: false,
        }
    }
}

/// What a domain translates by.
#[derive(Debug)]
pub(super) enum Space {
    /// Nothing: every address stays as it is.
    Bypass,
    /// Its mappings.
    Mapped(Mapped),
}

/// The mappings of a domain and what they must leave free.
#[derive(Debug, Default)]
pub(super) struct Mapped {
    /// The mappings.
    pub(super) mappings: Mappings,
    /// The reserved ranges of the endpoints in the domain, each with the number of endpoints that
    /// have it. Endpoints of one machine have the same few, so this stays short however many join.
    reserved: Vec<(IovaRange, usize)>,
}

impl Mapped {
    /// True if an endpoint in the domain has reserved memory that `range` touches (R1).
    pub(super) fn touches_reserved(&self, range: &IovaRange) -> bool {
        self.reserved.iter().any(|(reserved, _)| reserved.overlaps(range))
    }

    fn add_reserved(&mut self, regions: &[ResvMem]) {
        for ResvMem { range, .. } in regions {
            match self.reserved.iter_mut().find(|(known, _)| known == range) {
                Some((_, users)) => *users += 1,
                None => self.reserved.push((*range, 1)),
            }
        }
    }

    fn remove_reserved(&mut self, regions: &[ResvMem]) {
        for ResvMem { range, .. } in regions {
            if let Some((_, users)) = self.reserved.iter_mut().find(|(known, _)| known == range) {
                *users -= 1;
            }
        }
        self.reserved.retain(|(_, users)| *users != 0);
    }
}

/// One domain; it exists as long as an endpoint is attached to it.
#[derive(Debug)]
pub(super) struct Domain {
    /// Endpoints attached to it.
    pub(super) endpoints: usize,
    /// What it translates by.
    pub(super) space: Space,
}

impl Domain {
    /// A domain that nothing is attached to yet.
    pub(super) fn new(bypass: bool) -> Self {
        let space = if bypass { Space::Bypass } else { Space::Mapped(Mapped::default()) };
        Self { endpoints: 0, space }
    }

    /// True for a bypass domain.
    pub(super) const fn is_bypass(&self) -> bool {
        matches!(self.space, Space::Bypass)
    }

    /// Where the DMA of its endpoints goes.
    pub(super) const fn target(&self, id: DomainId) -> Target {
        match self.space {
            Space::Bypass => Target::Identity,
            Space::Mapped(_) => Target::Domain(id),
        }
    }

    /// An endpoint with these reserved regions joins.
    pub(super) fn join(&mut self, regions: &[ResvMem]) {
        self.endpoints += 1;
        if let Space::Mapped(mapped) = &mut self.space {
            mapped.add_reserved(regions);
        }
    }

    /// An endpoint that had joined with these regions leaves.
    pub(super) fn leave(&mut self, regions: &[ResvMem]) {
        self.endpoints -= 1;
        if let Space::Mapped(mapped) = &mut self.space {
            mapped.remove_reserved(regions);
        }
    }
}

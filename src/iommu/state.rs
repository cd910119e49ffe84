//! Endpoints and domains: what the state machine remembers.

use std::collections::BTreeMap;
use std::sync::Arc;

use viommu_backend::{DomainId, EndpointCapabilities, Target};
use viommu_pasid::EndpointId;
use viommu_pgtable::IovaRange;

use super::bound::Bound;
use super::pasids::Pasids;
use super::store::Mappings;
use crate::protocol::{AuxProperty, Properties, ResvMem};

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
    /// What the host can do for it; known from the start on. Endpoints that are alike share it.
    pub(super) capabilities: Arc<EndpointCapabilities>,
    /// What is attached to its PASIDs.
    pub(super) pasids: Pasids,
    /// The domain of its untagged traffic, by the guest's requests.
    pub(super) attached: Option<DomainId>,
    /// Where the host sends its untagged DMA: what the last call that the host accepted said.
    pub(super) target: Target,
    /// What its device process said.
    pub(super) function: Function,
    /// While parked: treated as if attached to nothing, so that firmware can use the device.
    pub(super) lent_to_firmware: bool,
}

impl Endpoint {
    /// An endpoint that is attached to nothing, before the host was told of it.
    pub(super) fn new(reserved: Vec<ResvMem>) -> Self {
        Self {
            reserved,
            capabilities: Arc::default(),
            pasids: Pasids::new(0),
            attached: None,
            target: Target::Blocked,
            function: Function::Started,
            lent_to_firmware: false,
        }
    }

    /// All that a PROBE can tell of it.
    pub(super) fn properties(&self) -> Properties<'_> {
        Properties {
            regions: &self.reserved,
            aux: AuxProperty::of(&self.capabilities),
            formats: &self.capabilities.formats,
        }
    }

    /// True if something is attached, to its untagged traffic or to a PASID.
    pub(super) fn is_attached(&self) -> bool {
        self.attached.is_some() || !self.pasids.is_empty()
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

/// How an endpoint is in a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Member {
    /// By its untagged traffic.
    pub(super) untagged: bool,
    /// By so many of its PASIDs.
    pub(super) pasids: usize,
}

/// One domain; it exists as long as it is [in use](Self::is_in_use).
#[derive(Debug)]
pub(super) struct Domain {
    /// The endpoints that are attached to it.
    pub(super) members: BTreeMap<EndpointId, Member>,
    /// How many attachments that makes.
    attachments: usize,
    /// Tables of other domains whose output goes through its mappings.
    pub(super) children: usize,
    /// The guest's table, through which its DMA goes before its mappings or in their place.
    pub(super) bound: Option<Bound>,
    /// What it translates by.
    pub(super) space: Space,
}

impl Domain {
    /// A domain that nothing is attached to yet.
    pub(super) fn new(bypass: bool) -> Self {
        let space = if bypass { Space::Bypass } else { Space::Mapped(Mapped::default()) };
        Self { members: BTreeMap::new(), attachments: 0, children: 0, bound: None, space }
    }

    /// True for a bypass domain.
    pub(super) const fn is_bypass(&self) -> bool {
        matches!(self.space, Space::Bypass)
    }

    /// True while it is attached, bound, or the parent of a bound one.
    pub(super) const fn is_in_use(&self) -> bool {
        self.attachments > 0 || self.bound.is_some() || self.children > 0
    }

    /// True if something is attached to it.
    pub(super) const fn is_attached(&self) -> bool {
        self.attachments > 0
    }

    /// True if it ends with the next attachment that leaves it.
    pub(super) const fn ends_with_one_less(&self) -> bool {
        self.attachments == 1 && self.bound.is_none() && self.children == 0
    }

    /// Where the DMA of its endpoints goes.
    pub(super) const fn target(&self, id: DomainId) -> Target {
        match self.space {
            Space::Bypass => Target::Identity,
            Space::Mapped(_) => Target::Domain(id),
        }
    }

    /// The second level that tagged traffic goes through; none behind its mappings alone, which
    /// are a first level then wherever an endpoint has one second level for all.
    pub(super) fn second_level(&self) -> Option<DomainId> {
        self.bound.as_ref().and_then(Bound::second_level)
    }

    /// Whether untagged traffic can go through this domain, which is `id`, on an endpoint that has
    /// `second_level` for all of its traffic. Unbound, the domain can itself be that second level.
    pub(super) fn suits_untagged(&self, id: DomainId, second_level: Option<DomainId>) -> bool {
        match (&self.bound, &self.space) {
            (Some(bound), _) => bound.second_level() == second_level,
            (None, Space::Bypass) => second_level.is_none(),
            (None, Space::Mapped(_)) => second_level.is_none_or(|parent| parent == id),
        }
    }

    /// An attachment of `endpoint`, which has these reserved regions, joins.
    pub(super) fn join(&mut self, endpoint: EndpointId, tagged: bool, regions: &[ResvMem]) {
        self.attachments += 1;
        let member = self.members.entry(endpoint).or_default();
        let is_new = *member == Member::default();
        if tagged {
            member.pasids += 1;
        } else {
            member.untagged = true;
        }
        if let (true, Space::Mapped(mapped)) = (is_new, &mut self.space) {
            mapped.add_reserved(regions);
        }
    }

    /// An attachment that had joined leaves.
    pub(super) fn leave(&mut self, endpoint: EndpointId, tagged: bool, regions: &[ResvMem]) {
        self.attachments -= 1;
        let Some(member) = self.members.get_mut(&endpoint) else { return };
        if tagged {
            member.pasids -= 1;
        } else {
            member.untagged = false;
        }
        if *member != Member::default() {
            return;
        }
        self.members.remove(&endpoint);
        if let Space::Mapped(mapped) = &mut self.space {
            mapped.remove_reserved(regions);
        }
    }
}

//! One endpoint: its stream table entry, and its context descriptors in two tables.
//!
//! One of the tables is in use. What changes S is written into the other one, which then takes its
//! place by the store that changes the stream table entry: so each request sees the descriptors
//! that belong to the stage 2 that it sees.

use viommu_pasid::smmuv3::{
    ContextDescriptor, ContextTable, Stage2, StreamConfig, StreamEntry, StreamTable, Untagged,
};
use viommu_pasid::{EndpointId, Pasid, Requester, SetError};
use viommu_pgtable::TableStore;

use super::{Change, LeadError};
use crate::DomainId;

/// A second level: a domain's stage 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Second {
    pub(super) domain: DomainId,
    pub(super) table: Stage2,
    pub(super) vmid: u16,
}

/// What requesters are led through.
#[derive(Debug, Clone, Copy)]
pub(super) enum Use {
    Blocked,
    Identity,
    /// A domain's mappings alone, as stage 1; untagged traffic may take its stage 2 instead.
    Mappings {
        domain: DomainId,
        descriptor: ContextDescriptor,
    },
    /// A bound table.
    Bound {
        descriptor: ContextDescriptor,
        second: Option<Second>,
    },
}

impl Use {
    /// The S that it needs, if it cannot do with another.
    const fn needs(&self, tagged: bool) -> Option<Option<Second>> {
        match self {
            Self::Blocked | Self::Identity => None,
            Self::Mappings { .. } => {
                if tagged {
                    Some(None)
                } else {
                    None
                }
            }
            Self::Bound { second, .. } => Some(*second),
        }
    }

    /// The descriptor of untagged traffic that is led so, and what S1DSS says of it.
    const fn untagged(&self, second: Option<&Second>) -> (Untagged, Option<&ContextDescriptor>) {
        match (self, second) {
            (Self::Identity, None) | (Self::Mappings { .. }, Some(_)) => (Untagged::Bypass, None),
            (Self::Mappings { descriptor, .. }, None) | (Self::Bound { descriptor, .. }, _) => {
                (Untagged::Context0, Some(descriptor))
            }
            (Self::Blocked, _) | (Self::Identity, Some(_)) => (Untagged::Terminate, None),
        }
    }

    /// The descriptor of a PASID that is led so.
    const fn tagged(&self) -> Option<&ContextDescriptor> {
        match self {
            Self::Blocked | Self::Identity => None,
            Self::Mappings { descriptor, .. } | Self::Bound { descriptor, .. } => Some(descriptor),
        }
    }
}

/// An endpoint after a change.
#[derive(Debug)]
pub(in super::super) struct Next {
    entry: StreamEntry,
    rid: Use,
    second: Option<Second>,
    pasids: usize,
    /// The tables of descriptors change places.
    swaps: bool,
    /// Descriptors of what is blocked now, in the table that was in use.
    blocked: Vec<u32>,
    /// Descriptors of what was led elsewhere by the stream table entry. Requests that saw the old
    /// one may be about to read them.
    stale: Vec<u32>,
}

/// An endpoint.
#[derive(Debug)]
pub(super) struct Endpoint {
    id: EndpointId,
    stream: StreamTable,
    pasid_bits: u8,
    /// The descriptors in use.
    contexts: ContextTable,
    /// The other table, made for the first change of S; but for what is `stale` it is empty.
    spare: Option<ContextTable>,
    /// A table that requests may still read until the next drain, and what is to be cleared in it
    /// then.
    stale: Option<(ContextTable, Vec<u32>)>,
    /// The stream table entry; `None` while there is none that is valid.
    entry: Option<StreamEntry>,
    rid: Use,
    /// S; it means nothing while there are no `pasids` and `rid` does not need it.
    second: Option<Second>,
    /// PASIDs with a descriptor.
    pasids: usize,
}

impl Endpoint {
    /// A blocked one.
    pub(super) fn new<S: TableStore>(
        store: &mut S,
        stream: StreamTable,
        id: EndpointId,
        pasid_bits: u8,
    ) -> Result<Self, LeadError> {
        let contexts = ContextTable::new(store, pasid_bits).map_err(SetError::OutOfTables)?;
        let entry = entry(&contexts, Untagged::Terminate, None)?;
        stream.set(store, id.bdf(), &entry)?;
        let (entry, rid, second) = (Some(entry), Use::Blocked, None);
        let (spare, stale, pasids) = (None, None, 0);
        Ok(Self { id, stream, pasid_bits, contexts, spare, stale, entry, rid, second, pasids })
    }

    /// Stages what leads `group`, requesters of this endpoint in order, through `new`.
    pub(super) fn stage<S: TableStore>(
        &mut self,
        store: &mut S,
        group: &[Requester],
        new: Use,
        change: &mut Change,
    ) -> Result<Next, LeadError> {
        let (untagged, tagged) = split(group);
        let rid = if untagged { new } else { self.rid };
        let second = self.second_level(store, tagged.clone(), &new, &rid)?;
        let swaps = second != self.second;
        if self.stale.is_some() && (swaps || untagged) {
            return Err(LeadError::Busy);
        }
        let contexts = if swaps { self.spare(store)? } else { self.contexts };
        let (dss, rid_descriptor) = rid.untagged(second.as_ref());
        if let Some(descriptor) = rid_descriptor.filter(|_| untagged || swaps) {
            contexts.stage(store, [0], descriptor, &mut change.entries)?;
        }
        if let Some(descriptor) = new.tagged() {
            contexts.stage(store, tagged.clone(), descriptor, &mut change.entries)?;
        }
        let entry = entry(&contexts, dss, second.as_ref())?;
        if self.entry != Some(entry) {
            self.stream.stage(store, self.id.bdf(), &entry, &mut change.streams)?;
        }
        let others = self.others(store, tagged.clone());
        let pasids = others + new.tagged().map_or(0, |_| tagged.clone().count());
        let (mut blocked, mut stale) = (Vec::new(), Vec::new());
        if swaps {
            stale.extend(tagged.chain([0]).filter(|index| self.contexts.holds(store, *index)));
        } else {
            blocked.extend(tagged.filter(|_| new.tagged().is_none()));
            let ended = untagged && rid_descriptor.is_none() && self.contexts.holds(store, 0);
            let list = if dss == Untagged::Bypass { &mut stale } else { &mut blocked };
            list.extend(ended.then_some(0));
        }
        Ok(Next { entry, rid, second, pasids, swaps, blocked, stale })
    }

    /// PASIDs with a descriptor that are not in `tagged`.
    fn others<S: TableStore>(&self, store: &S, tagged: impl Iterator<Item = u32>) -> usize {
        let replaced = tagged.filter(|pasid| self.contexts.holds(store, *pasid)).count();
        self.pasids.saturating_sub(replaced)
    }

    /// S, on which all that will be attached must agree: PASIDs that stay as they are, `tagged`,
    /// which are led through `new`, and untagged traffic.
    fn second_level<S: TableStore>(
        &self,
        store: &S,
        mut tagged: impl Iterator<Item = u32> + Clone,
        new: &Use,
        rid: &Use,
    ) -> Result<Option<Second>, LeadError> {
        let others = self.others(store, tagged.clone());
        let tagged = tagged.next();
        if tagged.is_some() && matches!(new, Use::Identity) {
            return Err(LeadError::Inexpressible("bypass behind a PASID"));
        }
        let tagged = tagged.and_then(|_| new.needs(true));
        let needs = [(others > 0).then_some(self.second), tagged, rid.needs(false)];
        let mut needs = needs.into_iter().flatten();
        let second = needs.next().flatten();
        let is_own = |second: Second| match rid {
            Use::Mappings { domain, .. } => second.domain == *domain,
            Use::Blocked | Use::Identity | Use::Bound { .. } => true,
        };
        if needs.any(|other| other != second) || !second.is_none_or(is_own) {
            return Err(LeadError::Inexpressible("the endpoint has another second level"));
        }
        Ok(second)
    }

    /// The empty table of descriptors.
    fn spare<S: TableStore>(&mut self, store: &mut S) -> Result<ContextTable, LeadError> {
        if let Some(spare) = self.spare {
            return Ok(spare);
        }
        let spare = ContextTable::new(store, self.pasid_bits).map_err(SetError::OutOfTables)?;
        self.spare = Some(spare);
        Ok(spare)
    }

    /// Keeps the books of what has come into force, and clears what is blocked. True if something
    /// is to be [settled](Self::settle) after the next drain.
    pub(super) fn commit<S: TableStore>(&mut self, store: &mut S, next: Next) -> bool {
        let old = self.contexts;
        if let Some(spare) = self.spare.filter(|_| next.swaps) {
            (self.contexts, self.spare) = (spare, Some(old));
        }
        for index in next.blocked {
            old.clear(store, index);
        }
        // Also a table that held nothing may be written again after the next drain only: a request
        // that saw the old entry would take descriptors from it that belong to another stage 2.
        if next.swaps || !next.stale.is_empty() {
            self.stale = Some((old, next.stale));
        }
        self.entry = Some(next.entry);
        (self.rid, self.second, self.pasids) = (next.rid, next.second, next.pasids);
        self.stale.is_some()
    }

    /// Clears what no request reads any more.
    pub(super) fn settle<S: TableStore>(&mut self, store: &mut S) {
        if let Some((contexts, stale)) = self.stale.take() {
            for index in stale {
                contexts.clear(store, index);
            }
        }
    }

    /// Blocks a requester where no page is left for another entry. Where untagged traffic takes no
    /// descriptor, the stream table entry goes, and the endpoint's PASIDs with it until it is
    /// written again: fewer accesses, never more.
    pub(super) fn block_in_place<S: TableStore>(&mut self, store: &mut S, pasid: Option<Pasid>) {
        match pasid {
            Some(pasid) => {
                let held = self.contexts.holds(store, pasid.raw());
                self.contexts.clear(store, pasid.raw());
                self.pasids = self.pasids.saturating_sub(usize::from(held));
            }
            None => {
                let (dss, _) = self.rid.untagged(self.second.as_ref());
                if dss == Untagged::Bypass {
                    self.stream.clear(store, self.id.bdf());
                    self.entry = None;
                }
                self.contexts.clear(store, 0);
                self.rid = Use::Blocked;
            }
        }
    }
}

/// Whether untagged traffic is in `group`, and the PASIDs that are.
fn split(group: &[Requester]) -> (bool, impl Iterator<Item = u32> + Clone) {
    let untagged = group.iter().any(|requester| requester.pasid.is_none());
    (untagged, group.iter().filter_map(|requester| requester.pasid.map(Pasid::raw)))
}

/// The stream table entry over `contexts`.
fn entry(
    contexts: &ContextTable,
    untagged: Untagged,
    second: Option<&Second>,
) -> Result<StreamEntry, LeadError> {
    let first = contexts.stage1(untagged).ok_or(super::TABLE_TOO_HIGH)?;
    Ok(match second {
        None => StreamEntry { vmid: 0, config: StreamConfig::Stage1(first) },
        Some(second) => {
            let config = StreamConfig::Nested { first, second: second.table };
            StreamEntry { vmid: second.vmid, config }
        }
    })
}

//! The PASIDs of one endpoint, and what is attached to them.

use std::collections::{BTreeMap, BTreeSet};

use viommu_backend::DomainId;
use viommu_pasid::{Allocator, Pasid};

/// The PASIDs of one endpoint.
///
/// A guest may attach a million of them, so each costs a few words: one entry by PASID, one by
/// domain, one bit. All operations on one PASID are O(log n).
#[derive(Debug)]
pub(super) struct Pasids {
    /// AUX_ENABLE is in force.
    pub(super) enabled: bool,
    attached: BTreeMap<Pasid, DomainId>,
    /// The same by domain: AUX_ID wants the lowest of one.
    by_domain: BTreeSet<(DomainId, Pasid)>,
    /// Those that are attached, and those that were and whose users may not have drained yet.
    taken: Allocator,
    /// Attached, but blocked: the host refused to send them back to their domain.
    lost: BTreeSet<Pasid>,
    /// The second level that all that is attached goes through. Means something only where the
    /// endpoint has one for all of its PASIDs, and something is attached.
    second_level: Option<DomainId>,
}

impl Pasids {
    /// PASIDs of `pasid_bits` bits, of which none is attached.
    pub(super) const fn new(pasid_bits: u8) -> Self {
        Self {
            enabled: false,
            attached: BTreeMap::new(),
            by_domain: BTreeSet::new(),
            taken: Allocator::new(pasid_bits),
            lost: BTreeSet::new(),
            second_level: None,
        }
    }

    /// True if none is attached.
    pub(super) fn is_empty(&self) -> bool {
        self.attached.is_empty()
    }

    /// How many are attached.
    pub(super) fn len(&self) -> usize {
        self.attached.len()
    }

    /// How many there are, attached or not.
    pub(super) const fn capacity(&self) -> u32 {
        self.taken.capacity()
    }

    /// True if `pasid` is no wider than the endpoint's.
    pub(super) const fn has(&self, pasid: Pasid) -> bool {
        self.taken.has(pasid)
    }

    /// The lowest that nothing uses and that nobody can still use.
    pub(super) fn lowest_free(&self) -> Option<Pasid> {
        self.taken.lowest_free()
    }

    /// The domain that `pasid` is attached to.
    pub(super) fn domain(&self, pasid: Pasid) -> Option<DomainId> {
        self.attached.get(&pasid).copied()
    }

    /// True if `pasid` is attached, and the host translates it.
    pub(super) fn is_served(&self, pasid: Pasid) -> bool {
        self.attached.contains_key(&pasid) && !self.lost.contains(&pasid)
    }

    /// Each that is attached, with its domain, in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Pasid, DomainId)> + '_ {
        self.attached.iter().map(|(&pasid, &domain)| (pasid, domain))
    }

    /// The lowest at which `domain` is attached.
    pub(super) fn lowest_of(&self, domain: DomainId) -> Option<Pasid> {
        let (found, pasid) = self.by_domain.range((domain, LOWEST)..).next()?;
        (*found == domain).then_some(*pasid)
    }

    /// The second level of those that are attached, `but` left out; `None` if no other is.
    pub(super) fn second_level_but(&self, but: usize) -> Option<Option<DomainId>> {
        (self.attached.len() > but).then_some(self.second_level)
    }

    /// Notes that `pasid` is attached to `domain`, which goes through `second_level`. Returns the
    /// domain that it was attached to.
    pub(super) fn attach(
        &mut self,
        pasid: Pasid,
        domain: DomainId,
        second_level: Option<DomainId>,
    ) -> Option<DomainId> {
        let old = self.attached.insert(pasid, domain);
        if let Some(old) = old {
            self.by_domain.remove(&(old, pasid));
        }
        self.by_domain.insert((domain, pasid));
        self.lost.remove(&pasid);
        self.second_level = second_level;
        // It is taken already where it is replaced, or was detached and has not drained yet.
        let _ = self.taken.reserve(pasid);
        old
    }

    /// Notes that `pasid` is detached; it stays taken until it is [released](Self::release).
    pub(super) fn detach(&mut self, pasid: Pasid) {
        if let Some(domain) = self.attached.remove(&pasid) {
            self.by_domain.remove(&(domain, pasid));
            self.lost.remove(&pasid);
        }
    }

    /// Notes that the domain of some of them goes through another second level now.
    pub(super) const fn change_second_level(&mut self, second_level: Option<DomainId>) {
        self.second_level = second_level;
    }

    /// Notes whether the host translates `pasid`, which is attached.
    pub(super) fn set_served(&mut self, pasid: Pasid, served: bool) {
        if served {
            self.lost.remove(&pasid);
        } else {
            self.lost.insert(pasid);
        }
    }

    /// All users of `pasid` have drained: it is free unless it is attached again.
    pub(super) fn release(&mut self, pasid: Pasid) {
        if !self.attached.contains_key(&pasid) {
            self.taken.release(pasid);
        }
    }
}

/// The lowest PASID that exists.
const LOWEST: Pasid = match Pasid::new(1) {
    Some(lowest) => lowest,
    None => panic!("1 is a PASID"),
};

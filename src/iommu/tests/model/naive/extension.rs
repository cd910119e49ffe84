//! The extension's requests.

use viommu_backend::{FirstFormat, Output};
use viommu_pasid::Pasid;

use super::super::*;
use super::Model;
use crate::protocol::{
    Attribute, AuxAttach, AuxDetach, BindTable, GuestTable, Invalidate, PasidChoice,
};

impl Model {
    pub(super) fn enable(&mut self, id: EndpointId, on: bool) -> Status {
        let Some(place) = self.place(id) else { return Status::NOENT };
        if capabilities(id).pasid_bits == 0 {
            return Status::UNSUPP;
        }
        if self.endpoints[place].enabled == on || self.pasids(id).next().is_some() {
            return Status::INVAL;
        }
        self.endpoints[place].enabled = on;
        Status::OK
    }

    pub(super) fn aux_attach(&mut self, attach: &AuxAttach) -> Result<Reply<'static>, Status> {
        let AuxAttach { domain, endpoint, .. } = *attach;
        let place = self.place(endpoint).ok_or(Status::NOENT)?;
        let all = || (1..1 << capabilities(endpoint).pasid_bits).filter_map(Pasid::new);
        let is_free = |pasid: &Pasid| {
            self.attached(endpoint, Some(*pasid)).is_none()
                && !self.freed.contains(&(endpoint, *pasid))
        };
        let named = match attach.pasid {
            PasidChoice::This(pasid) => Some(pasid),
            PasidChoice::Any | PasidChoice::TooWide => None,
        };
        // where none is named, one that no request here names stands for it
        let after = self.with((endpoint, named.or(Some(Pasid::MAX)), domain), false);
        let capable = capabilities(endpoint).pasid_bits > 0 && !attach.page_request;
        if !capable || !self.fits(endpoint, domain) || !after.agrees() {
            return Err(Status::UNSUPP);
        }
        let exists = attach.pasid == PasidChoice::Any
            || named.is_some_and(|named| all().any(|pasid| pasid == named));
        if !self.endpoints[place].enabled || !exists || self.kind(domain) == Some(true) {
            return Err(Status::INVAL);
        }
        if named.is_some_and(|pasid| self.attached(endpoint, Some(pasid)) == Some(domain)) {
            return Ok(Reply::pasid(named.unwrap()));
        }
        let pasid = named.or_else(|| all().find(is_free)).ok_or(Status::NOMEM)?;
        if after.kinds.len() > MAX_DOMAINS && self.kind(domain).is_none() {
            return Err(Status::NOMEM);
        }
        *self = self.with((endpoint, Some(pasid), domain), false);
        Ok(Reply::pasid(pasid))
    }

    pub(super) fn aux_detach(&mut self, detach: &AuxDetach) -> Status {
        let AuxDetach { domain, endpoint, pasid } = *detach;
        let known = self.place(endpoint).is_some() && self.kind(domain).is_some();
        let attached = pasid.and_then(|pasid| self.attached(endpoint, Some(pasid)));
        let (true, Some(pasid), Some(attached)) = (known, pasid, attached) else {
            return Status::NOENT;
        };
        if attached != domain {
            return Status::INVAL;
        }
        self.attachments.retain(|(e, p, _)| (*e, *p) != (endpoint, Some(pasid)));
        self.freed.push((endpoint, pasid));
        self.bury_the_dead();
        Status::OK
    }

    pub(super) fn attribute(&self, attribute: Attribute) -> Reply<'static> {
        let of = |id: EndpointId, value: u32| {
            self.place(id).map_or(Status::NOENT.into(), |_| Reply::value(value.into()))
        };
        match attribute {
            Attribute::AuxCapable(id) => of(id, u32::from(capabilities(id).pasid_bits > 0)),
            Attribute::AuxMax(id) => of(id, (1 << capabilities(id).pasid_bits) - 1),
            Attribute::AuxEnabled(id) => {
                of(id, u32::from(self.place(id).is_some_and(|at| self.endpoints[at].enabled)))
            }
            Attribute::AuxId(domain, id) => {
                let pasids = self.pasids(id).filter(|(_, owner)| *owner == domain);
                let lowest = pasids.map(|(pasid, _)| pasid.raw()).min();
                lowest.map_or(Status::NOENT.into(), |pasid| Reply::value(pasid.into()))
            }
            Attribute::Nested(domain) => match (self.kind(domain), self.table_of(domain)) {
                (None, _) => Status::NOENT.into(),
                (_, None) => Reply::value(0),
                (_, Some((_, Output::GuestPhysical))) => Reply::value(3),
                (_, Some((_, Output::Through(parent)))) => {
                    Reply::value(if parent == domain { 1 } else { 2 })
                }
            },
        }
    }

    pub(super) fn bind(&mut self, bind: &BindTable) -> Status {
        let BindTable { domain, table, output } = *bind;
        let (own, parent) = match output {
            Output::Through(parent) if parent != domain => (false, Some(parent)),
            Output::Through(_) => (true, None),
            Output::GuestPhysical => (false, None),
        };
        if parent.is_some_and(|parent| self.kind(parent).is_none()) {
            return Status::NOENT;
        }
        let mut after = self.clone();
        after.bound.retain(|(id, ..)| *id != domain);
        after.bound.push((domain, table, output));
        if after.kind(domain).is_none() {
            after.kinds.push((domain, false));
        }
        let usable = if self.members(domain).next().is_some() {
            self.members(domain).all(|member| can_use(member, &table, output))
        } else {
            ENDPOINTS.iter().any(|endpoint| can_use(*endpoint, &table, output))
        };
        if !usable || !after.agrees() {
            return Status::UNSUPP;
        }
        let wrong_parent =
            |parent| self.kind(parent) == Some(true) || self.table_of(parent).is_some();
        let is_parent = self.bound.iter().any(|(.., output)| *output == Output::Through(domain));
        if self.kind(domain) == Some(true)
            || self.table_of(domain).is_some()
            || is_parent
            || (!own && self.mappings_of(domain).next().is_some())
            || parent.is_some_and(wrong_parent)
        {
            return Status::INVAL;
        }
        if !root_is_right(&table) {
            return Status::RANGE;
        }
        if after.kinds.len() > MAX_DOMAINS && self.kind(domain).is_none() {
            return Status::NOMEM;
        }
        *self = after;
        Status::OK
    }

    pub(super) fn unbind(&mut self, domain: DomainId) -> Status {
        if self.kind(domain).is_none() {
            return Status::NOENT;
        }
        let attached = self.members(domain).next().is_some();
        match self.table_of(domain) {
            None => return Status::INVAL,
            Some((_, output)) if attached && output != Output::Through(domain) => {
                return Status::INVAL;
            }
            Some(_) => {}
        }
        self.bound.retain(|(id, ..)| *id != domain);
        self.bury_the_dead();
        Status::OK
    }

    pub(super) fn invalidate(&self, invalidate: &Invalidate) -> Status {
        match (self.kind(invalidate.domain), self.table_of(invalidate.domain)) {
            (None, _) => Status::NOENT,
            (_, None) => Status::INVAL,
            (_, Some(_)) => Status::OK,
        }
    }
}

/// Whether `endpoint` has such tables: all have VT-d's, B has Arm's too, and C has no parents.
pub(super) fn can_use(endpoint: EndpointId, table: &GuestTable, output: Output) -> bool {
    let capabilities = capabilities(endpoint);
    let format = match table {
        GuestTable::VtdFirst { five_levels: false, .. } => FirstFormat::VtdFirst,
        GuestTable::ArmStage1 { .. } => FirstFormat::ArmStage1,
        GuestTable::VtdFirst { .. } | GuestTable::Unknown => return false,
    };
    let can_end = match output {
        Output::GuestPhysical => capabilities.identity,
        Output::Through(_) => capabilities.parent,
    };
    can_end && capabilities.formats.iter().any(|offer| offer.format == format)
}

/// Whether the root is one of a table of 4 KiB, below 2^47.
fn root_is_right(table: &GuestTable) -> bool {
    match table {
        GuestTable::VtdFirst { root, .. } | GuestTable::ArmStage1 { root, .. } => {
            root.raw() % 4096 == 0 && root.raw() < 1 << 47
        }
        GuestTable::Unknown => false,
    }
}

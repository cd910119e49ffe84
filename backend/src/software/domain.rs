//! A domain: the tables of its mappings, and the table that is bound to it.

use viommu_pasid::FirstTable;
use viommu_pgtable::{Mapping, TableStore};

use super::layout::{DomainTables, Form, Formats, Mapped};
use crate::{DomainId, HostError, Output};

/// A domain.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) tables: DomainTables,
    /// Mappings, however many tables hold them.
    pub(super) mappings: u64,
    /// What hardware would mark its caches with.
    pub(super) tag: u16,
    pub(super) bound: Option<Bound>,
}

/// A table that the guest has bound.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bound {
    pub(super) table: FirstTable,
    pub(super) output: Output,
}

impl Domain {
    /// An empty domain; it takes no table memory before it is used.
    pub(super) const fn new(formats: &Formats, tag: u16) -> Self {
        Self { tables: DomainTables::new(formats), mappings: 0, tag, bound: None }
    }

    /// Its mappings, as structures name them.
    pub(super) const fn mapped(&self, id: DomainId) -> Mapped<'_> {
        Mapped { domain: id, tables: &self.tables, tag: self.tag }
    }

    /// Makes the table of `form`, unless it is there, for `mappings`, all that it holds.
    pub(super) fn prepare<S: TableStore>(
        &mut self,
        formats: &Formats,
        form: Form,
        store: &mut S,
        mappings: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), HostError> {
        if self.tables.has(form) {
            return Ok(());
        }
        Ok(self.tables.make(formats, form, store, mappings)?)
    }

    /// Makes the table of `form`, unless it is there, if the domain is empty: what is not empty was
    /// to be prepared.
    pub(super) fn prepare_empty<S: TableStore>(
        &mut self,
        formats: &Formats,
        form: Form,
        store: &mut S,
    ) -> Result<(), HostError> {
        if self.mappings != 0 {
            return if self.tables.has(form) { Ok(()) } else { Err(UNPREPARED) };
        }
        self.prepare(formats, form, store, &mut std::iter::empty())
    }

    /// Adds a mapping, or writes nothing.
    pub(super) fn map<S: TableStore>(
        &mut self,
        formats: &Formats,
        store: &mut S,
        mapping: &Mapping,
    ) -> Result<(), HostError> {
        if !self.tables.has(Form::Below) {
            self.prepare_empty(formats, Form::Alone, store)?;
        }
        self.tables.map(store, mapping)?;
        self.mappings += 1;
        Ok(())
    }
}

/// What a caller is told that uses a domain in a role that it did not prepare.
const UNPREPARED: HostError = HostError::Unsupported("the domain is not prepared for this role");

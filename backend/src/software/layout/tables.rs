//! The tables that hold a domain's mappings.

use viommu_pgtable::{
    Access, ArmStage1, ArmStage2, Format, Iova, IovaRange, MapError, Mapping, OutOfTables,
    PhysAddr, Table, TableStore, UnmapError, VtdSecond,
};

/// What a domain's mappings are used for, and in which form of table that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Form {
    /// They alone translate: stage 1 of an SMMU, the second level of VT-d.
    Alone,
    /// They translate what a bound table yields: stage 2, the second level.
    Below,
}

/// The tables of a domain, each made when it is needed first. All that are there hold all mappings.
#[derive(Debug)]
pub(in super::super) enum DomainTables {
    /// VT-d: the second level serves in both forms.
    Vtd(Option<Table<VtdSecond>>),
    /// SMMUv3: a table for each form.
    SmmuV3 {
        /// [`Form::Alone`].
        alone: Option<Table<ArmStage1>>,
        /// [`Form::Below`].
        below: Option<Table<ArmStage2>>,
    },
}

/// Formats of new tables.
#[derive(Debug, Clone, Copy)]
pub(in super::super) enum Formats {
    /// VT-d.
    Vtd(VtdSecond),
    /// SMMUv3: alone, and below.
    SmmuV3(ArmStage1, ArmStage2),
}

impl DomainTables {
    /// Those of a new domain: none yet.
    pub(in super::super) const fn new(formats: &Formats) -> Self {
        match formats {
            Formats::Vtd(_) => Self::Vtd(None),
            Formats::SmmuV3(..) => Self::SmmuV3 { alone: None, below: None },
        }
    }

    /// True if there is a table of `form`.
    pub(in super::super) const fn has(&self, form: Form) -> bool {
        match (self, form) {
            (Self::Vtd(table), _) => table.is_some(),
            (Self::SmmuV3 { alone, .. }, Form::Alone) => alone.is_some(),
            (Self::SmmuV3 { below, .. }, Form::Below) => below.is_some(),
        }
    }

    /// Makes the table of `form`, which is not there, for `mappings`, all that the domain holds.
    ///
    /// # Errors
    /// If there are not enough pages, or the format cannot hold a mapping; nothing is there then.
    pub(in super::super) fn make<S: TableStore>(
        &mut self,
        formats: &Formats,
        form: Form,
        store: &mut S,
        mappings: &mut dyn Iterator<Item = Mapping>,
    ) -> Result<(), MapError> {
        match (self, form, formats) {
            (Self::Vtd(table), _, Formats::Vtd(format)) => {
                *table = Some(fill(*format, store, mappings)?);
            }
            (Self::SmmuV3 { alone, .. }, Form::Alone, Formats::SmmuV3(format, _)) => {
                *alone = Some(fill(*format, store, &mut mappings.map(|new| in_stage1(&new)))?);
            }
            (Self::SmmuV3 { below, .. }, Form::Below, Formats::SmmuV3(_, format)) => {
                *below = Some(fill(*format, store, mappings)?);
            }
            // one backend has one architecture
            (Self::Vtd(_), _, Formats::SmmuV3(..)) | (Self::SmmuV3 { .. }, _, Formats::Vtd(_)) => {}
        }
        Ok(())
    }

    /// Adds a mapping to each table, or to none.
    pub(in super::super) fn map<S: TableStore>(
        &mut self,
        store: &mut S,
        mapping: &Mapping,
    ) -> Result<(), MapError> {
        match self {
            Self::Vtd(table) => map(table.as_mut(), store, mapping),
            Self::SmmuV3 { alone, below } => {
                let in_stage1 = in_stage1(mapping);
                let needed = |pages: [Option<u64>; 2]| pages.into_iter().flatten().sum();
                let needed_pages = needed([
                    alone.as_ref().map(|table| table.pages_needed(store, &in_stage1)),
                    below.as_ref().map(|table| table.pages_needed(store, mapping)),
                ]);
                let free_pages = store.pages_left();
                if needed_pages > free_pages {
                    return Err(MapError::OutOfTables(OutOfTables { needed_pages, free_pages }));
                }
                map(alone.as_mut(), store, &in_stage1)?;
                map(below.as_mut(), store, mapping).inspect_err(|_| {
                    // what was just mapped can be unmapped whole
                    let _whole = unmap(alone.as_mut(), store, mapping.iova());
                })
            }
        }
    }

    /// Removes the leaves of a range that [`map`](Self::map) was given.
    pub(in super::super) fn unmap<S: TableStore>(
        &mut self,
        store: &mut S,
        iova: IovaRange,
    ) -> Result<(), UnmapError> {
        match self {
            Self::Vtd(table) => unmap(table.as_mut(), store, iova),
            Self::SmmuV3 { alone, below } => {
                let removed = unmap(alone.as_mut(), store, iova);
                removed.and(unmap(below.as_mut(), store, iova))
            }
        }
    }

    /// Has the entries fetched that translate `iova`. Changes nothing.
    pub(in super::super) fn look_ahead<S: TableStore>(&self, store: &S, iova: Iova) {
        match self {
            Self::Vtd(table) => look_ahead(table.as_ref(), store, iova),
            Self::SmmuV3 { alone, below } => {
                look_ahead(alone.as_ref(), store, iova);
                look_ahead(below.as_ref(), store, iova);
            }
        }
    }

    /// Gives all pages back; nothing leads to the tables any more.
    pub(in super::super) fn destroy<S: TableStore>(self, store: &mut S) {
        match self {
            Self::Vtd(table) => destroy(table, store),
            Self::SmmuV3 { alone, below } => {
                destroy(alone, store);
                destroy(below, store);
            }
        }
    }

    /// VT-d: the second level's root.
    pub(super) fn second_level(&self) -> Option<PhysAddr> {
        match self {
            Self::Vtd(table) => table.as_ref().map(Table::root),
            Self::SmmuV3 { .. } => None,
        }
    }

    /// SMMUv3: stage 1's root and format.
    pub(super) fn stage1(&self) -> Option<(PhysAddr, ArmStage1)> {
        match self {
            Self::Vtd(_) => None,
            Self::SmmuV3 { alone, .. } => {
                alone.as_ref().map(|table| (table.root(), *table.format()))
            }
        }
    }

    /// SMMUv3: stage 2's root and format.
    pub(super) fn stage2(&self) -> Option<(PhysAddr, ArmStage2)> {
        match self {
            Self::Vtd(_) => None,
            Self::SmmuV3 { below, .. } => {
                below.as_ref().map(|table| (table.root(), *table.format()))
            }
        }
    }
}

/// A table of `mappings`; if it cannot hold them all, its pages are given back.
fn fill<F: Format, S: TableStore>(
    format: F,
    store: &mut S,
    mappings: &mut dyn Iterator<Item = Mapping>,
) -> Result<Table<F>, MapError> {
    let mut table = Table::new(format, store).map_err(MapError::OutOfTables)?;
    for mapping in mappings {
        if let Err(error) = table.map(store, &mapping) {
            table.destroy(store);
            return Err(error);
        }
    }
    Ok(table)
}

fn map<F: Format, S: TableStore>(
    table: Option<&mut Table<F>>,
    store: &mut S,
    mapping: &Mapping,
) -> Result<(), MapError> {
    table.map_or(Ok(()), |table| table.map(store, mapping))
}

/// See [`Table::look_ahead`].
fn look_ahead<F: Format, S: TableStore>(table: Option<&Table<F>>, store: &S, iova: Iova) {
    if let Some(table) = table {
        table.look_ahead(store, iova);
    }
}

fn unmap<F: Format, S: TableStore>(
    table: Option<&mut Table<F>>,
    store: &mut S,
    iova: IovaRange,
) -> Result<(), UnmapError> {
    table.map_or(Ok(()), |table| table.unmap(store, iova).map(drop))
}

fn destroy<F: Format, S: TableStore>(table: Option<Table<F>>, store: &mut S) {
    if let Some(table) = table {
        table.destroy(store);
    }
}

/// The mapping as stage 1 can say it: what may be written may be read.
fn in_stage1(mapping: &Mapping) -> Mapping {
    let access = mapping.access().union(Access::READ);
    // the same ranges: they fitted before
    Mapping::new(mapping.iova(), mapping.oa(), access).unwrap_or(*mapping)
}

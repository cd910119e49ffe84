//! A kernel that refuses when it is told to: a real one cannot be made to.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use viommu_pasid::EndpointId;
use viommu_pgtable::{Iova, IovaRange, Mapping, PhysAddr};

use crate::vfio::{Contents, Counters, Kernel, Leads, NOWHERE, Place, Region};
use crate::{Capabilities, DomainId, HostError};

/// What a kernel was asked, whether or not it did it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Call {
    AddMemory(PhysAddr),
    RemoveMemory(PhysAddr),
    Create(DomainId),
    Destroy(DomainId),
    /// With the first IOVA of each mapping that is there.
    Attach(EndpointId, Place, Vec<Iova>),
    CutOff(EndpointId),
    Map(DomainId, Iova),
    Unmap(DomainId, Iova),
    RemoveRegisters(PhysAddr),
    Release(EndpointId),
    Adopt,
}

/// What the calls that were not refused have made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) memory: BTreeSet<PhysAddr>,
    pub(super) domains: BTreeMap<DomainId, BTreeSet<Iova>>,
    pub(super) places: BTreeMap<EndpointId, Place>,
}

#[derive(Debug, Default)]
struct Script {
    calls: Vec<Call>,
    tables: Tables,
    /// Of the fallible calls that come, by their number, those that are refused.
    refused: BTreeSet<usize>,
    come: usize,
}

/// The kernel, and who watches it.
#[derive(Debug, Clone, Default)]
pub(super) struct Scripted(Arc<Mutex<Script>>);

impl Scripted {
    /// Refuses those of the fallible calls from now on that have these numbers, from 0.
    pub(super) fn refuse(&self, numbers: impl IntoIterator<Item = usize>) {
        let mut script = self.script();
        script.refused = numbers.into_iter().collect();
        script.come = 0;
    }

    /// What it was asked since the last time.
    pub(super) fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.script().calls)
    }

    pub(super) fn tables(&self) -> Tables {
        self.script().tables.clone()
    }

    fn script(&self) -> MutexGuard<'_, Script> {
        self.0.lock().unwrap()
    }

    /// Notes a call that cannot be refused.
    fn told(&self, call: Call) -> MutexGuard<'_, Script> {
        let mut script = self.script();
        script.calls.push(call);
        script
    }

    /// Notes one that can be, and refuses it if that was wanted.
    fn asked(&self, call: Call) -> Result<MutexGuard<'_, Script>, HostError> {
        let mut script = self.told(call);
        let number = script.come;
        script.come += 1;
        if script.refused.contains(&number) {
            let source = io::Error::other("told to refuse");
            return Err(HostError::Refused { call: "scripted", source });
        }
        Ok(script)
    }
}

impl Kernel for Scripted {
    fn capabilities(&self) -> Capabilities {
        Capabilities { page_size_mask: !0xfff, input_bits: 48, output_last: u64::MAX }
    }

    fn add_memory(&mut self, region: &Region) -> Result<(), HostError> {
        self.asked(Call::AddMemory(region.gpa()))?.tables.memory.insert(region.gpa());
        Ok(())
    }

    fn remove_memory(&mut self, region: &Region) {
        self.told(Call::RemoveMemory(region.gpa())).tables.memory.remove(&region.gpa());
    }

    fn create(&mut self, domain: DomainId) -> Result<(), HostError> {
        self.asked(Call::Create(domain))?.tables.domains.insert(domain, BTreeSet::new());
        Ok(())
    }

    fn destroy(&mut self, domain: DomainId) {
        self.told(Call::Destroy(domain)).tables.domains.remove(&domain);
    }

    fn attach(
        &mut self,
        endpoint: EndpointId,
        place: Place,
        contents: Contents<'_>,
    ) -> Result<(), HostError> {
        let held = contents.mappings.iter().map(|mapping| mapping.iova().start()).collect();
        self.asked(Call::Attach(endpoint, place, held))?.tables.places.insert(endpoint, place);
        Ok(())
    }

    fn cut_off(&mut self, endpoint: EndpointId) {
        self.told(Call::CutOff(endpoint)).tables.places.insert(endpoint, Place::Nowhere);
    }

    fn map(
        &mut self,
        domain: DomainId,
        mapping: &Mapping,
        leads: &Leads<'_>,
    ) -> Result<(), HostError> {
        let iova = mapping.iova().start();
        let mut script = self.asked(Call::Map(domain, iova))?;
        let tables = &mut script.tables;
        match leads {
            Leads::Memory(pieces)
                if pieces.iter().all(|piece| tables.memory.contains(&piece.region.gpa())) => {}
            Leads::Registers(_) => {}
            Leads::Memory(_) | Leads::Elsewhere => return Err(NOWHERE),
        }
        tables.domains.get_mut(&domain).unwrap().insert(iova);
        Ok(())
    }

    fn unmap(&mut self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        let mut script = self.asked(Call::Unmap(domain, range.start()))?;
        let held = script.tables.domains.get_mut(&domain).unwrap();
        assert!(held.remove(&range.start()), "{range} is not mapped");
        Ok(())
    }

    fn remove_registers(&mut self, region: &Region) {
        drop(self.told(Call::RemoveRegisters(region.gpa())));
    }

    fn release(&mut self, endpoint: EndpointId) {
        self.told(Call::Release(endpoint)).tables.places.remove(&endpoint);
    }

    fn counters(&self) -> Counters {
        Counters::default()
    }

    fn adopt(&mut self) -> Result<(), HostError> {
        self.asked(Call::Adopt).map(drop)
    }
}

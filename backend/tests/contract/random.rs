//! Random sequences of everything, against the model; and the same with too little memory.

use proptest::prelude::*;
use viommu_backend::{DomainId, HostError, HostIommu, Output, Recording, Role, Target};
use viommu_iotlb::Arch;
use viommu_pasid::{FirstTable, Requester};
use viommu_pgtable::{Access, Iova, Mapping, PhysAddr};

use crate::guest::{Driver, Guest};
use crate::subject::{PAGE, Subject, mapping, pasid, recording, rid, try_software};

const DOMAINS: u32 = 4;
/// How far memory is, in pages, from where a driver behind a second level sees it.
const SHIFT: u64 = 0x10_0000;

/// A step; numbers are taken modulo what there is. What the rules forbid is left out when it is
/// played.
#[derive(Debug, Clone, Copy)]
enum Step {
    Attach(u8, u32),
    Detach(u8),
    Identity(u8),
    Bind(u32, Option<u32>),
    Unbind(u32),
    Destroy(u32),
    Map(u32, u64, u64),
    Unmap(u32, usize),
    Sync,
}

fn step() -> impl Strategy<Value = Step> {
    let domain = || 0..DOMAINS;
    prop_oneof![
        4 => (0..8_u8, domain()).prop_map(|(who, domain)| Step::Attach(who, domain)),
        1 => (0..8_u8).prop_map(Step::Detach),
        1 => (0..8_u8).prop_map(Step::Identity),
        2 => (domain(), prop::option::of(domain())).prop_map(|(it, below)| Step::Bind(it, below)),
        1 => domain().prop_map(Step::Unbind),
        1 => domain().prop_map(Step::Destroy),
        3 => (domain(), 0..40_u64, 1..600_u64).prop_map(|(it, at, len)| Step::Map(it, at, len)),
        1 => (domain(), any::<usize>()).prop_map(|(it, nth)| Step::Unmap(it, nth)),
        1 => Just(Step::Sync),
    ]
}

/// The rules that stand above a backend, as far as it relies on them, and both that are compared.
struct Play {
    arch: Arch,
    host: Box<dyn Subject>,
    model: Recording,
    guest: Guest,
    next_table: u64,
    /// Calls that were refused for want of memory.
    starved: u32,
}

fn who(number: u8) -> Requester {
    let endpoint = usize::from(number % 2);
    match number / 2 {
        0 => rid(endpoint),
        tag => pasid(endpoint, u32::from(tag) * 40),
    }
}

impl Play {
    fn new(arch: Arch, table_pages: u64) -> Option<Self> {
        let host = Box::new(try_software(arch, table_pages * PAGE).ok()?);
        let (model, guest) = (recording(), Guest::default());
        let next_table = PAGE * 0x100;
        let mut play = Self { arch, host, model, guest, next_table, starved: 0 };
        for id in 0..DOMAINS {
            play.both(|host| host.create_domain(DomainId::new(id)));
        }
        Some(play)
    }

    /// Asks the backend; the model follows if it can do it. A refusal must change nothing, and has
    /// to be for memory, or one that a shared second level explains.
    fn both(&mut self, call: impl Fn(&mut dyn HostIommu) -> Result<(), HostError>) -> bool {
        let before = self.snapshot();
        match call(self.host.as_host()) {
            Ok(()) => {
                call(&mut self.model).unwrap();
                true
            }
            Err(error) => {
                let is_memory = matches!(error, HostError::OutOfTables(_));
                self.starved += u32::from(is_memory);
                assert!(is_memory || self.arch == Arch::SmmuV3, "{error}");
                assert_eq!(self.snapshot(), before, "{error}");
                false
            }
        }
    }

    fn snapshot(&self) -> Vec<Option<PhysAddr>> {
        probes()
            .map(|(requester, at)| self.host.leads_with(&self.guest, requester, at, Access::READ))
            .collect()
    }

    fn mappings(&self, domain: DomainId) -> Vec<Mapping> {
        self.model.state().domains[&domain].values().copied().collect()
    }

    fn is_parent(&self, domain: DomainId) -> bool {
        let through = Output::Through(domain);
        self.model.state().bound.iter().any(|(it, (_, to))| *to == through && *it != domain)
    }

    fn bound(&self, domain: DomainId) -> Option<Output> {
        self.model.state().bound.get(&domain).map(|(_, output)| *output)
    }

    fn is_attached(&self, domain: DomainId) -> bool {
        self.model.state().targets.values().any(|target| *target == Target::Domain(domain))
    }

    fn prepare(&mut self, domain: DomainId, role: Role) -> bool {
        let mappings = self.mappings(domain);
        self.both(|host| host.prepare(domain, role, &mut mappings.iter().copied()))
    }

    /// A table that leads each of the first pages two further.
    fn table(&mut self, output: Output) -> FirstTable {
        let shift = if output == Output::GuestPhysical { 0 } else { SHIFT * PAGE };
        let pages: Vec<_> = (0..8).map(|page| (page, page + 2, Access::RW)).collect();
        let mut driver = Driver::new(&self.guest, shift, self.next_table);
        let table = driver.table(self.arch, &pages);
        self.next_table = driver.next();
        table
    }

    fn bind(&mut self, domain: DomainId, below: Option<u32>) {
        let output = below.map_or(Output::GuestPhysical, |id| Output::Through(DomainId::new(id)));
        let own = output == Output::Through(domain);
        let parent_is_bound = match output {
            Output::Through(parent) => !own && self.bound(parent).is_some(),
            Output::GuestPhysical => false,
        };
        let in_use = self.bound(domain).is_some() || self.is_parent(domain);
        if in_use || parent_is_bound || (!own && !self.mappings(domain).is_empty()) {
            return;
        }
        if let Output::Through(parent) = output
            && !self.prepare(parent, Role::SecondLevel)
        {
            return;
        }
        let table = self.table(output);
        self.both(|host| host.bind(domain, &table, output));
    }

    fn unbind(&mut self, domain: DomainId) {
        let Some(output) = self.bound(domain) else { return };
        let attached = self.is_attached(domain);
        if attached && output != Output::Through(domain) {
            return;
        }
        if attached && !self.prepare(domain, Role::Alone(rid(0))) {
            return;
        }
        self.both(|host| host.unbind(domain));
    }

    fn map(&mut self, domain: DomainId, at: u64, len: u64) {
        // leads to where drivers' tables are, and elsewhere
        let new = mapping(at * 16, len, at * 16 + SHIFT, Access::RW);
        let given = self.bound(domain).is_none_or(|output| output == Output::Through(domain));
        let free = self.mappings(domain).iter().all(|old| !old.iova().overlaps(&new.iova()));
        if given && free {
            self.both(|host| host.map(domain, &new));
        }
    }

    fn destroy(&mut self, domain: DomainId) {
        if !self.is_attached(domain) && !self.is_parent(domain) {
            self.host.as_host().destroy_domain(domain);
            self.model.destroy_domain(domain);
            self.both(|host| host.create_domain(domain));
        }
    }

    fn play(&mut self, step: Step) {
        match step {
            Step::Attach(number, id) => {
                let (requester, domain) = (who(number), DomainId::new(id));
                if self.bound(domain).is_some() || self.prepare(domain, Role::Alone(requester)) {
                    self.both(|host| host.attach(requester, Target::Domain(domain)));
                }
            }
            Step::Detach(number) => {
                self.both(|host| host.attach(who(number), Target::Blocked));
            }
            Step::Identity(number) => {
                let requester = who(number);
                // what an SMMU makes of it beside nested PASIDs has a test of its own
                let alone = self.arch == Arch::Vtd || self.model.state().targets.is_empty();
                if requester.pasid.is_none() && alone {
                    self.both(|host| host.attach(requester, Target::Identity));
                }
            }
            Step::Bind(id, below) => self.bind(DomainId::new(id), below),
            Step::Unbind(id) => self.unbind(DomainId::new(id)),
            Step::Destroy(id) => self.destroy(DomainId::new(id)),
            Step::Map(id, at, len) => self.map(DomainId::new(id), at, len),
            Step::Unmap(id, nth) => {
                let mappings = self.mappings(DomainId::new(id));
                if !mappings.is_empty() {
                    let old = mappings[nth % mappings.len()];
                    self.host.as_host().unmap(DomainId::new(id), &old);
                    self.model.unmap(DomainId::new(id), &old);
                }
            }
            Step::Sync => self.host.as_host().sync(),
        }
    }

    /// Probes that a bound table leads to memory.
    fn reached_through_tables(&self) -> usize {
        let state = self.model.state();
        let is_bound = |requester: &Requester| match state.targets.get(requester) {
            Some(Target::Domain(domain)) => self.bound(*domain).is_some(),
            _ => false,
        };
        let leads = |(requester, at)| {
            self.host.leads_with(&self.guest, requester, at, Access::READ).is_some()
        };
        probes().filter(|(requester, _)| is_bound(requester)).filter(|probe| leads(*probe)).count()
    }

    fn check(&self) {
        for (requester, at) in probes() {
            let seen = self.host.leads_with(&self.guest, requester, at, Access::READ);
            let model = self.model.state().translate_with(&self.guest, requester, at, Access::READ);
            let degraded = self.arch == Arch::SmmuV3
                && self.model.state().targets.get(&requester) == Some(&Target::Identity);
            assert!(
                seen == model || degraded && seen.is_none(),
                "{requester:?} {at}: {seen:?} {model:?}"
            );
        }
    }
}

fn probes() -> impl Iterator<Item = (Requester, Iova)> {
    (0..8).flat_map(|number| {
        [0, 1, 5, 7, 100, 599, 640].map(|page| (who(number), Iova::new(page * PAGE + 8)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn whatever_is_bound_and_attached_translates_as_the_model_does(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        for arch in [Arch::Vtd, Arch::SmmuV3] {
            let mut play = Play::new(arch, 1 << 14).unwrap();
            for step in &steps {
                play.play(*step);
                play.check();
            }
            prop_assert_eq!(play.starved, 0);
        }
    }

    #[test]
    fn what_finds_no_memory_changes_nothing_whatever_was_bound(
        steps in prop::collection::vec(step(), 1..60), pages in 70..110_u64,
    ) {
        for arch in [Arch::Vtd, Arch::SmmuV3] {
            let Some(mut play) = Play::new(arch, pages) else { continue };
            for step in &steps {
                play.play(*step);
                play.check();
            }
        }
    }
}

#[test]
fn these_plays_reach_memory_through_bound_tables_and_run_out_of_it() {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;

    let mut runner = TestRunner::deterministic();
    let steps = prop::collection::vec(step(), 40..60);
    for arch in [Arch::Vtd, Arch::SmmuV3] {
        let (mut reached, mut starved) = (0, 0);
        for pages in 70..110 {
            let steps = steps.new_tree(&mut runner).unwrap().current();
            let Some(mut play) = Play::new(arch, pages) else { continue };
            for step in steps {
                play.play(step);
                reached += play.reached_through_tables();
            }
            starved += play.starved;
        }
        assert!(reached > 100 && starved > 20, "{arch:?}: {reached} {starved}");
    }
}

/// Every kind of change, each in need of memory, alone or for what others have left: a domain bound
/// through itself, then a child and its parent beside it, then a table without a second level.
const STEPS: [Step; 16] = [
    Step::Map(3, 0, 300),
    Step::Attach(2, 3),
    Step::Attach(0, 3),
    Step::Bind(3, Some(3)),
    Step::Unbind(3),
    Step::Bind(3, Some(3)),
    Step::Map(3, 1 << 20, 1),
    Step::Detach(2),
    Step::Map(0, 0, 700),
    Step::Bind(1, Some(0)),
    Step::Attach(5, 1),
    Step::Attach(1, 0),
    Step::Map(0, 1 << 20, 1),
    Step::Bind(2, None),
    Step::Attach(3, 2), // beside a second level: not on SMMUv3
    Step::Attach(5, 2),
];

#[test]
fn whichever_step_of_binding_finds_no_memory_changes_nothing() {
    for arch in [Arch::Vtd, Arch::SmmuV3] {
        let mut refused = [0; STEPS.len()];
        let mut enough = 0;
        // from too little for the endpoints to enough for all, page by page
        for pages in 10..140 {
            let Some(mut play) = Play::new(arch, pages) else { continue };
            for (step, refused) in STEPS.iter().zip(&mut refused) {
                let before = play.starved;
                play.play(*step);
                play.check();
                *refused += play.starved - before;
                play.play(Step::Sync);
            }
            enough += u32::from(play.starved == 0);
        }
        let kinds = refused.iter().filter(|count| **count > 0).count();
        assert!(kinds >= 10 && enough > 10, "{arch:?}: {refused:?}, {enough}");
    }
}

//! Tables that a guest binds: what the DMA sees, who is withdrawn, what cannot be said.

use viommu_backend::{
    DevicePlace, DomainId, HostError, HostIommu, Output, Recording, Role, SoftwareConfig,
    SoftwareIommu, Target,
};
use viommu_iotlb::{Arch, HubConfig};
use viommu_pasid::vtd::{FirstControls, FirstLevel};
use viommu_pasid::{FirstTable, Requester};
use viommu_pgtable::{Access, Granule, Iova, Mapping, PhysAddr, TableStore};

use crate::guest::{Driver, Guest};
use crate::subject::{ONE, PAGE, Subject, TWO, mapping, pasid, recording, rid, software_of};

const THREE: DomainId = DomainId::new(3);

/// Pages from which drivers make tables, as they know them.
const TABLES: u64 = 0x100;
/// How far memory is, in pages, from where a driver behind a second level sees it.
const SHIFT: u64 = 0x10_0000;

/// A second level: all pages below 0x1000 are there, shifted.
fn window() -> Mapping {
    mapping(0, 0x1000, SHIFT, Access::RW)
}

/// A backend to be compared, and the model.
pub(crate) struct Pair {
    pub(crate) arch: Arch,
    pub(crate) host: Box<dyn Subject>,
    pub(crate) model: Recording,
    pub(crate) guest: Guest,
    /// Where the next table is made.
    next: u64,
}

impl Pair {
    pub(crate) fn new(arch: Arch) -> Self {
        let host = Box::new(software_of(arch, 1 << 26));
        Self { arch, host, model: recording(), guest: Guest::default(), next: TABLES * PAGE }
    }

    /// Both flavours, with three empty domains.
    pub(crate) fn both() -> [Self; 2] {
        [Arch::Vtd, Arch::SmmuV3].map(|arch| {
            let mut pair = Self::new(arch);
            for domain in [ONE, TWO, THREE] {
                pair.both_do(|host| host.create_domain(domain));
            }
            pair
        })
    }

    /// What has to succeed.
    pub(crate) fn both_do(&mut self, call: impl Fn(&mut dyn HostIommu) -> Result<(), HostError>) {
        call(self.host.as_host()).unwrap();
        call(&mut self.model).unwrap();
    }

    pub(crate) fn attach(&mut self, requester: Requester, target: Target) {
        self.both_do(|host| host.attach(requester, target));
    }

    pub(crate) fn map(&mut self, domain: DomainId, new: Mapping) {
        self.both_do(|host| host.map(domain, &new));
    }

    pub(crate) fn unmap(&mut self, domain: DomainId, old: Mapping) {
        self.both_do(|host| {
            host.unmap(domain, &old);
            Ok(())
        });
    }

    /// Gets `domain`, which holds `mappings`, ready.
    pub(crate) fn prepare(&mut self, domain: DomainId, role: Role, mappings: &[Mapping]) {
        self.both_do(|host| host.prepare(domain, role, &mut mappings.iter().copied()));
    }

    /// Binds a table that leads `pages` to pages, made where `output` says.
    pub(crate) fn bind(&mut self, domain: DomainId, pages: &[(u64, u64)], output: Output) {
        let shift = if output == Output::GuestPhysical { 0 } else { SHIFT * PAGE };
        let pages: Vec<_> = pages.iter().map(|(from, to)| (*from, *to, Access::RW)).collect();
        let mut driver = Driver::new(&self.guest, shift, self.next);
        let table = driver.table(self.arch, &pages);
        self.next = driver.next();
        self.both_do(|host| host.bind(domain, &table, output));
    }

    pub(crate) fn leads(&self, requester: Requester, page: u64) -> Option<u64> {
        let at = Iova::new(page * PAGE);
        let oa = self.host.leads_with(&self.guest, requester, at, Access::RW)?;
        Some(oa.raw() / PAGE)
    }

    /// Compares everything that some requesters see with the model, and returns where `of` are led.
    pub(crate) fn check<const N: usize>(&mut self, of: [(Requester, u64); N]) -> [Option<u64>; N] {
        self.host.sync();
        for requester in requesters() {
            for page in [0, 1, 7, 70, 71, 700, 0xfff, 0x1000, SHIFT, 1 << 39] {
                for access in [Access::READ, Access::WRITE] {
                    let at = Iova::new(page * PAGE + 0x18);
                    let seen = self.host.leads_with(&self.guest, requester, at, access);
                    let state = self.model.state();
                    let model = state.translate_with(&self.guest, requester, at, access);
                    assert_eq!(seen, model, "{:?} {requester:?} {page:#x} {access:?}", self.arch);
                }
            }
        }
        of.map(|(requester, page)| self.leads(requester, page))
    }
}

pub(crate) fn requesters() -> impl Iterator<Item = Requester> {
    (0..3).flat_map(|n| [rid(n), pasid(n, 1), pasid(n, 2), pasid(n, 70)])
}

#[test]
fn a_table_with_guest_physical_output_leads_all_that_is_attached_to_its_domain() {
    for mut pair in Pair::both() {
        pair.attach(pasid(0, 1), Target::Domain(ONE)); // before it is bound
        pair.bind(ONE, &[(7, 70)], Output::GuestPhysical);
        pair.attach(pasid(0, 70), Target::Domain(ONE));
        pair.attach(rid(1), Target::Domain(ONE));
        let seen = pair.check([(pasid(0, 1), 7), (pasid(0, 70), 7), (rid(1), 7), (rid(1), 70)]);
        assert_eq!(seen, [Some(70), Some(70), Some(70), None]);
        assert_eq!(pair.check([(rid(0), 7), (pasid(1, 1), 7)]), [None, None]);
    }
}

#[test]
fn one_parent_is_below_many_tables_and_what_it_maps_acts_on_all() {
    for mut pair in Pair::both() {
        pair.map(TWO, window());
        pair.prepare(TWO, Role::SecondLevel, &[window()]);
        pair.bind(ONE, &[(7, 70), (1, 0x1000)], Output::Through(TWO));
        pair.bind(THREE, &[(7, 71)], Output::Through(TWO));
        pair.attach(pasid(0, 1), Target::Domain(ONE));
        pair.attach(pasid(0, 2), Target::Domain(THREE));
        pair.attach(pasid(1, 1), Target::Domain(ONE));
        let of = [(pasid(0, 1), 7), (pasid(0, 2), 7), (pasid(1, 1), 7), (pasid(1, 1), 1)];
        let both = [Some(SHIFT + 70), Some(SHIFT + 71), Some(SHIFT + 70)];
        assert_eq!(pair.check(of), [both[0], both[1], both[2], None]);
        let more = mapping(0x1000, 1, 5, Access::RW);
        pair.map(TWO, more);
        assert_eq!(pair.check(of), [both[0], both[1], both[2], Some(5)]);
        pair.unmap(TWO, more);
        assert_eq!(pair.check(of), [both[0], both[1], both[2], None]);
        pair.unmap(TWO, window());
        assert_eq!(pair.check(of), [None; 4]);
    }
}

#[test]
fn a_domains_own_mappings_are_its_second_level_and_remain_when_it_is_unbound() {
    for mut pair in Pair::both() {
        pair.map(ONE, window());
        pair.prepare(ONE, Role::Alone(rid(0)), &[window()]);
        for requester in [rid(0), pasid(0, 1), pasid(0, 70), pasid(1, 2)] {
            pair.attach(requester, Target::Domain(ONE));
        }
        let of = [(rid(0), 7), (pasid(0, 1), 7), (pasid(0, 70), 7), (pasid(1, 2), 7)];
        assert_eq!(pair.check(of), [Some(SHIFT + 7); 4]);
        pair.prepare(ONE, Role::SecondLevel, &[window()]);
        pair.bind(ONE, &[(7, 70)], Output::Through(ONE));
        assert_eq!(pair.check(of), [Some(SHIFT + 70); 4]);
        let more = mapping(1 << 20, 1, 9, Access::RW);
        pair.map(ONE, more);
        pair.both_do(|host| host.unbind(ONE));
        assert_eq!(pair.check(of), [Some(SHIFT + 7); 4]);
        assert_eq!(pair.check([(rid(0), 1 << 20)]), [Some(9)]);
        pair.bind(ONE, &[(7, 71)], Output::Through(ONE));
        assert_eq!(pair.check(of), [Some(SHIFT + 71); 4]);
    }
}

#[test]
fn a_domain_unbound_while_nothing_is_attached_can_be_used_anew() {
    for mut pair in Pair::both() {
        pair.bind(ONE, &[(7, 70)], Output::GuestPhysical);
        pair.both_do(|host| host.unbind(ONE));
        pair.attach(pasid(0, 1), Target::Domain(ONE));
        pair.map(ONE, mapping(7, 1, 5, Access::RW));
        assert_eq!(pair.check([(pasid(0, 1), 7)]), [Some(5)]);
    }
}

#[test]
fn replacement_leads_from_any_kind_of_domain_to_any_other() {
    for mut pair in Pair::both() {
        pair.map(ONE, window());
        pair.prepare(ONE, Role::SecondLevel, &[window()]);
        pair.prepare(ONE, Role::Alone(pasid(0, 1)), &[window()]);
        pair.bind(TWO, &[(7, 70)], Output::Through(ONE));
        pair.bind(THREE, &[(7, 71)], Output::GuestPhysical);
        let kinds = [
            (Target::Domain(ONE), Some(SHIFT + 7)),
            (Target::Domain(TWO), Some(SHIFT + 70)),
            (Target::Domain(THREE), Some(71)),
            (Target::Blocked, None),
        ];
        for requester in [pasid(0, 1), rid(0)] {
            for (from, _) in kinds {
                for (to, leads) in kinds {
                    pair.attach(requester, from);
                    pair.attach(requester, to); // without a drain in between
                    assert_eq!(pair.check([(requester, 7)]), [leads], "{from:?} {to:?}");
                }
            }
        }
    }
}

#[test]
fn untagged_traffic_goes_through_the_parent_alone_beside_its_children() {
    for mut pair in Pair::both() {
        pair.map(TWO, window());
        pair.prepare(TWO, Role::Alone(rid(0)), &[window()]);
        pair.attach(rid(0), Target::Domain(TWO));
        pair.attach(rid(1), Target::Domain(TWO));
        pair.prepare(TWO, Role::SecondLevel, &[window()]);
        pair.bind(ONE, &[(7, 70)], Output::Through(TWO));
        pair.attach(pasid(0, 1), Target::Domain(ONE));
        let of = [(rid(0), 7), (rid(1), 7), (pasid(0, 1), 7), (rid(0), 1 << 20)];
        let window = [Some(SHIFT + 7), Some(SHIFT + 7), Some(SHIFT + 70)];
        assert_eq!(pair.check(of), [window[0], window[1], window[2], None]);
        // both forms are kept
        let more = mapping(1 << 20, 1, 9, Access::RW);
        pair.map(TWO, more);
        let seen = pair.check([(rid(0), 1 << 20), (rid(1), 1 << 20)]);
        assert_eq!(seen, [Some(9), Some(9)]);
        pair.attach(pasid(0, 1), Target::Blocked);
        assert_eq!(pair.check(of), [window[0], window[1], None, Some(9)]);
        pair.unmap(TWO, more);
        assert_eq!(pair.check(of), [window[0], window[1], None, None]);
        // another domain, alone: the second level is nobody's again
        pair.map(THREE, mapping(7, 1, 3, Access::RW));
        pair.attach(pasid(0, 2), Target::Domain(THREE));
        assert_eq!(pair.check([(pasid(0, 2), 7), (rid(0), 7)]), [Some(3), Some(SHIFT + 7)]);
    }
}

#[test]
fn bypass_beside_children_holds_on_vtd_and_waits_for_their_end_on_smmuv3() {
    for arch in [Arch::Vtd, Arch::SmmuV3] {
        let mut host = software_of(arch, 1 << 26);
        let guest = Guest::default();
        for domain in [ONE, TWO] {
            host.create_domain(domain).unwrap();
        }
        let table = Driver::new(&guest, 0, TABLES * PAGE).table(arch, &[(7, 7, Access::RW)]);
        host.bind(ONE, &table, Output::Through(TWO)).unwrap();
        host.attach(rid(0), Target::Identity).unwrap();
        host.attach(pasid(0, 1), Target::Domain(ONE)).unwrap();
        let passes = |host: &dyn Subject| {
            host.leads_to(rid(0), Iova::new(0x5000), Access::RW) == Some(PhysAddr::new(0x5000))
        };
        assert_eq!(passes(&host), arch == Arch::Vtd);
        host.attach(rid(0), Target::Identity).unwrap();
        assert_eq!(passes(&host), arch == Arch::Vtd);
        host.attach(pasid(0, 1), Target::Blocked).unwrap();
        assert!(passes(&host));
    }
}

/// Calls that an endpoint with one second level for all cannot follow: first what is there, then
/// it.
#[test]
fn what_a_shared_second_level_rules_out_changes_nothing() {
    for mut pair in Pair::both() {
        pair.map(TWO, window());
        pair.prepare(TWO, Role::SecondLevel, &[window()]);
        pair.bind(ONE, &[(7, 70)], Output::Through(TWO));
        pair.attach(pasid(0, 1), Target::Domain(ONE));
        pair.attach(pasid(1, 1), Target::Domain(THREE));
        pair.attach(rid(2), Target::Domain(THREE));
        pair.prepare(TWO, Role::Alone(pasid(0, 2)), &[window()]);
        let seen = pair.check([(pasid(0, 1), 7)]);
        assert_eq!(seen, [Some(SHIFT + 70)]);
        let ruled_out = [
            (pasid(0, 2), THREE), // a first level beside a second
            (pasid(0, 2), TWO),   // the parent, behind a PASID
            (rid(0), THREE),      // another domain's mappings, untagged
            (pasid(1, 2), ONE),   // a second level beside a first
            (pasid(2, 1), ONE),   // a second level that is not the untagged traffic's
        ];
        for (requester, domain) in ruled_out {
            let answer = pair.host.attach(requester, Target::Domain(domain));
            if pair.arch == Arch::Vtd {
                answer.unwrap();
                pair.model.attach(requester, Target::Domain(domain)).unwrap();
            } else {
                assert!(matches!(answer, Err(HostError::Unsupported(_))), "{answer:?}");
            }
            assert_eq!(pair.check([(pasid(0, 1), 7)]), seen);
        }
    }
}

#[test]
fn a_guests_root_at_or_above_the_region_is_refused_and_behind_a_second_level_leads_to_the_guest() {
    for arch in [Arch::Vtd, Arch::SmmuV3] {
        let mut host = software_of(arch, 1 << 26);
        let guest = Guest::default();
        let base = host.capabilities().output_last + 1;
        for domain in [ONE, TWO] {
            host.create_domain(domain).unwrap();
        }
        let at = |base| Driver::new(&Guest::default(), 0, base).table(arch, &[]);
        for root in [base, base + PAGE] {
            let answer = host.bind(ONE, &at(root), Output::GuestPhysical);
            assert!(matches!(answer, Err(HostError::Unsupported(_))), "{answer:?}");
        }
        host.bind(ONE, &at(base + PAGE), Output::Through(TWO)).unwrap();
        host.attach(pasid(0, 1), Target::Domain(ONE)).unwrap();
        for page in [0, 1 << 20] {
            let at = Iova::new(page * PAGE);
            assert_eq!(host.leads_with(&guest, pasid(0, 1), at, Access::READ), None);
        }
    }
}

#[test]
fn capabilities_say_what_can_be_bound() {
    for (arch, own, output_bits) in [(Arch::Vtd, true, 51), (Arch::SmmuV3, false, 47)] {
        let host = software_of(arch, 1 << 26);
        let can = host.endpoint_capabilities(rid(0).endpoint);
        assert_eq!((can.pasid_bits, can.own_second_level), (10, own));
        assert!(can.parent && can.identity);
        let [format] = can.formats[..] else { panic!("{can:?}") };
        assert_eq!((format.input_bits, format.output_bits), (48, output_bits));
        let unknown = host.endpoint_capabilities(viommu_pasid::EndpointId::new(0xffff));
        assert_eq!(unknown, viommu_backend::EndpointCapabilities::default());
    }
}

#[test]
fn arm_tables_of_each_granule_can_be_bound_above_a_second_level_and_without() {
    for granule in [Granule::K4, Granule::K16, Granule::K64] {
        let mut host = software_of(Arch::SmmuV3, 1 << 26);
        let guest = Guest::default();
        for domain in [ONE, TWO, THREE] {
            host.create_domain(domain).unwrap();
        }
        host.map(TWO, &window()).unwrap();
        host.prepare(TWO, Role::SecondLevel, &mut std::iter::once(window())).unwrap();
        let (from, to) = (7 << 20, 3 << 20);
        for (domain, shift, output, who) in [
            (ONE, SHIFT * PAGE, Output::Through(TWO), pasid(0, 1)),
            (THREE, 0, Output::GuestPhysical, pasid(1, 1)),
        ] {
            let table = Driver::new(&guest, shift, TABLES * PAGE).granule(granule, from, to);
            host.bind(domain, &table, output).unwrap();
            host.attach(who, Target::Domain(domain)).unwrap();
            let last = (1 << granule.lg2()) - 1;
            let leads = |at| host.translate_with(&guest, who, Iova::new(at), Access::RW);
            assert_eq!(leads(from + last), Some(PhysAddr::new(to + last + shift)), "{granule:?}");
            assert_eq!(leads(from + last + 1), None);
        }
    }
}

#[test]
fn five_levels_can_be_bound_where_iovas_have_57_bits() {
    for (input_bits, offered) in [(39, 48), (48, 48), (57, 57)] {
        let hub = HubConfig { table_bytes: 1 << 26, ..HubConfig::default() };
        let config = SoftwareConfig { input_bits, page_size_mask: 0x4020_1000, hub };
        let mut host = SoftwareIommu::new(config).unwrap();
        let place = DevicePlace { endpoint: rid(0).endpoint, pasid_bits: 1, socket: None };
        host.add_endpoint(&place).unwrap();
        let can = host.endpoint_capabilities(rid(0).endpoint);
        assert_eq!(can.formats[0].input_bits, offered);
        host.create_domain(ONE).unwrap();
        let (root, controls) = (PhysAddr::new(0x1000), FirstControls::empty());
        let table = FirstTable::Vtd(FirstLevel { root, five_levels: true, controls });
        assert_eq!(host.bind(ONE, &table, Output::GuestPhysical).is_ok(), offered == 57);
    }
}

#[test]
fn a_second_level_that_finds_no_room_takes_none() {
    for arch in [Arch::Vtd, Arch::SmmuV3] {
        let mut host = software_of(arch, 1 << 20);
        host.create_domain(ONE).unwrap();
        // 16 GiB apart: each needs two tables of its own
        let scattered: Vec<_> = (0..80).map(|n| mapping(n << 22, 1, n, Access::RW)).collect();
        scattered.iter().for_each(|mapping| host.map(ONE, mapping).unwrap());
        host.sync();
        let before = host.hub().region().pages_left();
        let prepared = host.prepare(ONE, Role::SecondLevel, &mut scattered.iter().copied());
        // VT-d has that table already, and an SMMU has no room for another
        match arch {
            Arch::Vtd => prepared.unwrap(),
            Arch::SmmuV3 => assert!(matches!(prepared, Err(HostError::OutOfTables(_)))),
        }
        assert_eq!(host.hub().region().pages_left(), before);
    }
}

mod kernel;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use viommu_pasid::Requester;
use viommu_pgtable::{Access, AddrRange, PhysAddr};

use super::*;
use crate::vfio::BarWindow;
use crate::{HostIommu, MemoryRegion};
use kernel::{Call, Scripted, Tables};

const FIRST: EndpointId = EndpointId::new(0x20);
const SECOND: EndpointId = EndpointId::new(0x28);
const OTHER: EndpointId = EndpointId::new(0x30);
const ONE: DomainId = DomainId::new(1);
const TWO: DomainId = DomainId::new(2);

/// Regions of memory, each of [`REGION_BYTES`].
const LOW: u64 = 0x10_0000;
const HIGH: u64 = 0x20_0000;
const NEW: u64 = 0x30_0000;
const NEWER: u64 = 0x40_0000;
const REGION_BYTES: u64 = 0x1_0000;

/// IOVAs of pages; by convention the first leads to [`LOW`], the second to [`HIGH`].
const TO_LOW: Iova = Iova::new(0x1000);
const TO_HIGH: Iova = Iova::new(0x8000);

/// The books over a kernel that refuses when it is told to.
struct Rig {
    kernel: Scripted,
    vfio: Vfio,
    /// Written to, they say that the kernel wants a device back: the first's, the second's, the other's.
    wishes: Vec<OwnedFd>,
}

impl Rig {
    /// Devices of ours, with memory at [`LOW`] and [`HIGH`], all of them nowhere.
    fn new() -> Self {
        let mut leaving = Leaving::new().unwrap();
        let watch = |id| leaving.watch(id).unwrap().try_clone_to_owned().unwrap();
        let wishes = [FIRST, SECOND, OTHER].into_iter().map(watch).collect();
        let start = Start { leaving: Some(leaving), ..Start::default() };
        let mut rig = Self::over(start, wishes);
        rig.set_memory(&[LOW, HIGH]).unwrap();
        rig.kernel.take_calls();
        rig
    }

    /// Devices that a VMM gives.
    fn given(on_start: OnStart) -> Self {
        Self::over(Start { on_start, ..Start::default() }, Vec::new())
    }

    fn over(start: Start, wishes: Vec<OwnedFd>) -> Self {
        let kernel = Scripted::default();
        let vfio = Vfio::over(Box::new(kernel.clone()), [FIRST, SECOND, OTHER], start);
        Self { kernel, vfio, wishes }
    }

    fn set_memory(&mut self, starts: &[u64]) -> Result<(), HostError> {
        let file = File::open("/dev/null").unwrap();
        let region = |&start: &u64| MemoryRegion {
            gpa: PhysAddr::new(start),
            bytes: REGION_BYTES,
            file: file.as_fd(),
            offset: start,
        };
        self.vfio.set_memory(&starts.iter().map(region).collect::<Vec<_>>())
    }

    /// Two endpoints in domain [`ONE`], which leads to both regions, and the other one in [`TWO`], to low
    /// memory.
    fn busy() -> Self {
        let mut rig = Self::new();
        let vfio = &mut rig.vfio;
        for (domain, endpoints, mappings) in [
            (ONE, &[FIRST, SECOND][..], &[(TO_LOW, LOW), (TO_HIGH, HIGH)][..]),
            (TWO, &[OTHER], &[(TO_LOW, LOW)]),
        ] {
            vfio.create_domain(domain).unwrap();
            for endpoint in endpoints {
                attach(vfio, *endpoint, Target::Domain(domain)).unwrap();
            }
            for &(iova, gpa) in mappings {
                vfio.map(domain, &page(iova, gpa)).unwrap();
            }
        }
        rig.kernel.take_calls();
        rig
    }
}

fn attach(vfio: &mut Vfio, endpoint: EndpointId, target: Target) -> Result<(), HostError> {
    vfio.attach(Requester::rid(endpoint), target)
}

fn send_unattached(vfio: &mut Vfio, endpoint: EndpointId, target: Target) {
    vfio.send_unattached(Requester::rid(endpoint), target).unwrap();
}

fn page(iova: Iova, gpa: u64) -> Mapping {
    let range = IovaRange::with_len(iova, 0x1000).unwrap();
    Mapping::new(range, PhysAddr::new(gpa), Access::RW).unwrap()
}

#[test]
fn an_endpoint_whose_device_is_gone_goes_anywhere_but_into_a_domain() {
    let mut rig = Rig::busy();
    rustix::io::write(&rig.wishes[0], &1_u64.to_ne_bytes()).unwrap();
    rig.vfio.dispatch();
    assert_eq!(rig.kernel.take_calls(), [Call::CutOff(FIRST), Call::Release(FIRST)]);
    for target in [Target::Identity, Target::Blocked] {
        attach(&mut rig.vfio, FIRST, target).unwrap();
    }
    let refused = attach(&mut rig.vfio, FIRST, Target::Domain(TWO)).unwrap_err();
    assert!(matches!(refused, HostError::Unsupported(_)), "{refused}");
    assert_eq!(rig.kernel.take_calls(), [], "there is no device that the kernel could move");
    attach(&mut rig.vfio, SECOND, Target::Identity).unwrap();
    let moved = Call::Attach(SECOND, Place::Identity, [LOW, HIGH].map(Iova::new).to_vec());
    assert_eq!(rig.kernel.take_calls(), [moved]);
}

#[test]
fn an_unmap_that_the_kernel_refuses_cuts_off_who_is_in_the_domain_and_nobody_else() {
    let mut rig = Rig::busy();
    rig.kernel.refuse([0]);
    rig.vfio.unmap(ONE, &page(TO_LOW, LOW));
    let cut = [Call::Unmap(ONE, TO_LOW), Call::CutOff(FIRST), Call::CutOff(SECOND)];
    assert_eq!(rig.kernel.take_calls(), cut);
    let places = [(FIRST, Place::Nowhere), (SECOND, Place::Nowhere), (OTHER, Place::Domain(TWO))];
    assert_eq!(rig.kernel.tables().places, places.into());
}

#[test]
fn nothing_enters_a_domain_that_the_kernel_did_not_unmap_until_it_is_made_anew() {
    let mut rig = Rig::busy();
    rig.kernel.refuse([0]);
    rig.vfio.unmap(ONE, &page(TO_LOW, LOW));
    rig.kernel.take_calls();
    attach(&mut rig.vfio, OTHER, Target::Domain(ONE)).unwrap_err();
    rig.vfio.map(ONE, &page(TO_LOW, LOW)).unwrap_err();
    for act in [Vfio::park, Vfio::resume] {
        act(&mut rig.vfio, Requester::rid(FIRST));
    }
    assert_eq!(rig.kernel.take_calls(), [Call::Attach(FIRST, Place::Nowhere, vec![])]);
    for endpoint in [FIRST, SECOND] {
        attach(&mut rig.vfio, endpoint, Target::Blocked).unwrap();
    }
    rig.vfio.destroy_domain(ONE);
    rig.vfio.create_domain(ONE).unwrap();
    rig.vfio.map(ONE, &page(TO_LOW, LOW)).unwrap();
    attach(&mut rig.vfio, FIRST, Target::Domain(ONE)).unwrap();
    assert_eq!(
        rig.kernel.take_calls().last(),
        Some(&Call::Attach(FIRST, Place::Domain(ONE), vec![TO_LOW]))
    );
}

#[test]
fn a_refused_attach_leaves_the_endpoint_where_it_was_and_a_refused_block_cuts_it_off() {
    let mut rig = Rig::busy();
    let before = rig.kernel.tables();
    for target in [Target::Identity, Target::Domain(TWO)] {
        rig.kernel.refuse([0]);
        attach(&mut rig.vfio, FIRST, target).unwrap_err();
        assert_eq!(rig.kernel.tables(), before);
    }
    rig.kernel.take_calls();
    // the block, and then an UNMAP of the domain that it has left
    rig.kernel.refuse([0, 1]);
    attach(&mut rig.vfio, FIRST, Target::Blocked).unwrap();
    assert_eq!(
        rig.kernel.take_calls(),
        [Call::Attach(FIRST, Place::Nowhere, vec![]), Call::CutOff(FIRST)]
    );
    rig.vfio.unmap(ONE, &page(TO_LOW, LOW));
    assert_eq!(rig.kernel.take_calls(), [Call::Unmap(ONE, TO_LOW), Call::CutOff(SECOND)]);
}

#[test]
fn a_refused_mapping_is_in_no_book() {
    let mut rig = Rig::busy();
    let refused = page(Iova::new(0x4000), HIGH);
    rig.kernel.refuse([0]);
    rig.vfio.map(ONE, &refused).unwrap_err();
    rig.kernel.take_calls();
    rig.vfio.unmap(ONE, &refused);
    attach(&mut rig.vfio, OTHER, Target::Domain(ONE)).unwrap();
    let entered = Call::Attach(OTHER, Place::Domain(ONE), vec![TO_LOW, TO_HIGH]);
    assert_eq!(rig.kernel.take_calls(), [entered]);
}

#[test]
fn memory_that_the_kernel_refuses_leaves_memory_and_mappings_as_they_were() {
    // behind two UNMAPs, each of the two new regions
    for refused in [2, 3] {
        let mut rig = Rig::busy();
        let before = rig.kernel.tables();
        rig.kernel.refuse([refused]);
        rig.set_memory(&[HIGH, NEW, NEWER]).unwrap_err();
        assert_eq!(rig.kernel.tables(), before, "call {refused} refused");
        rig.set_memory(&[HIGH, NEW, NEWER]).unwrap();
        let memory = [HIGH, NEW, NEWER].map(PhysAddr::new).into();
        let domains = [(ONE, [TO_HIGH].into()), (TWO, [].into())].into();
        assert_eq!(rig.kernel.tables(), Tables { memory, domains, ..before });
    }
}

#[test]
fn memory_that_cannot_be_put_back_is_out_of_reach_until_the_vmm_tells_of_it_again() {
    let mut rig = Rig::busy();
    let before = rig.kernel.tables();
    // behind two UNMAPs the new region, and then the old one
    rig.kernel.refuse([2, 3]);
    rig.set_memory(&[HIGH, NEW]).unwrap_err();
    let domains = [(ONE, [TO_HIGH].into()), (TWO, [].into())].into();
    let memory = [PhysAddr::new(HIGH)].into();
    assert_eq!(rig.kernel.tables(), Tables { memory, domains, ..before.clone() });
    let refused = rig.vfio.map(TWO, &page(TO_HIGH, LOW)).unwrap_err();
    assert!(matches!(refused, HostError::Unsupported(_)), "{refused}");
    rig.set_memory(&[LOW, HIGH]).unwrap();
    assert_eq!(rig.kernel.tables(), before);
}

#[test]
fn what_cannot_be_mapped_again_stays_out_until_memory_changes_the_next_time() {
    let mut rig = Rig::busy();
    let before = rig.kernel.tables();
    rig.set_memory(&[HIGH]).unwrap();
    // behind the region, the first domain's mapping
    rig.kernel.refuse([1]);
    rig.set_memory(&[LOW, HIGH]).unwrap();
    let mut expected = before.clone();
    expected.domains.insert(ONE, [TO_HIGH].into());
    assert_eq!(rig.kernel.tables(), expected);
    rig.set_memory(&[LOW, HIGH]).unwrap();
    assert_eq!(rig.kernel.tables(), before);
}

#[test]
fn memory_that_cannot_be_unmapped_cuts_its_domains_off_and_goes_all_the_same() {
    let mut rig = Rig::busy();
    rig.kernel.refuse([0]);
    rig.set_memory(&[HIGH]).unwrap();
    let gone = [
        Call::Unmap(ONE, TO_LOW),
        Call::CutOff(FIRST),
        Call::CutOff(SECOND),
        Call::Unmap(TWO, TO_LOW),
        Call::RemoveMemory(PhysAddr::new(LOW)),
    ];
    assert_eq!(rig.kernel.take_calls()[..gone.len()], gone);
}

#[test]
fn what_leads_to_registers_goes_before_their_device_even_if_the_kernel_refuses() {
    let registers = PhysAddr::new(0x8000_0000);
    let gpa = AddrRange::<PhysAddr>::with_len(registers, 0x1000).unwrap();
    let window = BarWindow { gpa, endpoint: SECOND, bar: 0, offset: 0 };
    let file = File::open("/dev/null").unwrap();
    let region = Region::registers(&window, (file.as_fd(), 0)).unwrap();
    let mut leaving = Leaving::new().unwrap();
    let wish = leaving.watch(SECOND).unwrap().try_clone_to_owned().unwrap();
    let start =
        Start { leaving: Some(leaving), registers: Ram::of(vec![region]), ..Start::default() };
    let mut rig = Rig::over(start, vec![wish]);
    rig.vfio.create_domain(ONE).unwrap();
    attach(&mut rig.vfio, FIRST, Target::Domain(ONE)).unwrap();
    rig.vfio.map(ONE, &page(TO_HIGH, registers.raw())).unwrap();
    rig.kernel.take_calls();
    rig.kernel.refuse([0]);
    rustix::io::write(&rig.wishes[0], &1_u64.to_ne_bytes()).unwrap();
    rig.vfio.dispatch();
    let gone = [
        Call::CutOff(SECOND),
        Call::Unmap(ONE, TO_HIGH),
        Call::CutOff(FIRST),
        Call::RemoveRegisters(registers),
        Call::Release(SECOND),
    ];
    assert_eq!(rig.kernel.take_calls(), gone);
}

#[test]
fn given_devices_are_left_alone_until_all_are_adopted_and_a_failed_adoption_can_be_repeated() {
    let mut rig = Rig::given(OnStart::Boot);
    for endpoint in [FIRST, SECOND] {
        send_unattached(&mut rig.vfio, endpoint, Target::Identity);
    }
    assert_eq!(rig.kernel.take_calls(), []);
    // finding them, and attaching the second
    for (refused, reached) in [(0, 1), (2, 3)] {
        rig.kernel.refuse([refused]);
        rig.vfio.adopt().unwrap_err();
        assert_eq!(rig.kernel.take_calls().len(), reached);
    }
    rig.vfio.adopt().unwrap();
    let places =
        [(FIRST, Place::Identity), (SECOND, Place::Identity), (OTHER, Place::Nowhere)].into();
    assert_eq!(rig.kernel.tables(), Tables { places, ..Tables::default() });
}

#[test]
fn a_kept_device_stays_where_it_was_until_an_attach_succeeds() {
    let mut rig = Rig::given(OnStart::Keep);
    rig.kernel.refuse([0]);
    rig.vfio.adopt().unwrap_err();
    rig.vfio.adopt().unwrap();
    assert_eq!(rig.kernel.take_calls(), [Call::Adopt, Call::Adopt]);
    rig.vfio.create_domain(ONE).unwrap();
    rig.kernel.refuse([0]);
    attach(&mut rig.vfio, FIRST, Target::Domain(ONE)).unwrap_err();
    rig.kernel.take_calls();
    for target in [Target::Identity, Target::Blocked] {
        send_unattached(&mut rig.vfio, FIRST, target);
    }
    assert_eq!(rig.kernel.take_calls(), [], "it is kept still");
    attach(&mut rig.vfio, FIRST, Target::Domain(ONE)).unwrap();
    send_unattached(&mut rig.vfio, FIRST, Target::Blocked);
    let moved = [Place::Domain(ONE), Place::Nowhere];
    assert_eq!(rig.kernel.take_calls(), moved.map(|place| Call::Attach(FIRST, place, vec![])));
}

#[test]
fn a_device_to_be_blocked_that_the_kernel_does_not_move_is_cut_off() {
    let mut rig = Rig::given(OnStart::Block);
    // finding them, blocking the first, the second
    rig.kernel.refuse([2]);
    rig.vfio.adopt().unwrap();
    let blocked = |endpoint| Call::Attach(endpoint, Place::Nowhere, vec![]);
    assert_eq!(
        rig.kernel.take_calls(),
        [Call::Adopt, blocked(FIRST), blocked(SECOND), Call::CutOff(SECOND), blocked(OTHER)]
    );
    send_unattached(&mut rig.vfio, FIRST, Target::Identity);
    assert_eq!(rig.kernel.take_calls(), [], "blocked until the guest attaches it");
}

#[test]
fn an_attach_to_a_bypass_domain_moves_a_device_that_is_kept_or_blocked() {
    for on_start in [OnStart::Keep, OnStart::Block] {
        let mut rig = Rig::given(on_start);
        rig.vfio.adopt().unwrap();
        send_unattached(&mut rig.vfio, FIRST, Target::Identity);
        rig.kernel.take_calls();
        attach(&mut rig.vfio, FIRST, Target::Identity).unwrap();
        assert_eq!(rig.kernel.take_calls(), [Call::Attach(FIRST, Place::Identity, vec![])]);
    }
}

mod kernel;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use viommu_pasid::Requester;
use viommu_pgtable::{Access, PhysAddr};

use super::*;
use crate::{HostIommu, MemoryRegion};
use kernel::{Call, Scripted};

const FIRST: EndpointId = EndpointId::new(0x20);
const SECOND: EndpointId = EndpointId::new(0x28);
const OTHER: EndpointId = EndpointId::new(0x30);
const ONE: DomainId = DomainId::new(1);
const TWO: DomainId = DomainId::new(2);

/// Regions of memory, each of [`REGION_BYTES`].
const LOW: u64 = 0x10_0000;
const HIGH: u64 = 0x20_0000;
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

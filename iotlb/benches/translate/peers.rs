//! The peers: what a device process would use without us.

use std::collections::BTreeMap;
use std::sync::RwLock;
use std::sync::atomic::{AtomicBool, Ordering};

use vm_memory::iommu::Iotlb;
use vm_memory::{GuestAddress, Permissions};

use super::{BASE, ELSEWHERE, PAGE, Reader, Subject, output};

/// vm-memory's.
pub(super) struct VmMemory(RwLock<Iotlb>);

impl VmMemory {
    pub(super) fn new(pages: u64) -> Self {
        let mut iotlb = Iotlb::new();
        (0..pages).for_each(|n| Self::map(&mut iotlb, BASE + n * PAGE, output(n, pages)));
        Self(RwLock::new(iotlb))
    }

    fn map(iotlb: &mut Iotlb, iova: u64, oa: u64) {
        let (iova, gpa) = (GuestAddress(iova), GuestAddress(oa));
        iotlb.set_mapping(iova, gpa, 4096, Permissions::ReadWrite).unwrap();
    }
}

impl Subject for VmMemory {
    fn reader(&self) -> Reader<'_> {
        Box::new(|batch, len| {
            let (iotlb, len) = (self.0.read().unwrap(), usize::try_from(len).unwrap());
            let mut sum = 0;
            for iova in batch {
                let found = Iotlb::lookup(&*iotlb, GuestAddress(*iova), len, Permissions::Read);
                sum ^= found.map_or(0, |pieces| pieces.fold(0, |sum, piece| sum ^ piece.base.0));
            }
            sum
        })
    }

    fn change_until(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut iotlb = self.0.write().unwrap();
            Self::map(&mut iotlb, ELSEWHERE, PAGE);
            iotlb.invalidate_mapping(GuestAddress(ELSEWHERE), 4096);
        }
    }
}

/// From a mapping's first address to where it leads.
pub(super) struct Tree(RwLock<BTreeMap<u64, u64>>);

impl Tree {
    pub(super) fn new(pages: u64) -> Self {
        Self(RwLock::new((0..pages).map(|n| (BASE + n * PAGE, output(n, pages))).collect()))
    }
}

impl Subject for Tree {
    fn reader(&self) -> Reader<'_> {
        Box::new(|batch, len| {
            let tree = self.0.read().unwrap();
            let mut sum = 0;
            for iova in batch {
                let first = tree.range(..=*iova).next_back().map_or(*iova, |(start, _)| *start);
                for (start, oa) in tree.range(first..*iova + len) {
                    sum ^= oa + iova.saturating_sub(*start);
                }
            }
            sum
        })
    }

    fn change_until(&self, stop: &AtomicBool) {
        while !stop.load(Ordering::Relaxed) {
            let mut tree = self.0.write().unwrap();
            tree.insert(ELSEWHERE, PAGE);
            tree.remove(&ELSEWHERE);
        }
    }
}

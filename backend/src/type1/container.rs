//! A container: one address space, and what is mapped in it.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use viommu_pgtable::{Access, Iova, IovaRange, Mapping, PhysAddr};

use super::sys::{self, Window};
use crate::HostError;
use crate::vfio::{Leads, NOWHERE, Place, refused};

/// Guest memory, and devices' registers, in our address space, by where the guest has them.
pub(super) type Windows = BTreeMap<PhysAddr, Window>;

/// One mapping in a container: a part of one region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mapped {
    /// Where the region is for the guest.
    pub(super) region: PhysAddr,
    /// Where the part starts in the region, bytes.
    pub(super) at: u64,
    /// Where it is mapped.
    pub(super) iova: IovaRange,
    /// What it may be used for.
    pub(super) access: Access,
}

/// The parts that a mapping consists of, one for each region.
pub(super) fn parts(mapping: &Mapping, leads: &Leads<'_>) -> Option<Vec<Mapped>> {
    let (Leads::Memory(pieces) | Leads::Registers(pieces)) = leads else { return None };
    let mut start = mapping.iova().start();
    let mut parts = Vec::new();
    for piece in pieces {
        let iova = IovaRange::with_len(start, piece.bytes)?;
        let (region, access) = (piece.region.gpa(), mapping.access());
        parts.push(Mapped { region, at: piece.at, iova, access });
        start = iova.last().checked_add(1).unwrap_or(start);
    }
    Some(parts)
}

/// What the kernel does to a container's address space.
pub(super) trait Dma: Debug + Send {
    /// Maps and pins a part of a window, `part` being where in it, bytes.
    ///
    /// # Errors
    /// What the kernel says; nothing is mapped.
    fn map(&self, part: (&Window, u64), iova: IovaRange, access: Access) -> io::Result<()>;

    /// Unmaps whole mappings; how many bytes they were.
    ///
    /// # Errors
    /// What the kernel says; nothing is unmapped.
    fn unmap(&self, range: IovaRange) -> io::Result<u64>;

    /// Unmaps everything.
    ///
    /// # Errors
    /// What the kernel says; nothing is unmapped.
    fn unmap_all(&self) -> io::Result<()>;
}

/// The kernel's own container.
impl Dma for File {
    fn map(&self, part: (&Window, u64), iova: IovaRange, access: Access) -> io::Result<()> {
        sys::map_dma(self, part, iova, access)
    }

    fn unmap(&self, range: IovaRange) -> io::Result<u64> {
        sys::unmap_dma(self, range)
    }

    fn unmap_all(&self) -> io::Result<()> {
        sys::unmap_all(self)
    }
}

/// A device and its container.
#[derive(Debug)]
pub(super) struct Container<D = File> {
    dma: D,
    /// Mappings that it takes.
    limit: usize,
    place: Place,
    mapped: BTreeMap<Iova, Mapped>,
    /// While these are open the group stays in the container, and the device ours.
    open: (File, OwnedFd),
}

/// The device.
impl<D> AsFd for Container<D> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        let (_, device) = &self.open;
        device.as_fd()
    }
}

impl<D: Dma> Container<D> {
    /// An empty one, which takes `limit` mappings; `open` are the group and its device.
    pub(super) const fn new(dma: D, limit: usize, open: (File, OwnedFd)) -> Self {
        Self { dma, limit, place: Place::Nowhere, mapped: BTreeMap::new(), open }
    }

    /// Whose mappings it holds.
    pub(super) const fn place(&self) -> Place {
        self.place
    }

    /// Maps parts; on failure none of them is mapped.
    pub(super) fn map(&mut self, windows: &Windows, parts: &[Mapped]) -> Result<(), HostError> {
        if self.mapped.len().saturating_add(parts.len()) > self.limit {
            return Err(HostError::OutOfMappings);
        }
        for (done, part) in parts.iter().enumerate() {
            let Err(error) = self.map_one(windows, part) else { continue };
            for part in parts.iter().take(done) {
                if let Err(error) = self.unmap(part.iova) {
                    log::error!("{} stays mapped: {error}", part.iova);
                }
            }
            return Err(error);
        }
        Ok(())
    }

    fn map_one(&mut self, windows: &Windows, part: &Mapped) -> Result<(), HostError> {
        let window = windows.get(&part.region).ok_or(NOWHERE)?;
        self.dma
            .map((window, part.at), part.iova, part.access)
            .map_err(refused("VFIO_IOMMU_MAP_DMA"))?;
        self.mapped.insert(part.iova.start(), *part);
        Ok(())
    }

    /// Unmaps what was mapped whole inside `range`.
    pub(super) fn unmap(&mut self, range: IovaRange) -> Result<(), HostError> {
        let gone = self.dma.unmap(range).map_err(refused("VFIO_IOMMU_UNMAP_DMA"))?;
        let inside: Vec<_> =
            self.mapped.range(range.start()..=range.last()).map(|(at, _)| *at).collect();
        let expected: u64 = inside
            .iter()
            .filter_map(|at| self.mapped.remove(at))
            .map(|part| part.iova.len_minus_one().saturating_add(1))
            .sum();
        if gone == expected {
            return Ok(());
        }
        let source = io::Error::other(format!("{gone:#x} bytes instead of {expected:#x}"));
        Err(HostError::Refused { call: "VFIO_IOMMU_UNMAP_DMA", source })
    }

    /// Replaces all that is mapped by what `place` holds. On failure it is as before; where that is refused
    /// too, nothing is mapped, and the place is [`Place::Nowhere`].
    pub(super) fn replace(
        &mut self,
        windows: &Windows,
        (place, parts): (Place, &[Mapped]),
    ) -> Result<(), HostError> {
        if parts.len() > self.limit {
            return Err(HostError::OutOfMappings);
        }
        self.dma.unmap_all().map_err(refused("VFIO_IOMMU_UNMAP_DMA"))?;
        let before: Vec<_> = std::mem::take(&mut self.mapped).into_values().collect();
        let Err(error) = self.map(windows, parts) else {
            self.place = place;
            return Ok(());
        };
        if let Err(error) = self.map(windows, &before) {
            log::error!("a container's mappings of before are refused: {error}");
            if let Err(error) = self.clear() {
                log::error!("mapped still: {error}");
            }
        }
        Err(error)
    }

    /// Unmaps everything: the place is nowhere.
    ///
    /// # Errors
    /// What the kernel says; what is mapped still is counted no more.
    pub(super) fn clear(&mut self) -> Result<(), HostError> {
        self.mapped.clear();
        self.place = Place::Nowhere;
        self.dma.unmap_all().map_err(refused("VFIO_IOMMU_UNMAP_DMA"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::cell::RefCell;
    use std::collections::BTreeSet;

    use crate::DomainId;

    /// An address space that refuses those of the coming mappings that have these numbers, from 0.
    #[derive(Debug, Default)]
    struct Scripted(RefCell<Script>);

    #[derive(Debug, Default)]
    struct Script {
        mapped: BTreeMap<Iova, IovaRange>,
        refused: BTreeSet<usize>,
        come: usize,
    }

    impl Dma for Scripted {
        fn map(&self, _: (&Window, u64), iova: IovaRange, _: Access) -> io::Result<()> {
            let mut script = self.0.borrow_mut();
            script.come += 1;
            if script.refused.contains(&(script.come - 1)) {
                return Err(io::Error::other("told to refuse"));
            }
            assert_eq!(script.mapped.insert(iova.start(), iova), None, "mapped twice");
            Ok(())
        }

        fn unmap(&self, range: IovaRange) -> io::Result<u64> {
            let gone = self.0.borrow_mut().mapped.remove(&range.start());
            Ok(gone.map_or(0, |range| range.len_minus_one() + 1))
        }

        fn unmap_all(&self) -> io::Result<()> {
            self.0.borrow_mut().mapped.clear();
            Ok(())
        }
    }

    const REGION: PhysAddr = PhysAddr::new(0x10_0000);
    const OLD: Place = Place::Domain(DomainId::new(1));
    const NEW: Place = Place::Domain(DomainId::new(2));

    fn part(at: u64) -> Mapped {
        let iova = IovaRange::with_len(Iova::new(0x8000_0000 + at), 0x1000).unwrap();
        Mapped { region: REGION, at, iova, access: Access::RW }
    }

    /// A container that holds `parts` of [`OLD`], and what they lead to.
    fn container(parts: &[Mapped]) -> (Container<Scripted>, Windows) {
        let memory = tempfile::tempfile().unwrap();
        memory.set_len(0x10_0000).unwrap();
        let windows = [(REGION, Window::new(&memory, 0, 0x10_0000).unwrap())].into();
        let open = (memory.try_clone().unwrap(), memory.into());
        let mut container = Container::new(Scripted::default(), 8, open);
        container.replace(&windows, (OLD, parts)).unwrap();
        (container, windows)
    }

    /// Replaces by what [`NEW`] holds, while these mappings are refused.
    fn refuse(
        (container, windows): (&mut Container<Scripted>, &Windows),
        new: &[Mapped],
        numbers: &[usize],
    ) {
        let script = container.dma.0.get_mut();
        (script.refused, script.come) = (numbers.iter().copied().collect(), 0);
        container.replace(windows, (NEW, new)).unwrap_err();
        container.dma.0.get_mut().refused.clear();
    }

    /// What is said to be mapped, which is what the address space holds.
    fn mapped(container: &Container<Scripted>) -> Vec<Mapped> {
        let held: Vec<_> = container.dma.0.borrow().mapped.values().copied().collect();
        let said: Vec<_> = container.mapped.values().copied().collect();
        assert_eq!(said.iter().map(|part| part.iova).collect::<Vec<_>>(), held);
        said
    }

    #[test]
    fn a_replacement_that_is_refused_leaves_what_was_mapped() {
        let (old, new) = ([part(0), part(0x1000)], [part(0x1000), part(0x2000), part(0x3000)]);
        for first_refused in 0..new.len() {
            let (mut container, windows) = container(&old);
            refuse((&mut container, &windows), &new, &[first_refused]);
            assert_eq!((container.place(), mapped(&container)), (OLD, old.to_vec()));
        }
    }

    #[test]
    fn what_cannot_be_put_back_is_nowhere_and_comes_back_with_the_next_replacement() {
        let (old, new) = ([part(0), part(0x1000)], [part(0x1000), part(0x2000)]);
        // the second of the new; then the first or the second of the old
        for numbers in [[1, 2], [1, 3]] {
            let (mut container, windows) = container(&old);
            refuse((&mut container, &windows), &new, &numbers);
            assert_eq!((container.place(), mapped(&container)), (Place::Nowhere, vec![]));
            container.replace(&windows, (OLD, &old)).unwrap();
            assert_eq!((container.place(), mapped(&container)), (OLD, old.to_vec()));
        }
    }

    #[test]
    fn a_replacement_past_the_limit_changes_nothing() {
        let (mut container, windows) = container(&[part(0)]);
        let many: Vec<_> = (1..10).map(|page| part(page * 0x1000)).collect();
        let refused = container.replace(&windows, (NEW, &many)).unwrap_err();
        assert!(matches!(refused, HostError::OutOfMappings), "{refused}");
        assert_eq!((container.place(), mapped(&container)), (OLD, vec![part(0)]));
    }
}

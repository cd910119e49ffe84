//! What is behind the guest's physical addresses, as far as we know it.

use viommu_pasid::EndpointId;
use viommu_pgtable::Mapping;

use super::ram::{Piece, Ram, Region};

/// Memory, and registers of devices.
#[derive(Debug, Default)]
pub(crate) struct Guest {
    ram: Ram,
    registers: Ram,
}

/// What a mapping leads to.
#[derive(Debug)]
pub(crate) enum Leads<'a> {
    /// Memory, piece by piece in the mapping's order.
    Memory(Vec<Piece<'a>>),
    /// Registers of devices, likewise.
    Registers(Vec<Piece<'a>>),
    /// Something that is neither, or both.
    Elsewhere,
}

impl Guest {
    /// No memory yet, and these registers.
    pub(crate) fn new(registers: Ram) -> Self {
        Self { ram: Ram::default(), registers }
    }

    /// The memory.
    pub(crate) const fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The memory is now another.
    pub(crate) fn set_ram(&mut self, ram: Ram) {
        self.ram = ram;
    }

    /// Forgets a region of the memory.
    pub(crate) fn lose_memory(&mut self, gone: &Region) {
        drop(self.ram.take(|region| region.is(gone)));
    }

    /// Whether some of `ram` has the address of a register.
    pub(crate) fn collides(&self, ram: &Ram) -> bool {
        let windows = self.registers.regions().iter().filter_map(Region::identity);
        windows.into_iter().any(|window| ram.regions().iter().any(|region| region.meets(&window)))
    }

    /// Forgets the registers of a device; what they were.
    pub(crate) fn lose_registers(&mut self, device: EndpointId) -> Vec<Region> {
        self.registers.take(|region| region.device() == Some(device))
    }

    /// What `mapping` leads to.
    pub(crate) fn leads(&self, mapping: &Mapping) -> Leads<'_> {
        if let Some(pieces) = self.ram.pieces(mapping) {
            return Leads::Memory(pieces);
        }
        self.registers.pieces(mapping).map_or(Leads::Elsewhere, Leads::Registers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::fs::File;
    use std::os::fd::AsFd;

    use viommu_pgtable::{Access, AddrRange, Iova, IovaRange, PhysAddr};

    use crate::MemoryRegion;
    use crate::vfio::BarWindow;

    const FIRST: EndpointId = EndpointId::new(0x20);
    const SECOND: EndpointId = EndpointId::new(0x28);

    fn ram(gpa: u64, bytes: u64) -> Ram {
        let file = File::open("/dev/null").unwrap();
        let region = MemoryRegion { gpa: PhysAddr::new(gpa), bytes, file: file.as_fd(), offset: 0 };
        Ram::new(&[region]).unwrap()
    }

    fn registers(gpa: u64, endpoint: EndpointId) -> Region {
        let file = File::open("/dev/null").unwrap();
        let gpa = AddrRange::<PhysAddr>::with_len(PhysAddr::new(gpa), 0x1000).unwrap();
        let window = BarWindow { gpa, endpoint, bar: 0, offset: 0 };
        Region::registers(&window, (file.as_fd(), 0)).unwrap()
    }

    /// Memory at 0x1000-0x2fff; registers of the second device right behind it, then the first's.
    fn guest() -> Guest {
        let windows = vec![registers(0x4000, FIRST), registers(0x3000, SECOND)];
        let mut guest = Guest::new(Ram::of(windows));
        guest.set_ram(ram(0x1000, 0x2000));
        guest
    }

    fn leads(guest: &Guest, oa: u64, bytes: u64) -> String {
        let iova = IovaRange::with_len(Iova::new(0x10_0000), bytes).unwrap();
        let mapping = Mapping::new(iova, PhysAddr::new(oa), Access::READ).unwrap();
        let count = |pieces: &[Piece<'_>]| pieces.len();
        match guest.leads(&mapping) {
            Leads::Memory(pieces) => format!("memory {}", count(&pieces)),
            Leads::Registers(pieces) => format!("registers {}", count(&pieces)),
            Leads::Elsewhere => "elsewhere".to_owned(),
        }
    }

    #[test]
    fn a_mapping_leads_to_memory_or_to_registers_and_never_to_both() {
        let guest = guest();
        assert_eq!(leads(&guest, 0x1000, 0x2000), "memory 1");
        assert_eq!(leads(&guest, 0x3000, 0x1000), "registers 1");
        assert_eq!(leads(&guest, 0x3000, 0x2000), "registers 2");
        for (oa, bytes) in [(0x2000, 0x2000), (0x4000, 0x2000), (0x8000, 0x1000), (0, 0x2000)] {
            assert_eq!(leads(&guest, oa, bytes), "elsewhere", "{oa:#x}+{bytes:#x}");
        }
    }

    #[test]
    fn registers_go_with_their_device_and_the_others_stay() {
        let mut guest = guest();
        let gone = guest.lose_registers(SECOND);
        assert_eq!(gone.iter().map(Region::gpa).collect::<Vec<_>>(), [PhysAddr::new(0x3000)]);
        assert_eq!(leads(&guest, 0x3000, 0x1000), "elsewhere");
        assert_eq!(leads(&guest, 0x4000, 0x1000), "registers 1");
        assert!(guest.lose_registers(SECOND).is_empty());
    }

    #[test]
    fn memory_collides_with_registers_at_its_addresses_only() {
        let guest = guest();
        assert!(guest.collides(&ram(0, 0x10000)) && guest.collides(&ram(0x4000, 0x1000)));
        assert!(!guest.collides(&ram(0x1000, 0x2000)) && !guest.collides(&ram(0x5000, 0x1000)));
    }
}

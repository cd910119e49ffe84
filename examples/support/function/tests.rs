//! Tests of a function.

use super::*;

/// A device of one register that remembers its last write.
#[derive(Debug, Default)]
struct OneRegister(u64);

impl Device for OneRegister {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        read_register(self.0, offset, data);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        self.0 = super::super::merge_register(self.0, offset, data);
    }

    fn reset(&mut self) {
        self.0 = 0;
    }
}

const SPEC: Spec = Spec {
    identity: Identity {
        vendor: 0x1234,
        device: 0x5678,
        class: 0xff_00_00,
        revision: 0,
        subsystem_vendor: 0,
        subsystem: 0,
    },
    register_bytes: 0x1000,
    vectors: 3,
    intx: true,
};

fn function() -> Function<OneRegister> {
    let dma = Arc::new(DmaPort::connect(None).unwrap());
    Function::new(&SPEC, dma, |_| OneRegister::default()).unwrap()
}

fn read32(function: &mut Function<OneRegister>, region: u32, offset: u64) -> u32 {
    let mut data = [0; 4];
    function.region_read(region, offset, &mut data).unwrap();
    u32::from_le_bytes(data)
}

#[test]
fn the_msix_capability_says_how_many_vectors_and_where() {
    let mut function = function();
    let config = VFIO_PCI_CONFIG_REGION_INDEX;
    assert_eq!(read32(&mut function, config, 0x40), 0x0002_0011);
    assert_eq!(read32(&mut function, config, 0x44), 1);
    assert_eq!(read32(&mut function, config, 0x48), 0x801);
    function.region_write(config, 0x42, &[0xff, 0xff]).unwrap();
    assert_eq!(read32(&mut function, config, 0x40), 0xc002_0011);
    assert!(function.interrupts.msix_enabled());
}

#[test]
fn the_table_begins_masked_and_the_pending_bits_are_read_only() {
    let mut function = function();
    assert_eq!(read32(&mut function, 1, 0x0c), 1);
    function.region_write(1, 0x20, &[1, 2, 3, 4]).unwrap();
    function.region_write(1, 0x800, &[0xff; 4]).unwrap();
    function.region_write(1, 0x2e, &[0xff; 8]).unwrap();
    assert_eq!(read32(&mut function, 1, 0x20), 0x0403_0201);
    assert_eq!((read32(&mut function, 1, 0x30), read32(&mut function, 1, 0x800)), (0, 0));
    function.config.write(0x42, &[0, 0x80]);
    function.write_config(0x42, &[0, 0x80]);
    function.interrupts.raise_msix(1);
    assert_eq!(read32(&mut function, 1, 0x800), 2);
}

#[test]
fn the_status_register_shows_inta() {
    let mut function = function();
    assert_eq!(read32(&mut function, VFIO_PCI_CONFIG_REGION_INDEX, 4) >> 16, 0x10);
    function.interrupts.set_intx(true);
    assert_eq!(read32(&mut function, VFIO_PCI_CONFIG_REGION_INDEX, 4) >> 16, 0x18);
    assert_eq!(read32(&mut function, VFIO_PCI_CONFIG_REGION_INDEX, 8), 0xff00_0000);
}

#[test]
fn reset_brings_registers_configuration_and_table_back() {
    let mut function = function();
    function.region_write(0, 0, &[5; 8]).unwrap();
    function.region_write(1, 0, &[5; 16]).unwrap();
    function.region_write(VFIO_PCI_CONFIG_REGION_INDEX, 4, &[6, 0]).unwrap();
    function.reset().unwrap();
    assert_eq!(read32(&mut function, 0, 0), 0);
    assert_eq!(read32(&mut function, 1, 0x0c), 1);
    assert_eq!(read32(&mut function, VFIO_PCI_CONFIG_REGION_INDEX, 4), 0x0010_0000);
}

#[test]
fn accesses_to_nowhere_read_zero_and_are_no_error() {
    let mut function = function();
    for region in [0, 1, 5, 6, 7, 8, 99] {
        function.region_write(region, u64::MAX, &[0xff; 4]).unwrap();
        assert_eq!(read32(&mut function, region, u64::MAX), 0, "region {region}");
    }
}

#[test]
fn regions_and_interrupts_are_those_of_a_pci_device() {
    let function = function();
    let sizes: Vec<u64> = function.regions().iter().map(|r| r.region_info.size).collect();
    assert_eq!(sizes, [0x1000, 0x1000, 0, 0, 0, 0, 0, 4096, 0]);
    let counts: Vec<u32> = function.irqs().iter().map(|irq| irq.count).collect();
    assert_eq!(counts, [1, 0, 3, 0, 0]);
}

#[test]
fn a_function_without_vectors_or_with_too_many_cannot_be_made() {
    for vectors in [0, 65] {
        let dma = Arc::new(DmaPort::connect(None).unwrap());
        let spec = Spec { vectors, ..SPEC };
        let made = Function::new(&spec, dma, |_| OneRegister::default());
        assert_eq!(made.err(), Some(LayoutError::Vectors { vectors, most: 64 }));
    }
}

//! QEMU's own virtio-iommu, on the same work: a machine without a guest, driven by qtest.
//!
//! A kick is a command over qtest's pipe, which takes longer than an eventfd; the empty round trip
//! beside the figures has that in it too.

use std::fs::File;
use std::path::{Path, PathBuf};

use viommu_oracle::emulator::{Emulator, Program};
use viommu_oracle::memory::{GuestRam, Window};
use viommu_oracle::pci::{Config, Function};
use viommu_oracle::qtest::Batch;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::costs::{Bench, Scope, print_head};
use crate::cpu::{Places, pin};
use crate::driver::{Driver, Wait};
use crate::support::guest::{EVENT_QUEUE_AT, QUEUE_SIZE, REQUEST_QUEUE_AT};
use crate::support::queue::Queue;

/// Guest memory, all of it below what the machine keeps for devices.
const RAM_BYTES: u64 = 128 << 20;

/// A PC with the IOMMU in slot 4 and a device behind it in slot 5.
const MACHINE: [&str; 6] =
    ["-M", "q35,memory-backend=ram", "-device", "virtio-iommu-pci,addr=4", "-device", "edu,addr=5"];

/// The IOMMU: virtio 1.x only, so its first BAR is unused and its registers are behind the fourth.
const IOMMU: Function = Function { device: 4, id: 0x1057_1af4, bar0: 0 };
const BAR: u64 = 0xe000_0000;
/// The device behind it.
const ENDPOINT: u32 = 5 << 3;

/// Where QEMU has the request queue's kick, in that BAR; the other registers are at its start.
const NOTIFY: u64 = BAR + 0x3000;

/// Registers (virtio 1.4, 4.1.4.3).
mod common {
    use super::BAR;

    pub(super) const DRIVER_FEATURE_SELECT: u64 = BAR + 0x08;
    pub(super) const DRIVER_FEATURE: u64 = BAR + 0x0c;
    pub(super) const STATUS: u64 = BAR + 0x14;
    pub(super) const QUEUE_SELECT: u64 = BAR + 0x16;
    pub(super) const QUEUE_SIZE: u64 = BAR + 0x18;
    pub(super) const QUEUE_ENABLE: u64 = BAR + 0x1c;
    pub(super) const QUEUE_DESCRIPTORS: u64 = BAR + 0x20;
    pub(super) const QUEUE_AVAILABLE: u64 = BAR + 0x28;
    pub(super) const QUEUE_USED: u64 = BAR + 0x30;
}

/// What Linux accepts of QEMU's device: as of ours, but for bit 30.
const FEATURES: [u32; 2] = [0x3000_0057, 1];

/// Acknowledge, driver, features OK, driver OK.
const STATUSES: [u8; 4] = [1, 1 | 2, 1 | 2 | 8, 1 | 2 | 8 | 4];

/// Prints the costs of the QEMU that `arguments` name with `--qemu-root` or `--qemu`, if any.
pub(crate) fn print_if_named(scope: &Scope, arguments: &[String]) {
    let named = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        Some(PathBuf::from(arguments.get(at + 1)?))
    };
    let unpacked = |root: PathBuf| Program::unpacked(&root, "qemu-system-x86_64");
    let program = named("--qemu-root").map(unpacked);
    let Some(program) = program.or_else(|| named("--qemu").map(Program::installed)) else { return };
    let Some(places) = scope.two() else {
        println!("\nQEMU's virtio-iommu: not measured, this process may use one CPU only.");
        return;
    };
    print_head("QEMU's own virtio-iommu, driven by qtest; driver and QEMU on two CPUs.");
    for &live in &scope.live {
        Bench::over(driver(&program, places), ENDPOINT, live).print(scope);
    }
}

/// A driver of a machine that has just been started; it holds the machine.
fn driver(program: &Program, places: Places) -> Driver {
    let window = Window { start: 0, bytes: RAM_BYTES, offset: 0 };
    let shared = GuestRam::new(&[window]).unwrap();
    let ram = map(&shared.path());
    // the machine's threads run where the one that starts them does
    pin(None, places.daemon);
    let mut machine = Emulator::start(program, &shared, &MACHINE).unwrap();
    pin(None, places.driver);
    let requests = Queue::new(&ram, REQUEST_QUEUE_AT, QUEUE_SIZE);
    let events = Queue::new(&ram, EVENT_QUEUE_AT, QUEUE_SIZE);
    start_device(&mut machine, &[&requests, &events]);
    let kick = move |_: &Queue| {
        machine.run(Batch::new().write16(NOTIFY, 0)).unwrap();
    };
    Driver::new(ram, requests, Wait::Look, Box::new(kick))
}

fn map(path: &Path) -> GuestMemoryMmap {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let range = (GuestAddress(0), RAM_BYTES as usize, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).unwrap()
}

/// What a driver does before it uses a device (virtio 1.4, 3.1.1).
fn start_device(machine: &mut Emulator, queues: &[&Queue]) {
    place_registers(machine);
    let mut batch = Batch::new();
    for status in &STATUSES[..2] {
        batch.write8(common::STATUS, *status);
    }
    for (half, features) in (0..).zip(FEATURES) {
        batch.write32(common::DRIVER_FEATURE_SELECT, half);
        batch.write32(common::DRIVER_FEATURE, features);
    }
    batch.write8(common::STATUS, STATUSES[2]);
    for (index, queue) in (0..).zip(queues) {
        batch.write16(common::QUEUE_SELECT, index).write16(common::QUEUE_SIZE, queue.size);
        for (register, address) in [
            (common::QUEUE_DESCRIPTORS, queue.table),
            (common::QUEUE_AVAILABLE, queue.available),
            (common::QUEUE_USED, queue.used),
        ] {
            batch.write32(register, address as u32).write32(register + 4, 0);
        }
        batch.write16(common::QUEUE_ENABLE, 1);
    }
    batch.write8(common::STATUS, STATUSES[3]);
    batch.read32(common::STATUS);
    let status = machine.ask(&batch).unwrap();
    assert_eq!(status & 0xff, u64::from(STATUSES[3]), "QEMU's device has started");
}

/// Gives the registers an address and lets the device do DMA.
fn place_registers(machine: &mut Emulator) {
    // sets BAR 0 and the command register; the registers' BAR is set while nothing uses it
    let mut batch = Batch::new();
    let address = |register: u32| 1 << 31 | u32::from(IOMMU.bdf()) << 8 | register;
    for (register, value) in [(0x20, BAR as u32), (0x24, 0)] {
        batch.out32(0xcf8, address(register)).out32(0xcfc, value);
    }
    machine.run(&batch).unwrap();
    IOMMU.enable(machine, Config::Ports).unwrap();
}

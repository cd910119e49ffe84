//! The whole device behind its socket, driven as QEMU and a guest's driver do.

mod hostile;
mod machine;
mod translated;

use std::io::Write;
use std::sync::Arc;

use super::disk::Disk;
use super::support::DmaPort;
use super::support::rig::Served;
use machine::{DATA, FEATURES, HEADER, Machine, STATUS};

/// Sectors of the disk that the tests use.
const SECTORS: u64 = 64;

const READ: u32 = 0;
const WRITE: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;

const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

/// An image whose sector n is filled with n + 1, and its name's owner.
fn image() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for sector in 1..=SECTORS {
        file.write_all(&[sector.to_le_bytes()[0]; 512]).unwrap();
    }
    file
}

/// Serves the image, whose DMA goes straight to memory, to `clients` VMMs.
fn serve(image: &tempfile::NamedTempFile, read_only: bool, clients: usize) -> Served {
    serve_through(image, read_only, clients, DmaPort::connect(None).unwrap())
}

fn serve_through(
    image: &tempfile::NamedTempFile,
    read_only: bool,
    clients: usize,
    dma: DmaPort,
) -> Served {
    let disk = Disk::open(image.path(), read_only).unwrap();
    Served::new(super::function(disk, Arc::new(dma), 2).unwrap(), clients)
}

/// A machine whose driver is up, on a fresh writable disk.
fn started() -> (Served, Machine, tempfile::NamedTempFile) {
    let image = image();
    let served = serve(&image, false, 1);
    let mut machine = Machine::new(&served);
    machine.start(FEATURES);
    (served, machine, image)
}

/// Ends the device; a test that leaves it out would not see its thread panic.
fn end(served: Served, machine: Machine) {
    machine.vmm.leave();
    served.join();
}

#[test]
fn the_function_says_that_it_is_a_modern_virtio_disk() {
    let (served, mut machine, _image) = started();
    assert_eq!(machine.vmm.read_config(0, 4), [0xf4, 0x1a, 0x42, 0x10]);
    assert_eq!(machine.vmm.read_config(9, 3), [0, 0, 1]);
    // MSI-X, then the four virtio structures by kind
    let chain: Vec<(u8, u8)> = {
        let config = machine.vmm.read_config(0, 256);
        let mut at = usize::from(config[0x34]);
        std::iter::from_fn(|| {
            let (id, next) = (at != 0).then(|| (config[at], config[at + 1]))?;
            let kind = if id == 9 { config[at + 3] } else { 0 };
            at = usize::from(next);
            Some((id, kind))
        })
        .collect()
    };
    assert_eq!(chain, [(0x11, 0), (9, 1), (9, 2), (9, 3), (9, 4)]);
    let configuration = machine.vmm.read_bar(0x2000, 36);
    assert_eq!(configuration[..8], SECTORS.to_le_bytes());
    assert_eq!(configuration[34..], [2, 0]);
    end(served, machine);
}

#[test]
fn features_that_were_not_offered_or_lack_version_1_are_refused() {
    let (served, mut machine, _image) = started();
    for features in [FEATURES | 1 << 27, FEATURES & !(1 << 32)] {
        machine.set_status(0);
        machine.set_status(3);
        machine.accept(features);
        machine.set_status(0x0b);
        assert_eq!(machine.status(), 3, "{features:#x}");
    }
    end(served, machine);
}

#[test]
fn what_is_written_is_read_again_across_scattered_buffers() {
    let (served, mut machine, image) = started();
    let pattern: Vec<u8> = (0..=250).cycle().take(2048).collect();
    machine.vmm.write_ram(DATA, &pattern);
    let pieces = [(DATA, 1000, false), (DATA + 1000, 24, false), (DATA + 1024, 1024, false)];
    assert_eq!(machine.request(WRITE, 5, &pieces), (OK, 1));
    assert_eq!(machine.request(FLUSH, 0, &[]), (OK, 1));
    let on_disk = std::fs::read(image.path()).unwrap();
    assert_eq!(on_disk[5 * 512..9 * 512], pattern);
    assert_eq!(on_disk[9 * 512], 10);

    let back = DATA + 0x4000;
    let pieces = [(back + 7, 1500, true), (back + 0x1000, 548, true)];
    assert_eq!(machine.request(READ, 5, &pieces), (OK, 2049));
    assert_eq!(machine.vmm.read_ram(back + 7, 1500), pattern[..1500]);
    assert_eq!(machine.vmm.read_ram(back + 0x1000, 548), pattern[1500..]);
    end(served, machine);
}

#[test]
fn both_queues_serve_without_indirect_descriptors_and_event_index() {
    let (served, mut machine, _image) = started();
    machine.start(1 << 32);
    for queue in [1, 0] {
        machine.vmm.write_ram(HEADER, &[0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        // the header in two parts, and status in one buffer with the data
        let buffers = [(HEADER, 5, false), (HEADER + 5, 11, false), (DATA, 513, true)];
        assert_eq!(machine.serve(queue, &buffers, false), 513);
        let mut expected = vec![4; 512];
        expected.push(OK);
        assert_eq!(machine.vmm.read_ram(DATA, 513), expected);
    }
    end(served, machine);
}

#[test]
fn the_id_is_cut_to_the_room_there_is() {
    let (served, mut machine, _image) = started();
    assert_eq!(machine.request(GET_ID, 0, &[(DATA, 20, true)]), (OK, 21));
    assert_eq!(machine.vmm.read_ram(DATA, 20), *b"vfio-user-blk\0\0\0\0\0\0\0");
    assert_eq!(machine.request(GET_ID, 0, &[(DATA + 64, 4, true)]), (OK, 5));
    assert_eq!(machine.vmm.read_ram(DATA + 64, 5), *b"vfio\0");
    end(served, machine);
}

#[test]
fn a_request_that_cannot_be_done_fails_alone() {
    let (served, mut machine, image) = started();
    let sector = [(DATA, 512, true)];
    let bad = [
        (READ, SECTORS, &sector[..], IO_ERROR),
        (READ, u64::MAX, &sector, IO_ERROR),
        (READ, SECTORS - 1, &[(DATA, 1024, true)], IO_ERROR),
        (READ, 0, &[(DATA, 100, true)], IO_ERROR),
        (READ, 0, &[(0x10, 512, true)], IO_ERROR),
        (READ, 0, &[(u64::MAX - 100, 512, true)], IO_ERROR),
        (WRITE, 0, &[(0x10, 512, false)], IO_ERROR),
        (WRITE, SECTORS, &[(DATA, 512, false)], IO_ERROR),
        (READ, 0, &[(DATA, 0xffff_fe00, true)], IO_ERROR),
        (11, 0, &[], UNSUPPORTED),
        (u32::MAX, 0, &[], UNSUPPORTED),
    ];
    for (kind, sector, data, status) in bad {
        assert_eq!(machine.request(kind, sector, data), (status, 1), "{kind} {sector} {data:x?}");
    }
    assert_eq!(machine.request(READ, 0, &sector), (OK, 513));
    assert_eq!(std::fs::read(image.path()).unwrap()[..512], [1; 512]);
    end(served, machine);
}

#[test]
fn a_chain_too_short_for_a_request_is_given_back_unwritten() {
    let (served, mut machine, _image) = started();
    assert_eq!(machine.serve(0, &[(HEADER, 16, false)], false), 0);
    machine.vmm.write_ram(STATUS, &[0xee]);
    assert_eq!(machine.serve(0, &[(HEADER, 15, false), (STATUS, 1, true)], false), 1);
    assert_eq!(machine.vmm.read_ram(STATUS, 1), [IO_ERROR]);
    end(served, machine);
}

#[test]
fn a_read_only_disk_says_so_and_refuses_writes() {
    let image = image();
    let served = serve(&image, true, 1);
    let mut machine = Machine::new(&served);
    machine.start(FEATURES | 1 << 5);
    assert_eq!(machine.request(WRITE, 0, &[(DATA, 512, false)]), (IO_ERROR, 1));
    assert_eq!(machine.request(READ, 1, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(machine.vmm.read_ram(DATA, 512), [2; 512]);
    end(served, machine);
}

#[test]
fn the_disk_serves_again_after_a_reset_and_for_the_next_vmm() {
    let image = image();
    let served = serve(&image, false, 2);
    let mut machine = Machine::new(&served);
    machine.start(FEATURES);
    assert_eq!(machine.request(READ, 0, &[(DATA, 512, true)]), (OK, 513));
    machine.vmm.reset_function();
    assert_eq!(machine.status(), 0);
    machine.vmm.leave();

    let mut next = Machine::new(&served);
    assert_eq!(next.status(), 0);
    next.start(FEATURES);
    assert_eq!(next.request(READ, 2, &[(DATA, 512, true)]), (OK, 513));
    assert_eq!(next.vmm.read_ram(DATA, 512), [3; 512]);
    end(served, next);
}

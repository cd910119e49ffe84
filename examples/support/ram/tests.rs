//! Tests of guest memory.

use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::thread;

use vm_memory::Bytes;

use super::*;

const PAGE: u64 = 4096;

fn file(pages: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(pages * PAGE).unwrap();
    file
}

fn piece(address: u64, pages: u64, file_offset: u64, flags: DmaMapFlags) -> Piece {
    Piece { address, bytes: pages * PAGE, file_offset, flags }
}

fn read_write(address: u64, pages: u64) -> Piece {
    piece(address, pages, 0, DmaMapFlags::READ_WRITE)
}

#[test]
fn a_piece_shows_its_file_from_the_offset_on() {
    let (ram, file) = (GuestRam::default(), file(3));
    let at_page_1 = piece(0x10_0000, 2, PAGE, DmaMapFlags::READ_WRITE);
    ram.map(&at_page_1, Some(file.try_clone().unwrap())).unwrap();
    ram.read().write_slice(b"seen", GuestAddress(0x10_0ffe)).unwrap();
    let mut seen = [0; 4];
    file.read_exact_at(&mut seen, PAGE + 0xffe).unwrap();
    assert_eq!(&seen, b"seen");
}

#[test]
fn an_access_crosses_adjacent_pieces_and_stops_at_the_first_hole() {
    let ram = GuestRam::default();
    ram.map(&read_write(0, 1), Some(file(1))).unwrap();
    ram.map(&read_write(PAGE, 1), Some(file(1))).unwrap();
    let now = ram.read();
    now.write_slice(&[7; 16], GuestAddress(PAGE - 8)).unwrap();
    assert!(now.check_range(GuestAddress(0), 8192, Permissions::ReadWrite));
    assert!(!now.check_range(GuestAddress(0), 8193, Permissions::Read));
    assert!(!now.check_range(GuestAddress(u64::MAX), 2, Permissions::Read));
    assert_eq!(now.write(&[7; 16], GuestAddress(2 * PAGE - 8)).unwrap(), 8);
}

#[test]
fn a_read_only_piece_is_read_and_never_written() {
    let ram = GuestRam::default();
    ram.map(&piece(0, 1, 0, DmaMapFlags::READ), Some(file(1))).unwrap();
    let now = ram.read();
    assert_eq!(now.read_obj::<u64>(GuestAddress(0)).unwrap(), 0);
    assert!(now.write_obj(1u64, GuestAddress(0)).is_err());
    assert!(!now.check_range(GuestAddress(0), 1, Permissions::ReadWrite));
}

#[test]
fn a_rom_without_a_file_is_accepted_and_holds_nothing() {
    let ram = GuestRam::default();
    let rom = piece(0xc_0000, 4, 0, DmaMapFlags::READ);
    ram.map(&rom, None).unwrap();
    assert!(!ram.read().check_range(GuestAddress(0xc_0000), 1, Permissions::Read));
    ram.unmap(DmaUnmapFlags::empty(), rom.address, rom.bytes).unwrap();
}

#[test]
fn memory_may_vanish_and_come_back_in_other_pieces() {
    let (ram, file) = (GuestRam::default(), file(4));
    let map = |piece| ram.map(&piece, Some(file.try_clone().unwrap())).unwrap();
    map(read_write(0, 4));
    ram.read().write_obj(0x55u8, GuestAddress(3 * PAGE)).unwrap();
    ram.unmap(DmaUnmapFlags::empty(), 0, 4 * PAGE).unwrap();
    assert!(!ram.read().check_range(GuestAddress(0), 1, Permissions::Read));
    map(piece(0, 2, 0, DmaMapFlags::READ_WRITE));
    map(piece(2 * PAGE, 1, 2 * PAGE, DmaMapFlags::READ));
    map(piece(3 * PAGE, 1, 3 * PAGE, DmaMapFlags::READ_WRITE));
    assert_eq!(ram.read().read_obj::<u8>(GuestAddress(3 * PAGE)).unwrap(), 0x55);
    ram.unmap(DmaUnmapFlags::UNMAP_ALL, 0, 0).unwrap();
    assert!(!ram.read().check_range(GuestAddress(0), 1, Permissions::Read));
}

#[test]
fn refused_changes_change_nothing() {
    let ram = GuestRam::default();
    ram.map(&read_write(PAGE, 2), Some(file(2))).unwrap();
    let refused = [
        ram.map(&read_write(0, 2), Some(file(2))),
        ram.map(&read_write(u64::MAX - PAGE + 1, 2), Some(file(2))),
        ram.map(&read_write(0, 0), Some(file(1))),
        ram.map(&read_write(0x10_0000, 2), Some(file(1))),
        ram.unmap(DmaUnmapFlags::empty(), PAGE, PAGE),
        ram.unmap(DmaUnmapFlags::empty(), PAGE, 0),
        ram.unmap(DmaUnmapFlags::empty(), u64::MAX, 2),
    ];
    assert!(refused.iter().all(Result::is_err), "{refused:?}");
    let now = ram.read();
    assert!(now.check_range(GuestAddress(PAGE), 8192, Permissions::ReadWrite));
    assert_eq!((now.generation(), now.pieces.num_regions()), (1, 1));
}

#[test]
fn an_unmap_waits_for_whoever_looks_at_the_memory() {
    let ram = GuestRam::default();
    ram.map(&read_write(0, 1), Some(file(1))).unwrap();
    let (send, done) = mpsc::channel();
    thread::scope(|scope| {
        let now = ram.read();
        scope.spawn(|| send.send(ram.unmap(DmaUnmapFlags::empty(), 0, PAGE)).unwrap());
        assert!(done.recv_timeout(Duration::from_millis(50)).is_err());
        now.write_obj(1u8, GuestAddress(0)).unwrap();
        drop(now);
        done.recv().unwrap().unwrap();
    });
}

#[test]
fn a_change_wakes_who_waits_for_one() {
    let ram = GuestRam::default();
    assert!(!ram.wait_for_change(0, Duration::ZERO));
    thread::scope(|scope| {
        let waiter = scope.spawn(|| ram.wait_for_change(0, Duration::from_secs(60)));
        ram.map(&read_write(0, 1), Some(file(1))).unwrap();
        assert!(waiter.join().unwrap());
    });
}

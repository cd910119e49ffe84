//! A driver, or a VMM in the middle of changing memory, that leaves the device nothing to stand on.

use super::machine::{Machine, QUEUE_SIZE, RAM, RAM_BYTES, RINGS};
use super::*;

const NEEDS_RESET: u8 = 0x40;

/// The device gives up on its ring, says so, and is usable after a reset.
fn expect_needs_reset(machine: &mut Machine) {
    machine.vmm.wait(0);
    assert_eq!(machine.status(), 0x0f | NEEDS_RESET);
    machine.notify(0);
    machine.start(FEATURES);
    assert_eq!(machine.status(), 0x0f);
    assert_eq!(machine.request(READ, 0, &[(DATA, 512, true)]), (OK, 513));
}

#[test]
fn chains_that_do_not_end_or_are_out_of_order_need_a_reset() {
    let (served, mut machine, _image) = started();
    let chains: [&[(u64, u32, u16, u16)]; 6] = [
        // a loop
        &[(HEADER, 16, 1, 0)],
        // the next descriptor does not exist
        &[(HEADER, 16, 1, QUEUE_SIZE)],
        // an indirect table in no memory, with no entries, with part of one
        &[(0x1000, 32, 4, 0)],
        &[(HEADER, 0, 4, 0)],
        &[(HEADER, 17, 4, 0)],
        // a readable buffer behind a writable one
        &[(STATUS, 1, 3, 1), (HEADER, 16, 0, 0)],
    ];
    for chain in chains {
        for (n, descriptor) in (0..).zip(chain) {
            machine.write_descriptor(RINGS, n, *descriptor);
        }
        machine.publish(0, 0);
        machine.notify(0);
        expect_needs_reset(&mut machine);
    }
    end(served, machine);
}

#[test]
fn an_indirect_table_inside_another_or_longer_than_a_request_needs_a_reset() {
    let (served, mut machine, _image) = started();
    machine.write_descriptor(RINGS, 0, (DATA, 16, 4, 0));
    machine.write_descriptor(DATA, 0, (DATA, 16, 4, 0));
    machine.publish(0, 0);
    machine.notify(0);
    expect_needs_reset(&mut machine);

    let buffers = vec![(HEADER, 1, false); 129];
    machine.post(0, &buffers, true);
    machine.notify(0);
    expect_needs_reset(&mut machine);
    assert_eq!(machine.serve(0, &buffers[..128], true), 0);
    end(served, machine);
}

#[test]
fn an_available_index_that_jumps_needs_a_reset() {
    let (served, mut machine, _image) = started();
    machine.set_available(0, QUEUE_SIZE + 1);
    machine.notify(0);
    expect_needs_reset(&mut machine);
    end(served, machine);
}

#[test]
fn a_head_that_does_not_exist_needs_a_reset() {
    let (served, mut machine, _image) = started();
    machine.publish(0, QUEUE_SIZE);
    machine.notify(0);
    expect_needs_reset(&mut machine);
    end(served, machine);
}

#[test]
fn rings_outside_memory_need_a_reset() {
    let (served, mut machine, _image) = started();
    for ring in [0x1000, RAM + RAM_BYTES - 2, u64::MAX - 0xf] {
        machine.set_status(0);
        machine.set_status(3);
        machine.accept(FEATURES);
        machine.set_status(0x0b);
        machine.write_common(0x10, &0u16.to_le_bytes());
        machine.write_common(0x28, &(ring & !1).to_le_bytes());
        machine.write_common(0x30, &(ring & !3).to_le_bytes());
        machine.write_common(0x1c, &1u16.to_le_bytes());
        machine.set_status(0x0f);
        machine.notify(0);
        expect_needs_reset(&mut machine);
    }
    end(served, machine);
}

#[test]
fn misaligned_rings_need_a_reset_at_once() {
    let (served, mut machine, _image) = started();
    machine.set_status(0);
    machine.set_status(3);
    machine.accept(FEATURES);
    machine.set_status(0x0b);
    machine.write_common(0x10, &0u16.to_le_bytes());
    machine.write_common(0x20, &(RAM + 8).to_le_bytes());
    machine.write_common(0x1c, &1u16.to_le_bytes());
    machine.set_status(0x0f);
    expect_needs_reset(&mut machine);
    end(served, machine);
}

#[test]
fn memory_that_is_gone_for_a_moment_is_waited_for() {
    let (served, mut machine, _image) = started();
    let sector = [(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)];
    machine.vmm.write_ram(HEADER, &[0; 16]);
    machine.post(0, &sector, false);
    machine.vmm.unmap_ram();
    machine.notify(0);
    machine.vmm.map_ram();
    machine.vmm.wait(1);
    assert_eq!(machine.used(0), (0, 513));
    assert_eq!(machine.status(), 0x0f);
    end(served, machine);
}

#[test]
fn registers_take_any_access() {
    let (served, mut machine, _image) = started();
    for offset in (0..0x4000).step_by(509).chain([0x37, 0x38, 0xfff, 0x3fff, u64::MAX]) {
        for bytes in [1, 2, 3, 8, 64] {
            machine.vmm.read_bar(offset, bytes);
            machine.write_common(offset, &vec![0xff; bytes]);
        }
    }
    machine.start(FEATURES);
    assert_eq!(machine.request(READ, 0, &[(DATA, 512, true)]), (OK, 513));
    end(served, machine);
}

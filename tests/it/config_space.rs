//! The configuration space: any offset, any size, and the one byte that can be written.

use crate::support::daemon::Daemon;
use crate::support::guest::{ENDPOINT, Guest};
use crate::support::vmm::{LINUX_FEATURES, Vmm};
use crate::support::wire::{Config, OK};

const DEFAULT: Config = Config {
    page_size_mask: 0x4020_1000,
    input_start: 0,
    input_end: 0xffff_ffff_ffff,
    domain_start: 0,
    domain_end: u32::MAX,
    probe_size: 512,
    bypass: 1,
};

#[test]
fn the_default_is_48_bits_three_page_sizes_and_boot_bypass() {
    let daemon = Daemon::start();
    assert_eq!(Vmm::connect(&daemon).config(), DEFAULT);
}

#[test]
fn options_show_in_the_space() {
    let options = ["--input-bits", "39", "--page-sizes", "0x201000", "--boot-bypass", "off"];
    let daemon = Daemon::with(&options);
    let expected =
        Config { page_size_mask: 0x20_1000, input_end: 0x7f_ffff_ffff, bypass: 0, ..DEFAULT };
    assert_eq!(Vmm::connect(&daemon).config(), expected);
}

#[test]
fn every_offset_and_size_reads_that_part() {
    let daemon = Daemon::start();
    let mut vmm = Vmm::connect(&daemon);
    let whole = vmm.read_config(0, 40).unwrap();
    for offset in 0..40_u32 {
        for bytes in [1, 2, 3, 4, 8, 40 - offset] {
            let end = (offset + bytes).min(40) as usize;
            let mut expected = whole[offset as usize..end].to_vec();
            expected.resize(bytes as usize, 0);
            assert_eq!(vmm.read_config(offset, bytes).unwrap(), expected, "{bytes} at {offset}");
        }
    }
}

#[test]
fn bypass_is_written_as_one_byte_or_with_the_whole_space() {
    let daemon = Daemon::start();
    let mut vmm = Vmm::connect(&daemon);
    vmm.write_bypass(0).unwrap();
    assert_eq!(vmm.config().bypass, 0);
    vmm.write_config(36, &[1]).unwrap();
    assert_eq!(vmm.config(), DEFAULT);
}

#[test]
fn a_bypass_of_2_is_refused_and_the_connection_stays() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    assert!(guest.vmm.write_bypass(2).is_err());
    assert!(guest.vmm.write_config(36, &[0xff]).is_err());
    assert_eq!(guest.vmm.config(), DEFAULT);
    assert_eq!(guest.attach(1, ENDPOINT), OK);
}

#[test]
fn other_fields_do_not_change() {
    let daemon = Daemon::start();
    let mut vmm = Vmm::connect(&daemon);
    for offset in (0..40).filter(|offset| *offset != 36) {
        vmm.write_config(offset, &[0x55]).unwrap();
    }
    assert_eq!(vmm.config(), DEFAULT);
    assert!(vmm.write_config(36, &[1; 5]).is_err(), "past the end");
}

#[test]
fn a_driver_that_did_not_accept_it_cannot_write_bypass() {
    let daemon = Daemon::start();
    let mut guest = Guest::with_features(&daemon, LINUX_FEATURES & !(1 << 6));
    guest.vmm.write_bypass(0).unwrap();
    assert_eq!(guest.vmm.config(), DEFAULT);
}

#[test]
fn bypass_outlives_a_device_reset_but_not_the_front_end() {
    let daemon = Daemon::start();
    let mut guest = Guest::start(&daemon);
    guest.vmm.write_bypass(0).unwrap();
    let mut guest = guest.reboot();
    assert_eq!(guest.vmm.config().bypass, 0);
    drop(guest);
    assert_eq!(Vmm::connect(&daemon).config().bypass, 1);
}

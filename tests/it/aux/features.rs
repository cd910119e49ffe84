//! What is offered, and what a driver that did not accept it meets; properties (AX1 to AX3, AX45,
//! AX46).

use super::wire::{self, AUX, BIND_TABLE};
use super::*;
use crate::support::guest::UNTOUCHED;
use crate::support::vmm::Vmm;
use vhost::VhostBackend;

/// A daemon for one endpoint with this option.
fn offered(arch: &str, endpoint: &str) -> u64 {
    let folder = tempfile::Builder::new().prefix("viommu-it-").tempdir().unwrap();
    let daemon = Daemon::in_folder(folder, &["--arch", arch, "--endpoint", endpoint]);
    Vmm::connect(&daemon).front_end.get_features().unwrap() & !LINUX_FEATURES & !(1 << 5)
}

#[test]
fn ax1_the_extension_is_offered_where_an_endpoint_has_pasids() {
    for arch in ["vtd", "smmuv3"] {
        assert_eq!(offered(arch, "00:02.0"), 0, "{arch}");
        assert_eq!(offered(arch, "00:02.0,pasid-bits=0"), 0, "{arch}");
        for bits in [1, 8, 20] {
            let spec = format!("00:02.0,pasid-bits={bits}");
            assert_eq!(offered(arch, &spec), AUX | BIND_TABLE, "{arch}, {bits} bits");
        }
    }
}

#[test]
fn ax2_a_request_whose_feature_was_not_accepted_is_left_untouched() {
    let rig = Rig::start(Arch::Vtd, &[]);
    let Rig { daemon, guest, .. } = rig;
    drop(guest);
    for features in [0, AUX, BIND_TABLE] {
        let mut guest = Guest::with_features(&daemon, LINUX_FEATURES | features);
        for (kind, _, writable) in wire::SIZES {
            let needs = if kind <= 0x44 { AUX } else { BIND_TABLE };
            let answer = guest.send(&wire::message(kind, &[(4, ENDPOINT)]), writable);
            let untouched = answer.used == 0 && answer.bytes.iter().all(|byte| *byte == UNTOUCHED);
            assert_eq!(untouched, features & needs == 0, "{kind:#x} with {features:#x}");
        }
    }
    let without_map = (LINUX_FEATURES | AUX | BIND_TABLE) & !(1 << 2);
    let mut guest = Guest::with_features(&daemon, without_map);
    for (kind, _, writable) in wire::SIZES {
        assert_eq!(guest.send(&wire::message(kind, &[(4, ENDPOINT)]), writable).used, 0);
    }
}

#[test]
fn ax3_page_responses_and_tables_of_pasids_are_unknown_requests() {
    in_both(|mut rig| {
        for kind in [0x48, 0x49, 0x4a] {
            let mut request = vec![0; 64];
            request[0] = kind;
            let answer = rig.guest.send(&request, 12);
            assert_eq!((answer.used, answer.bytes), (0, vec![UNTOUCHED; 12]), "{kind:#x}");
        }
    });
}

/// The properties of a PROBE, one after the other: type and content.
fn properties(guest: &mut Guest, endpoint: u32) -> Vec<(u16, Vec<u8>)> {
    let (status, bytes) = guest.probe(endpoint);
    assert_eq!(status, OK);
    let half = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
    let (mut at, mut all) = (0, Vec::new());
    while half(at) != 0 {
        let end = at + 4 + usize::from(half(at + 2));
        all.push((half(at), bytes[at + 4..end].to_vec()));
        at = end;
    }
    all
}

#[test]
fn ax45_property_aux_tells_the_width_and_whether_each_pasid_has_a_second_level_of_its_own() {
    in_both(|mut rig| {
        let all = properties(&mut rig.guest, ENDPOINT);
        let aux: Vec<_> = all.iter().filter(|(kind, _)| *kind == 0xf00).collect();
        // PARENT, IDENTITY_S2 and PASID_ANY; OWN_S2
        let flags = if rig.arch == Arch::Vtd { 0b1111 } else { 0b1110 };
        assert_eq!(aux, [&(0xf00, vec![PASID_BITS as u8, 0, 0, 0, flags, 0, 0, 0])]);
        let plain = properties(&mut rig.guest, PLAIN);
        assert!(plain.iter().all(|(kind, _)| *kind != 0xf00), "{plain:x?}");
    });
}

#[test]
fn ax46_property_table_format_names_what_the_tables_of_the_flavour_can_be() {
    in_both(|mut rig| {
        let all = properties(&mut rig.guest, ENDPOINT);
        let format = all.iter().find(|(kind, _)| *kind == 0xf01).unwrap();
        let [low, high, input, output, rest @ ..] = &format.1[..] else { panic!("{format:x?}") };
        let (mask, flags) = rest.split_at(8);
        let number = if rig.arch == Arch::Vtd { 1 } else { 2 };
        assert_eq!((u16::from_le_bytes([*low, *high]), flags), (number, &[0; 8][..]));
        assert!(*input >= 48 && *output >= 40, "{input} bits to {output}");
        assert_ne!(u64::from_le_bytes(mask.try_into().unwrap()) & 0x1000, 0, "pages of 4 KiB");
    });
}

#[test]
fn ax45_ax46_a_driver_without_the_features_is_told_nothing_new() {
    let Rig { daemon, guest, .. } = Rig::start(Arch::Vtd, &[]);
    drop(guest);
    let kinds = |features| {
        let mut guest = Guest::with_features(&daemon, LINUX_FEATURES | features);
        let mut kinds: Vec<_> =
            properties(&mut guest, ENDPOINT).into_iter().map(|(kind, _)| kind).collect();
        kinds.dedup();
        kinds
    };
    assert_eq!(kinds(0), [1]);
    assert_eq!(kinds(AUX), [1, 0xf00]);
    assert_eq!(kinds(BIND_TABLE), [1, 0xf01]);
    assert_eq!(kinds(AUX | BIND_TABLE), [1, 0xf00, 0xf01]);
}

//! What holds for every request of the extension (AX4 to AX7).

use super::*;
use crate::support::guest::UNTOUCHED;
use crate::support::wire::{INVAL, NOENT, UNSUPP};

#[test]
fn ax4_a_request_that_is_too_short_on_either_side_is_left_untouched() {
    in_both(|mut rig| {
        for (kind, readable, writable) in wire::SIZES {
            let whole = wire::message(kind, &[(4, NOBODY)]);
            let short = rig.guest.send(&whole[..readable - 1], writable);
            assert_eq!((short.used, short.bytes), (0, vec![UNTOUCHED; writable as usize]));
            let narrow = rig.guest.send(&whole, writable - 1);
            assert_eq!((narrow.used, narrow.bytes), (0, vec![UNTOUCHED; writable as usize - 1]));
        }
    });
}

#[test]
fn ax5_a_reserved_byte_that_is_not_0_refuses_the_request() {
    // of endpoints and domains that do not exist, so that only the bytes can make it INVAL
    let reserved: [(u8, &[usize]); 8] = [
        (0x40, &[8, 15]),
        (0x41, &[8, 15]),
        (0x42, &[20, 23]),
        (0x43, &[16, 23]),
        (0x44, &[14, 23]),
        (0x45, &[10, 11, 44, 63]),
        (0x46, &[8, 15]),
        (0x47, &[36, 47]),
    ];
    in_both(|mut rig| {
        let table = rig.arch.table(0x7000);
        for (kind, places) in reserved {
            let sound = match kind {
                0x42 => wire::attach(1, NOBODY, 1, 0),
                0x43 => wire::detach(1, NOBODY, 1),
                0x44 => wire::get_attr(1, NOBODY, wire::AUX_ID),
                0x45 => wire::bind(1, table, wire::PARENT, 2),
                0x47 => wire::invalidate(1, 0, 0, 0),
                _ => wire::message(kind, &[(4, NOBODY)]),
            };
            assert_eq!(rig.send(&sound), NOENT, "{kind:#x}");
            for at in places {
                let mut request = sound.clone();
                request[*at] = 1;
                assert_eq!(rig.send(&request), INVAL, "{kind:#x}, byte {at}");
            }
        }
    });
}

#[test]
fn ax6_a_refused_request_is_answered_whole_with_fields_of_0() {
    in_both(|mut rig| {
        assert_eq!(rig.answer(&wire::attach(1, NOBODY, 7, 0)), (NOENT, vec![0; 8]));
        assert_eq!(rig.answer(&wire::get_attr(1, NOBODY, wire::AUX_ID)), (NOENT, vec![0; 8]));
        assert_eq!(rig.answer(&wire::attach(1, ENDPOINT, 0, 0)), (INVAL, vec![0; 8]));
    });
}

#[test]
fn ax7_the_first_check_that_hits_decides_and_nothing_changes() {
    in_both(|mut rig| {
        let worst = |endpoint, pasid, flags| wire::attach(1, endpoint, pasid, flags);
        assert_eq!(rig.send(&worst(NOBODY, 0, 2)), INVAL, "bytes before NOENT");
        assert_eq!(rig.send(&worst(NOBODY, 0x10_0000, 1)), NOENT, "NOENT before UNSUPP");
        assert_eq!(rig.send(&worst(PLAIN, 0x10_0000, 0)), UNSUPP, "UNSUPP before the state");
        assert_eq!(rig.send(&worst(ENDPOINT, 0x10_0000, 1)), UNSUPP);
        assert_eq!(rig.send(&worst(ENDPOINT, 0x10_0000, 0)), INVAL, "the state");
        let table = wire::Table { root: 0x7001, ..rig.arch.table(0) };
        assert_eq!(rig.send(&wire::bind(1, table, 0, 9)), INVAL);
        assert_eq!(rig.send(&wire::bind(1, table, wire::PARENT, 9)), NOENT);
        assert_eq!(rig.send(&wire::unbind(1)), NOENT, "no domain was made");
        assert_eq!(rig.page(1, 0x1000), NOT_ATTACHED);
    });
}

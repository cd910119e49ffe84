//! The device process: each role does one thing and then waits to be told to end, or killed.

use std::io::{BufRead, Write};
use std::path::Path;

use rustix::thread::{SecureComputingMode, set_secure_computing_mode};
use viommu_iotlb::{Device, Guard};
use viommu_pgtable::{Access, Iova, IovaRange};

use crate::hostile::{device as hostile, reconnects};

/// Does what `role` says; ends when standard input does.
pub(crate) fn run(role: &str, socket: &Path) {
    match role {
        "holds-guard" => hold(socket, |guard| {
            assert!(read(guard, 0x1000));
        }),
        "holds-pin" => {
            let device = Device::connect(socket).unwrap();
            let reader = device.reader().unwrap();
            let range = IovaRange::with_len(Iova::new(0x1000), 0x1000).unwrap();
            let pin = reader.enter().unwrap().pin(None, range).unwrap();
            say("ready");
            wait_for_end();
            drop(pin);
        }
        "forges-slots" => hostile::forge_slots(socket),
        "forges-rings" => hostile::forge_rings(socket),
        "forges-faults" => hostile::forge_faults(socket),
        "floods-doorbell" => hostile::flood_doorbell(socket),
        "never-leaves" => hostile::never_leave(socket),
        "reconnects" => reconnects::reconnect(socket),
        "floods-questions" => hostile::flood_questions(socket),
        "writes-tables" => hostile::write_tables(socket),
        "blocks-doorbell" => hostile::block_doorbell(socket),
        "translates-strictly" => translate_strictly(socket),
        "reads-marks" => crate::marks::read(socket),
        other => panic!("no role {other}"),
    }
}

fn hold(socket: &Path, inside: impl FnOnce(&Guard<'_>)) {
    let device = Device::connect(socket).unwrap();
    let reader = device.reader().unwrap();
    let guard = reader.enter().unwrap();
    inside(&guard);
    say("ready");
    wait_for_end();
}

/// Pages that the daemon leaves mapped while another comes and goes.
pub(crate) const STAY: u64 = 1024;

/// The IOVA of one of them.
pub(crate) const fn stays(page: u64) -> u64 {
    (1 << 29) + (page << 12)
}

/// Sections of [`translate_strictly`], each of one access to each page that stays.
const SECTIONS: u64 = 500;

/// Translates where all system calls but reading, writing and the thread's end mean death: hits, misses,
/// faults, flushes, nested guards and pins. In the end it makes another.
fn translate_strictly(socket: &Path) {
    let device = Device::connect(socket).unwrap();
    let reader = device.reader().unwrap();
    say("ready");
    set_secure_computing_mode(SecureComputingMode::Strict).unwrap();
    let mut found = 0u64;
    for _ in 0..SECTIONS {
        let guard = reader.enter().unwrap();
        let inner = reader.try_enter().unwrap();
        found += (0..STAY).filter(|page| read(&inner, stays(*page))).count() as u64;
        let range = IovaRange::with_len(Iova::new(stays(0)), 0x1000).unwrap();
        let pin = guard.pin(None, range).unwrap();
        assert!(!read(&guard, 1 << 40), "nothing is there");
        drop((inner, guard, pin));
    }
    say(&format!("found {}", found / SECTIONS));
    // exit_group
    std::process::exit(0);
}

/// True if the page at `iova` may be read.
pub(crate) fn read(guard: &Guard<'_>, iova: u64) -> bool {
    guard.translate(None, Iova::new(iova), 8, Access::READ).all(|piece| piece.is_ok())
}

/// Tells the parent.
pub(crate) fn say(line: &str) {
    println!("{line}");
    std::io::stdout().flush().unwrap();
}

/// Returns when the parent closes our standard input.
pub(crate) fn wait_for_end() {
    let mut line = String::new();
    while std::io::stdin().lock().read_line(&mut line).unwrap() != 0 {}
}

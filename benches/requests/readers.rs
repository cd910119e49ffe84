//! UNMAP while a device process translates.
//!
//! The device process is this program again, told so by its first argument.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use viommu_iotlb::Device;
use viommu_pgtable::{Access, Iova, IovaRange};

use crate::costs::{Bench, Scope};
use crate::cpu::{Places, pin};
use crate::driver::MAX_BATCH;
use crate::figures::{head, row};
use crate::work::{PAGE, page_at};

/// The first argument of a device process; its socket, processor and habit follow.
const READER: &str = "--reader";

/// Mappings that are live, and that the readers go through.
const LIVE: usize = 16 << 10;

/// Accesses under one guard.
const SECTION: u64 = 64;

/// Where nothing is ever unmapped.
const PINNED_AT: u64 = 1 << 30;

/// A device process.
struct Reader(Child);

impl Reader {
    /// Starts one for the daemon of `bench`; it translates when this returns.
    fn start(bench: &Bench, cpu: usize, habit: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .arg(READER)
            .arg(bench.daemon().device_socket())
            .args([&cpu.to_string(), habit])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "translating\n");
        Self(child)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Prints UNMAP without a reader, with one, and with one that pins what is not unmapped.
pub(crate) fn print(scope: &Scope) {
    let Some(two) = scope.two() else {
        println!("\nUNMAP beside a reader: not measured, this process may use one CPU only.");
        return;
    };
    let here = Places { driver: two.driver, daemon: two.driver };
    println!("\nUNMAP, driver and daemon on one CPU, a device process on another one.");
    println!("Nanoseconds for each request, gross:");
    head(&["device process", "batch of 128", "batch of 1"], 1);
    for (habit, what) in [
        ("none", "none"),
        ("translates", "translates all the time, 64 accesses under a guard"),
        ("pins", "the same, and holds a pin elsewhere"),
    ] {
        let mut bench = Bench::start(here, false, LIVE);
        let reader = (habit != "none").then(|| Reader::start(&bench, two.daemon, habit));
        let batched = bench.measure(MAX_BATCH, scope.batched).unmap.gross;
        let single = bench.measure(1, scope.single).unmap.gross;
        row(&[what.to_owned(), batched.to_string(), single.to_string()]);
        drop(reader);
    }
}

/// Serves as the device process if the arguments say so; does not come back then.
pub(crate) fn translate_if_told_to() {
    let mut arguments = std::env::args().skip(1);
    if arguments.next().as_deref() != Some(READER) {
        return;
    }
    let mut next = || arguments.next().unwrap();
    let (socket, cpu, habit) = (next(), next().parse().unwrap(), next());
    pin(None, cpu);
    translate(Path::new(&socket), habit == "pins");
}

fn translate(socket: &Path, pins: bool) -> ! {
    let device = Device::connect(socket).unwrap();
    let reader = device.reader().unwrap();
    let elsewhere = IovaRange::with_len(Iova::new(PINNED_AT), PAGE).unwrap();
    let pin = pins.then(|| reader.enter().unwrap().pin(None, elsewhere).unwrap());
    println!("translating");
    let mut state = 0x1234_5678_9abc_def1_u64;
    loop {
        // the driver's end is the daemon's, and then ours
        let Ok(guard) = reader.enter() else { break };
        for _ in 0..SECTION {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let iova = Iova::new(page_at((state >> 33) % LIVE as u64));
            std::hint::black_box(guard.translate(None, iova, 64, Access::READ).next());
        }
    }
    drop(pin);
    std::process::exit(0)
}

//! Mappings that lead to another device's registers: what the test device writes through them, `edu` has in
//! its own.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;

use viommu_client::{Request, Rights, Status};

use super::load::{Replacement, domains_are_replaced};
use crate::bench::{
    Bench, Driver, EDU_AT, FOLDER, HERE, ONE, OPTIONS, READ_WRITE, SECOND, TEST, TEST_AT, THERE,
    boot,
};
use crate::daemon::Daemon;
use crate::edu::{Edu, LIVENESS_AT};
use crate::pci::Function;
use crate::ram::{PAGE, Ram};
use crate::testdev::{Ended, PATTERN, TestDevice};
use crate::vmm::Vmm;
use crate::{check, expect, wait_until};

/// Where the played guest finds the first pages of `edu`'s registers: far from its memory.
const WINDOW: u64 = 0xe000_0000;
const WINDOW_BYTES: u64 = 2 * PAGE;
const OPTION: &str = "0xe0000000-0xe0001fff,endpoint=00:05.0,bar=0";

/// Flags of MAP.
const READ: u32 = 1;
const MMIO: u32 = 4;

/// What `edu` has before a DMA.
const BEFORE: u32 = 0x0bad_cafe;

/// Who maps, who writes, and whose registers are written to.
struct Stand<'a> {
    driver: &'a mut Driver,
    test: &'a TestDevice,
    edu: &'a Edu,
    ram: &'a Ram,
}

/// iommufd: devices that a VMM shares, then devices that the daemon opens.
pub(super) fn play() -> io::Result<()> {
    check("shared", registers_of_a_shared_device_are_reached());
    for pin in ["static", "dynamic"] {
        let options = [OPTIONS, &["--mmio", OPTION, "--pin", pin]].concat();
        let mut bench = Bench::open(&options)?;
        check(pin, registers_are_reached(&mut bench));
        check("replaced", domains_are_replaced(&mut bench, Replacement::Clean));
        if pin == "dynamic" {
            check("gone", what_leads_to_a_removed_function_goes_first(&mut bench));
        }
        let Bench { daemon, driver, .. } = bench;
        drop(driver);
        daemon.end()?;
        fs::remove_dir_all(FOLDER)?;
    }
    Ok(())
}

/// A container for each device.
pub(super) fn play_type1() -> io::Result<()> {
    let options = [OPTIONS, &["--mmio", OPTION, "--host-iommu", "type1"]].concat();
    let mut bench = Bench::open(&options)?;
    check("type1", registers_are_reached(&mut bench));
    check("replaced", domains_are_replaced(&mut bench, Replacement::Clean));
    check("gone", what_leads_to_a_removed_function_goes_first(&mut bench));
    Ok(())
}

impl Stand<'_> {
    /// MAP; its status.
    fn map(&mut self, bytes: u64, to: u64, flags: u32) -> io::Result<Status> {
        let iovas = THERE..=THERE + (bytes - 1);
        let map = Request::Map { domain: ONE, iovas, to, flags };
        self.driver.send(&map).map(|answer| answer.status()).map_err(io::Error::other)
    }

    /// UNMAP of all that [`Stand::map`] maps, which has to succeed.
    fn unmap(&mut self, bytes: u64) -> io::Result<()> {
        let iovas = THERE..=THERE + (bytes - 1);
        self.driver.unmap(ONE, iovas).map_err(io::Error::other)
    }

    /// The test device writes to `edu` at [`THERE`]; how that ends, and what `edu` has then.
    fn write(&self) -> io::Result<(Ended, u32)> {
        self.edu.set_alive(BEFORE)?;
        // memory that stays as it is: the device looks there and finds no pattern
        let elsewhere = self.ram.physical(self.ram.page()?)?;
        let ended = self.test.write(THERE + LIVENESS_AT, elsewhere)?;
        Ok((ended, self.edu.alive()?))
    }

    fn reaches(&self) -> io::Result<()> {
        let written = (Ended::Elsewhere, u32::from_le_bytes(PATTERN));
        expect("the write to registers", &self.write()?, &written)
    }

    fn is_refused(&self) -> io::Result<()> {
        expect("the write to registers", &self.write()?, &(Ended::Refused, BEFORE))
    }

    /// What holds whoever has the devices.
    fn play(&mut self) -> io::Result<()> {
        self.is_refused()?;
        expect("MAP", &self.map(WINDOW_BYTES, WINDOW, READ_WRITE | MMIO)?, &Status::OK)?;
        self.reaches()?;
        self.unmap(WINDOW_BYTES)?;
        self.is_refused()?;
        expect("MAP to read", &self.map(PAGE, WINDOW, READ | MMIO)?, &Status::OK)?;
        self.is_refused()?;
        self.unmap(PAGE)?;
        // the flag tells the type of what is there; it is no right, and decides nothing
        expect("MAP without MMIO", &self.map(PAGE, WINDOW, READ_WRITE)?, &Status::OK)?;
        self.reaches()?;
        self.unmap(PAGE)?;
        for (what, bytes, to) in [
            ("MAP past the window", WINDOW_BYTES + PAGE, WINDOW),
            ("MAP from before it", PAGE + PAGE, WINDOW - PAGE),
            ("MAP beside it", PAGE, WINDOW + WINDOW_BYTES),
        ] {
            let refused = self.map(bytes, to, READ_WRITE | MMIO)?;
            expect(what, &refused, &Status::UNSUPP)?;
        }
        self.is_refused()
    }
}

/// The parts of a bench, taken apart.
fn stand(bench: &mut Bench) -> Stand<'_> {
    let Bench { driver, test, edu, ram, .. } = bench;
    Stand { driver, test, edu, ram }
}

fn registers_are_reached(bench: &mut Bench) -> io::Result<String> {
    bench.attach(ONE, TEST)?;
    // a domain lives as long as something is attached to it
    bench.attach(ONE, SECOND)?;
    let mut stand = stand(bench);
    stand.play()?;
    // who enters the domain late finds it too
    stand.driver.detach(ONE, TEST).map_err(io::Error::other)?;
    expect("MAP", &stand.map(PAGE, WINDOW, READ_WRITE | MMIO)?, &Status::OK)?;
    stand.driver.attach(ONE, TEST).map_err(io::Error::other)?;
    stand.reaches()?;
    stand.unmap(PAGE)?;
    stand.is_refused()?;
    Ok("written by DMA while mapped; not before, after, read-only or beside".to_owned())
}

/// `edu` is taken out of the machine while a mapping for the test device leads to its registers.
fn what_leads_to_a_removed_function_goes_first(bench: &mut Bench) -> io::Result<String> {
    let page = bench.ram.page()?;
    let mut stand = stand(bench);
    expect("MAP", &stand.map(PAGE, WINDOW, READ_WRITE | MMIO)?, &Status::OK)?;
    stand.reaches()?;
    bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    let function = Function::at(EDU_AT);
    let (remove, folder) = (function.file("remove"), function.file(""));
    let removal = std::thread::spawn(move || fs::write(remove, "1"));
    wait_until("the function is gone", || !folder.exists())?;
    removal.join().unwrap_or_else(|_| Err(io::Error::other("the removal panicked")))?;
    let elsewhere = bench.ram.physical(bench.ram.page()?)?;
    let ended = bench.test.write(THERE + LIVENESS_AT, elsewhere)?;
    expect("a write to registers that are gone", &ended, &Ended::Refused)?;
    bench.reaches(HERE, page)?;
    bench.unmap(ONE, THERE)?;
    let again = self::stand(bench).map(PAGE, WINDOW, READ_WRITE | MMIO)?;
    expect("MAP to registers that are gone", &again, &Status::UNSUPP)?;
    bench.unmap(ONE, HERE)?;
    Ok("what led to its registers went with the function; the rest stayed".to_owned())
}

/// The VMM has the registers at the guest's addresses, and no option names them.
fn registers_of_a_shared_device_are_reached() -> io::Result<String> {
    let [test, edu] = [TEST_AT, EDU_AT].map(Function::at);
    for function in [&test, &edu] {
        function.bind()?;
    }
    let ram = Ram::new()?;
    let vmm = Vmm::new(&[&test, &edu], &ram)?;
    vmm.show_registers(1, WINDOW, WINDOW_BYTES)?;
    let endpoint = |address: &str, device: usize| {
        let device = vmm.devices.get(device).map_or(-1, AsRawFd::as_raw_fd);
        format!("{address},vfio=fd:{device},iommufd=fd:{}", vmm.iommufd.as_raw_fd())
    };
    let (first, second) = (endpoint("00:04.0", 0), endpoint("00:05.0", 1));
    let options = ["--endpoint", &first, "--endpoint", &second, "--on-start", "block"];
    let daemon = Daemon::start("/tmp/shared", &options)?;
    let mut driver = boot(&daemon, &ram)?;
    let (test, edu) = (TestDevice::open(&test)?, Edu::open(&edu)?);
    driver.attach(ONE, TEST).map_err(io::Error::other)?;
    let mut stand = Stand { driver: &mut driver, test: &test, edu: &edu, ram: &ram };
    stand.play()?;
    // the guest stops `edu` from decoding addresses, and lets it again: a reset does the same
    expect("MAP", &stand.map(PAGE, WINDOW, READ_WRITE | MMIO)?, &Status::OK)?;
    vmm.enable(1, false)?;
    vmm.hide_registers(WINDOW, WINDOW_BYTES)?;
    vmm.enable(1, true)?;
    stand.is_refused()?;
    vmm.show_registers(1, WINDOW, WINDOW_BYTES)?;
    stand.unmap(PAGE)?;
    expect("MAP again", &stand.map(PAGE, WINDOW, READ_WRITE | MMIO)?, &Status::OK)?;
    stand.reaches()?;
    stand.unmap(PAGE)?;
    Ok("out of the VMM's address space; gone with a reset, there again when mapped again"
        .to_owned())
}

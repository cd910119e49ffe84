//! The VMM has the device, and the daemon dies: what the device reaches until the next one is there, and
//! then.

use std::io;
use std::os::fd::AsRawFd;

use viommu_client::Rights;

use super::load::{Replacement, each_write_goes_where_the_new_domain_leads};
use crate::bench::{
    Driver, HERE, ONE, TEST, TEST_AT, TWO, attach_to_bypass, boot, is_refused,
    last_page_is_reached, page_range, reaches,
};
use crate::check;
use crate::daemon::Daemon;
use crate::pci::Function;
use crate::ram::Ram;
use crate::testdev::TestDevice;
use crate::vmm::Vmm;

/// Endpoints without a device: what is attached for them keeps a domain that the device leaves.
const OTHERS: &str = "00:05.0-00:06.0";

/// The VMM's part, which outlives every daemon.
struct Machine {
    ram: Ram,
    vmm: Vmm,
    test: TestDevice,
}

impl Machine {
    fn new() -> io::Result<Self> {
        let function = Function::at(TEST_AT);
        function.bind()?;
        let ram = Ram::new()?;
        let vmm = Vmm::new(&[&function], &ram)?;
        let test = TestDevice::open(&function)?;
        Ok(Self { ram, vmm, test })
    }

    /// A daemon that has the device's descriptors.
    fn serve(&self, on_start: &str) -> io::Result<Daemon> {
        let iommufd = self.vmm.iommufd.as_raw_fd();
        let device = self.vmm.devices.first().map_or(-1, AsRawFd::as_raw_fd);
        let endpoint = format!("00:04.0,vfio=fd:{device},iommufd=fd:{iommufd}");
        let options = ["--endpoint", &endpoint, "--endpoint", OTHERS, "--on-start", on_start];
        let options = [&options[..], &["--log-level", "info"]].concat();
        Daemon::start(&format!("/tmp/{on_start}"), &options)
    }

    fn reaches(&self, iova: u64, gpa: u64) -> io::Result<()> {
        reaches(&self.test, &self.ram, iova, gpa)
    }

    fn is_refused(&self, iova: u64, gpa: u64) -> io::Result<()> {
        is_refused(&self.test, &self.ram, iova, gpa)
    }

    /// The guest attaches the device to `domain` and maps one page; nothing older is left. What is mapped
    /// goes when the driver does.
    fn attach(&self, daemon: &Daemon, domain: u32, page: u64) -> io::Result<Driver> {
        let mut driver = boot(daemon, &self.ram)?;
        driver.attach(domain, TEST).map_err(io::Error::other)?;
        self.is_refused(HERE, page)?;
        self.is_refused(page, page)?;
        let done = driver.map(domain, page_range(HERE), page, Rights::ReadWrite);
        done.map_err(io::Error::other)?;
        self.reaches(HERE, page)?;
        Ok(driver)
    }

    /// The guest attaches the device to a bypass domain, of which the daemon then knows no more.
    fn is_bypassed_once_it_is_attached_so(&self, daemon: &Daemon, page: u64) -> io::Result<()> {
        let mut driver = boot(daemon, &self.ram)?;
        self.is_refused(page, page)?;
        attach_to_bypass(&mut driver, ONE, TEST)?;
        self.reaches(page, page)
    }
}

/// How far the guest can map is what the host's IOMMU says of the VMM's devices.
pub(super) fn play_width() -> io::Result<()> {
    let machine = Machine::new()?;
    let daemon = machine.serve("block")?;
    let mut driver = machine.attach(&daemon, ONE, machine.ram.page()?)?;
    check("width", last_page_is_reached(&mut driver, &machine.test, &machine.ram));
    Ok(())
}

pub(super) fn play() -> io::Result<()> {
    let machine = Machine::new()?;
    let (first, second) = (machine.ram.page()?, machine.ram.page()?);
    machine.reaches(first, first)?;
    let daemon = machine.serve("block")?;
    let driver = machine.attach(&daemon, ONE, first)?;
    check(
        "taken",
        Ok("the VMM's attachment is replaced, pages copied out of its space".to_owned()),
    );
    daemon.kill()?;
    drop(driver);
    let kept = machine.reaches(HERE, first);
    check("killed", kept.map(|()| "the device keeps its last mappings".to_owned()));

    let daemon = machine.serve("keep")?;
    let kept = machine.reaches(HERE, first);
    let driver = machine.attach(&daemon, TWO, second)?;
    check("keep", kept.map(|()| "kept over a restart, gone when the guest attaches".to_owned()));
    daemon.kill()?;
    drop(driver);

    let daemon = machine.serve("block")?;
    let blocked = machine.is_refused(HERE, second).and_then(|()| machine.is_refused(first, first));
    let bypassed = machine.is_bypassed_once_it_is_attached_so(&daemon, first);
    let mut driver = machine.attach(&daemon, ONE, first)?;
    let told = "blocked at a restart, whatever bypass says, until the guest attaches";
    check("block", blocked.and(bypassed).map(|()| told.to_owned()));
    driver.unmap(ONE, page_range(HERE)).map_err(io::Error::other)?;
    let unmapped = machine.is_refused(HERE, first);
    check("unmapped", unmapped.map(|()| "refused after UNMAP".to_owned()));
    let Machine { ram, test, .. } = &machine;
    let clean = Replacement::Clean;
    check(
        "replaced",
        each_write_goes_where_the_new_domain_leads(ram, &mut driver, (TEST, test), clean),
    );
    Ok(())
}

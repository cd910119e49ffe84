//! What most scenarios stand on: guest memory, a daemon with the functions, a driver, and the functions'
//! own drivers.

use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;

use viommu_client::vmm::FrontEnd;
use viommu_client::{Error, Iommu, Request, Rights, Status, features};

use crate::daemon::Daemon;
use crate::edu::Edu;
use crate::pci::Function;
use crate::ram::{PAGE, Ram};
use crate::testdev::{Ended, PATTERN, TestDevice};

/// Where the functions are, here and for the guest that is played.
pub(crate) const TEST_AT: &str = "0000:00:04.0";
pub(crate) const EDU_AT: &str = "0000:00:05.0";
pub(crate) const SECOND_AT: &str = "0000:00:06.0";

/// The endpoints' numbers: bus, device and function of these addresses.
pub(crate) const TEST: u32 = 0x20;
pub(crate) const EDU: u32 = 0x28;
pub(crate) const SECOND: u32 = 0x30;

/// Domains.
pub(crate) const ONE: u32 = 1;
pub(crate) const TWO: u32 = 2;

/// IOVAs. Nothing of the guest's memory, nor of this machine's, has the same number.
pub(crate) const HERE: u64 = 0x1_4000_0000;
pub(crate) const THERE: u64 = 0x1_8000_0000;

/// The daemon's folder.
pub(crate) const FOLDER: &str = "/tmp/daemon";

/// The daemon's options: the functions are opened by it, and nothing passes that nobody allowed.
pub(crate) const OPTIONS: &[&str] = &[
    "--endpoint",
    "00:04.0,vfio=0000:00:04.0",
    "--endpoint",
    "00:05.0,vfio=0000:00:05.0",
    "--endpoint",
    "00:06.0,vfio=0000:00:06.0",
    "--boot-bypass",
    "off",
    "--log-level",
    "info",
];

/// A driver of the played guest.
pub(crate) type Driver = Iommu<FrontEnd>;

/// A daemon at work, and both ends of the DMA.
#[derive(Debug)]
pub(crate) struct Bench {
    pub(crate) ram: Arc<Ram>,
    pub(crate) daemon: Daemon,
    pub(crate) driver: Driver,
    pub(crate) test: TestDevice,
    pub(crate) edu: Edu,
}

impl Bench {
    /// Gives the functions to VFIO, starts the daemon with `options` and boots the played guest.
    ///
    /// # Errors
    /// A part of it fails.
    pub(crate) fn open(options: &[&str]) -> io::Result<Self> {
        let [test, edu, second] = [TEST_AT, EDU_AT, SECOND_AT].map(Function::at);
        for function in [&test, &edu, &second] {
            function.bind()?;
        }
        let ram = Arc::new(Ram::new()?);
        let daemon = Daemon::start(FOLDER, options)?;
        let driver = boot(&daemon, &ram)?;
        // the daemon has opened them, which took bus mastering away
        let (test, edu) = (TestDevice::open(&test)?, Edu::open(&edu)?);
        Ok(Self { ram, daemon, driver, test, edu })
    }

    /// MAP of one page, which has to succeed.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn map(
        &mut self,
        domain: u32,
        iova: u64,
        gpa: u64,
        rights: Rights,
    ) -> io::Result<()> {
        self.driver.map(domain, page_range(iova), gpa, rights).map_err(io::Error::other)
    }

    /// UNMAP of one page, which has to succeed.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn unmap(&mut self, domain: u32, iova: u64) -> io::Result<()> {
        self.driver.unmap(domain, page_range(iova)).map_err(io::Error::other)
    }

    /// ATTACH, which has to succeed.
    ///
    /// # Errors
    /// It does not.
    pub(crate) fn attach(&mut self, domain: u32, endpoint: u32) -> io::Result<()> {
        self.driver.attach(domain, endpoint).map_err(io::Error::other)
    }

    /// The test device writes to `iova`, and the pattern is then at `gpa`.
    ///
    /// # Errors
    /// It was refused, or is elsewhere.
    pub(crate) fn reaches(&self, iova: u64, gpa: u64) -> io::Result<()> {
        reaches(&self.test, &self.ram, iova, gpa)
    }

    /// The test device's write to `iova` is refused, and `gpa` stays as it is.
    ///
    /// # Errors
    /// It was done.
    pub(crate) fn is_refused(&self, iova: u64, gpa: u64) -> io::Result<()> {
        is_refused(&self.test, &self.ram, iova, gpa)
    }
}

/// The page at `iova`.
pub(crate) const fn page_range(iova: u64) -> RangeInclusive<u64> {
    iova..=iova + (PAGE - 1)
}

/// As [`Bench::reaches`], with parts of one's own.
///
/// # Errors
/// The same.
pub(crate) fn reaches(test: &TestDevice, ram: &Ram, iova: u64, gpa: u64) -> io::Result<()> {
    ram.write(gpa, &UNTOUCHED)?;
    let ended = test.write(iova, ram.physical(gpa)?)?;
    crate::expect("the DMA ended", &ended, &Ended::Done)?;
    crate::expect("memory", &ram.read(gpa, PATTERN.len())?.as_slice(), &PATTERN.as_slice())
}

/// As [`Bench::is_refused`], with parts of one's own.
///
/// # Errors
/// The same.
pub(crate) fn is_refused(test: &TestDevice, ram: &Ram, iova: u64, gpa: u64) -> io::Result<()> {
    ram.write(gpa, &UNTOUCHED)?;
    let ended = test.write(iova, ram.physical(gpa)?)?;
    crate::expect("the DMA ended", &ended, &Ended::Refused)?;
    crate::expect("memory", &ram.read(gpa, PATTERN.len())?.as_slice(), &UNTOUCHED.as_slice())
}

/// The last page that the guest is told it can map leads to memory, and one past it is refused as such. The
/// device is in domain [`ONE`].
///
/// # Errors
/// One of them does not hold.
pub(crate) fn last_page_is_reached(
    driver: &mut Driver,
    test: &TestDevice,
    ram: &Ram,
) -> io::Result<String> {
    let last = *driver.input_range().map_err(io::Error::other)?.end();
    let (iova, page) = (last - (PAGE - 1), ram.page()?);
    driver.map(ONE, page_range(iova), page, Rights::ReadWrite).map_err(io::Error::other)?;
    reaches(test, ram, iova, page)?;
    driver.unmap(ONE, page_range(iova)).map_err(io::Error::other)?;
    is_refused(test, ram, iova, page)?;
    let past =
        Request::Map { domain: ONE, iovas: page_range(last + 1), to: page, flags: READ_WRITE };
    let answer = driver.send(&past).map_err(io::Error::other)?;
    crate::expect("MAP past it", &answer.status(), &Status::RANGE)?;
    Ok(format!("mapped and reached up to {last:#x}, RANGE past it"))
}

/// What a request was answered with.
///
/// # Errors
/// It was not answered.
pub(crate) fn status_of(done: Result<(), Error>) -> io::Result<Status> {
    match done {
        Ok(()) => Ok(Status::OK),
        Err(Error::Refused { status, .. }) => Ok(status),
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Flags of MAP: to be read and written.
pub(crate) const READ_WRITE: u32 = 3;

/// Flag of ATTACH: a bypass domain.
const BYPASS: u32 = 1;

/// ATTACH to a bypass domain, which has to succeed.
///
/// # Errors
/// It does not.
pub(crate) fn attach_to_bypass(driver: &mut Driver, domain: u32, endpoint: u32) -> io::Result<()> {
    let attach = Request::Attach { domain, endpoint, flags: BYPASS };
    driver.request(&attach).map(drop).map_err(io::Error::other)
}

/// What memory holds before a DMA.
const UNTOUCHED: [u8; 4] = [0xee; 4];

/// Starts a driver at the daemon's socket.
///
/// # Errors
/// The daemon refuses.
pub(crate) fn boot(daemon: &Daemon, ram: &Ram) -> io::Result<Driver> {
    let front_end = FrontEnd::connect(&daemon.socket(), ram.memfd())?;
    Iommu::start(front_end, features::STANDARD | features::MMIO).map_err(io::Error::other)
}

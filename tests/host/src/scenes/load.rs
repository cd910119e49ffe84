//! Replacement under load.

use std::io;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use viommu_client::Rights;

use crate::bench::{Bench, Driver, EDU, HERE, ONE, SECOND, TEST, TWO, page_range, reaches};
use crate::ram::Ram;
use crate::testdev::{Ended, TestDevice};

/// How often one domain replaces the other.
const REPLACEMENTS: u32 = 100;

/// Where a DMA leads after a replacement was answered. In the middle of one it may be refused: Linux's drivers
/// clear what a device is attached to before they write what comes next, and a type1 container is emptied and
/// filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replacement {
    /// Where the new domain says.
    Clean,
    /// There, or where the old one says until that is unmapped: QEMU's VT-d in scalable mode keeps a
    /// translation that it has made in the middle (`docs/host-iommu.md`).
    Kept,
}

/// A device that writes without a pause, until it is told to end.
pub(crate) struct Load<'a> {
    test: Mutex<&'a TestDevice>,
    over: AtomicBool,
    written: AtomicU32,
    refused: AtomicU32,
}

impl Load<'_> {
    /// Writes to [`HERE`] again and again.
    fn run(&self, physical: u64) -> io::Result<()> {
        // Relaxed, all: they order nothing, and who reads them waits for this thread's end
        while !self.over.load(Ordering::Relaxed) {
            let counter = match self.with(|test| test.write(HERE, physical))? {
                Ended::Refused => &self.refused,
                Ended::Done | Ended::Elsewhere => &self.written,
            };
            counter.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// One use of the device, which has one set of registers.
    ///
    /// # Errors
    /// Those of `work`.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&TestDevice) -> io::Result<T>) -> io::Result<T> {
        let held = self.test.lock().map_err(|_| io::Error::other("the other thread panicked"))?;
        work(&held)
    }
}

/// Two domains lead the same IOVA to two pages. While the device writes without a pause, one replaces the
/// other: after the answer each write goes where the new domain leads, but for what [`Replacement::Kept`] lets
/// pass.
pub(super) fn domains_are_replaced(
    bench: &mut Bench,
    replacement: Replacement,
) -> io::Result<String> {
    let Bench { ram, driver, test, .. } = bench;
    each_write_goes_where_the_new_domain_leads(ram, driver, (TEST, test), replacement)
}

/// As [`domains_are_replaced`], with parts of one's own; the device is the endpoint of that number.
pub(super) fn each_write_goes_where_the_new_domain_leads(
    ram: &Ram,
    driver: &mut Driver,
    (endpoint, test): (u32, &TestDevice),
    replacement: Replacement,
) -> io::Result<String> {
    let pages = [(ONE, ram.page()?), (TWO, ram.page()?)];
    // a domain lives as long as something is attached to it
    for ((domain, page), keeper) in pages.into_iter().zip([EDU, SECOND]) {
        driver.attach(domain, keeper).map_err(io::Error::other)?;
        let mapped = driver.map(domain, page_range(HERE), page, Rights::ReadWrite);
        mapped.map_err(io::Error::other)?;
    }
    driver.attach(ONE, endpoint).map_err(io::Error::other)?;
    let physical = ram.physical(pages[0].1)?;
    let mut kept = 0;
    let said = while_it_writes(test, physical, |load| {
        let moves = pages.into_iter().zip(pages.into_iter().rev()).cycle();
        for (left, entered) in moves.take(REPLACEMENTS as usize) {
            driver.attach(entered.0, endpoint).map_err(io::Error::other)?;
            kept += load.with(|test| match reaches(test, ram, HERE, entered.1) {
                Err(_) if replacement == Replacement::Kept => {
                    unmap_ends_it(driver, (test, ram), left, entered.1).map(|()| 1)
                }
                ended => ended.map(|()| 0),
            })?;
        }
        Ok(REPLACEMENTS)
    })?;
    for (domain, _) in pages {
        driver.unmap(domain, page_range(HERE)).map_err(io::Error::other)?;
    }
    Ok(if kept == 0 { said } else { format!("{said}; {kept} kept by QEMU until UNMAP") })
}

/// The device still writes where the domain leads that it has left, though the answer was that it has: so it
/// does until that is unmapped there, and is mapped again after that.
fn unmap_ends_it(
    driver: &mut Driver,
    (test, ram): (&TestDevice, &Ram),
    (left, page): (u32, u64),
    new_page: u64,
) -> io::Result<()> {
    reaches(test, ram, HERE, page)?;
    driver.unmap(left, page_range(HERE)).map_err(io::Error::other)?;
    reaches(test, ram, HERE, new_page)?;
    driver.map(left, page_range(HERE), page, Rights::ReadWrite).map_err(io::Error::other)
}

/// Has the device write to [`HERE`] while `replace` replaces what that leads to, and says how often; the
/// device looks for what it has written at `physical`, which decides nothing here.
///
/// # Errors
/// Those of `replace` and of the device; nothing was written meanwhile.
pub(crate) fn while_it_writes(
    test: &TestDevice,
    physical: u64,
    replace: impl FnOnce(&Load<'_>) -> io::Result<u32>,
) -> io::Result<String> {
    let load = Load {
        test: Mutex::new(test),
        over: AtomicBool::new(false),
        written: AtomicU32::new(0),
        refused: AtomicU32::new(0),
    };
    let (replaced, loaded) = std::thread::scope(|scope| {
        let thread = scope.spawn(|| load.run(physical));
        let replaced = replace(&load);
        load.over.store(true, Ordering::Relaxed);
        (replaced, thread.join().unwrap_or_else(|_| Err(io::Error::other("the load panicked"))))
    });
    let times = replaced?;
    loaded?;
    let (written, refused) = (load.written.into_inner(), load.refused.into_inner());
    if written == 0 {
        return Err(io::Error::other(format!("no write went through, {refused} were refused")));
    }
    Ok(format!("{times} replacements, {written} writes meanwhile, {refused} refused"))
}

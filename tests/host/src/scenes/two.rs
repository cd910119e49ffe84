//! A domain meets two IOMMUs: functions behind either reach what it maps, and nothing else.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::sync::Arc;

use viommu_client::Rights;

use super::load::{Replacement, each_write_goes_where_the_new_domain_leads};
use crate::bench::{
    Bench, EDU, EDU_AT, HERE, ONE, OPTIONS, SECOND, SECOND_AT, TEST, TEST_AT, THERE, TWO,
    attach_to_bypass, boot, is_refused, reaches,
};
use crate::daemon::Daemon;
use crate::edu::Edu;
use crate::iommufd::Device;
use crate::pci::Function;
use crate::ram::{PAGE, Ram};
use crate::testdev::TestDevice;
use crate::vmm::Vmm;
use crate::{check, expect};

/// The function behind the other IOMMU: here, behind a bridge of its own, and for the guest that is played.
const OTHER_AT: &str = "0001:09:00.0";
const OTHER: u32 = 0x38;
const OPTION: &str = "00:07.0,vfio=0001:09:00.0";

/// Where the kernel counts the pages of IOMMUs' tables, and what makes it add up what its processors have
/// counted (Documentation/admin-guide/sysctl/vm.rst in Linux).
const COUNTS: &str = "/proc/vmstat";
const TABLE_PAGES: &str = "nr_iommu_pages ";
const ADD_UP: &str = "/proc/sys/vm/stat_refresh";

/// The bench, and the function behind the other IOMMU.
struct Both {
    bench: Bench,
    other: TestDevice,
}

pub(super) fn play() -> io::Result<()> {
    let function = Function::at(OTHER_AT);
    function.bind()?;
    let bench = Bench::open(&[OPTIONS, &["--endpoint", OPTION]].concat())?;
    let mut both = Both { bench, other: TestDevice::open(&function)? };
    check("apart", each_has_an_iommu_of_its_own());
    check("bypass", what_bypasses_reaches_all_memory_and_then_nothing(&mut both));
    check("both", a_domain_rules_both(&mut both));
    check("tables", a_mapping_takes_tables_in_each_iommu(&mut both));
    check("late", who_enters_late_finds_what_is_mapped(&mut both));
    check("left", one_leaves_and_the_other_goes_on(&mut both));
    check("away", one_is_elsewhere_meanwhile(&mut both));
    check("replaced-other", replaced_under_load(&mut both, OTHER));
    check("replaced", replaced_under_load(&mut both, TEST));
    check("end", both.end().map(|()| "status 0".to_owned()));
    check("given", all_holds_for_devices_of_a_vmm(&function));
    Ok(())
}

/// The daemon does not know which descriptor is which of the VMM's devices, and so not whose IOMMU a
/// table has to be for: it finds that out.
fn all_holds_for_devices_of_a_vmm(other: &Function) -> io::Result<String> {
    let (mut both, vmm) = Both::given(other)?;
    a_domain_rules_both(&mut both)?;
    what_bypasses_reaches_all_memory_and_then_nothing(&mut both)?;
    a_mapping_takes_tables_in_each_iommu(&mut both)?;
    who_enters_late_finds_what_is_mapped(&mut both)?;
    one_leaves_and_the_other_goes_on(&mut both)?;
    one_is_elsewhere_meanwhile(&mut both)?;
    for endpoint in [OTHER, TEST] {
        replaced_under_load(&mut both, endpoint)?;
    }
    both.end()?;
    drop(vmm);
    Ok("the same with devices that a VMM shares".to_owned())
}

impl Both {
    /// The functions are those of a VMM, which has to outlive the daemon.
    fn given(other: &Function) -> io::Result<(Self, Vmm)> {
        let [test, edu, second] = [TEST_AT, EDU_AT, SECOND_AT].map(Function::at);
        let ram = Arc::new(Ram::new()?);
        let vmm = Vmm::new(&[&test, &edu, &second, other], &ram)?;
        let iommufd = vmm.iommufd.as_raw_fd();
        let endpoint = |(slot, device): (usize, &Device)| {
            format!(
                "--endpoint=00:{slot:02x}.0,vfio=fd:{},iommufd=fd:{iommufd}",
                device.as_raw_fd()
            )
        };
        let endpoints: Vec<_> = (4..).zip(&vmm.devices).map(endpoint).collect();
        let options = ["--boot-bypass", "off", "--on-start", "block", "--log-level", "info"];
        let options: Vec<_> = endpoints.iter().map(String::as_str).chain(options).collect();
        let daemon = Daemon::start("/tmp/given", &options)?;
        let driver = boot(&daemon, &ram)?;
        let (test, edu) = (TestDevice::open(&test)?, Edu::open(&edu)?);
        let bench = Bench { ram, daemon, driver, test, edu };
        Ok((Self { bench, other: TestDevice::open(other)? }, vmm))
    }

    /// The guest goes, and the daemon ends as it should.
    fn end(self) -> io::Result<()> {
        let Bench { daemon, driver, .. } = self.bench;
        drop(driver);
        daemon.end().map(drop)
    }

    /// ATTACH of both functions.
    fn attach(&mut self, domain: u32) -> io::Result<()> {
        self.bench.attach(domain, TEST)?;
        self.bench.attach(domain, OTHER)
    }

    /// DETACH of both functions.
    fn detach(&mut self, domain: u32) -> io::Result<()> {
        [TEST, OTHER].into_iter().try_for_each(|endpoint| self.detach_one(domain, endpoint))
    }

    fn detach_one(&mut self, domain: u32, endpoint: u32) -> io::Result<()> {
        self.bench.driver.detach(domain, endpoint).map_err(io::Error::other)
    }

    fn reach(&self, iova: u64, page: u64) -> io::Result<()> {
        self.bench.reaches(iova, page)?;
        self.other_reaches(iova, page)
    }

    fn are_refused(&self, iova: u64, page: u64) -> io::Result<()> {
        self.bench.is_refused(iova, page)?;
        self.other_is_refused(iova, page)
    }

    fn other_reaches(&self, iova: u64, page: u64) -> io::Result<()> {
        reaches(&self.other, &self.bench.ram, iova, page)
    }

    fn other_is_refused(&self, iova: u64, page: u64) -> io::Result<()> {
        is_refused(&self.other, &self.bench.ram, iova, page)
    }
}

fn each_has_an_iommu_of_its_own() -> io::Result<String> {
    let iommu = |at| fs::canonicalize(Function::at(at).file("iommu"));
    let name = |path: &PathBuf| path.file_name().unwrap_or_default().display().to_string();
    let (one, other) = (iommu(TEST_AT)?, iommu(OTHER_AT)?);
    expect("the same IOMMU", &(one == other), &false)?;
    Ok(format!("{} and {}", name(&one), name(&other)))
}

fn what_bypasses_reaches_all_memory_and_then_nothing(both: &mut Both) -> io::Result<String> {
    let page = both.bench.ram.page()?;
    both.are_refused(page, page)?;
    for endpoint in [TEST, OTHER] {
        attach_to_bypass(&mut both.bench.driver, TWO, endpoint)?;
    }
    both.reach(page, page)?;
    both.detach(TWO)?;
    both.are_refused(page, page)?;
    Ok("refused, reached while they bypass, refused again".to_owned())
}

fn a_domain_rules_both(both: &mut Both) -> io::Result<String> {
    let (page, shielded) = (both.bench.ram.page()?, both.bench.ram.page()?);
    both.attach(ONE)?;
    both.are_refused(HERE, page)?;
    both.bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    both.bench.map(ONE, THERE, shielded, Rights::Read)?;
    both.reach(HERE, page)?;
    both.are_refused(THERE, shielded)?;
    both.bench.unmap(ONE, HERE)?;
    both.are_refused(HERE, page)?;
    both.bench.unmap(ONE, THERE)?;
    both.detach(ONE)?;
    Ok("one MAP, one UNMAP; a read-only page is written by neither".to_owned())
}

/// The kernel says so: the same MAP takes twice the pages where the domain has met both, however many
/// functions are behind one of them.
fn a_mapping_takes_tables_in_each_iommu(both: &mut Both) -> io::Result<String> {
    let page = both.bench.ram.page()?;
    both.bench.attach(ONE, TEST)?;
    let alone = pages_taken(|| both.bench.map(ONE, HERE, page, Rights::ReadWrite))?;
    both.attach(TWO)?;
    both.bench.attach(TWO, EDU)?;
    let twice = pages_taken(|| both.bench.map(TWO, HERE, page, Rights::ReadWrite))?;
    expect("none for one", &(alone == 0), &false)?;
    expect("pages of tables", &twice, &(2 * alone))?;
    both.reach(HERE, page)?;
    both.detach_one(TWO, EDU)?;
    both.detach(TWO)?;
    Ok(format!("a MAP took {alone} pages of tables with one IOMMU, {twice} with both"))
}

/// By how many pages the tables of IOMMUs grow meanwhile.
fn pages_taken(work: impl FnOnce() -> io::Result<()>) -> io::Result<u64> {
    let before = table_pages()?;
    work()?;
    let after = table_pages()?;
    after.checked_sub(before).ok_or_else(|| io::Error::other("the tables shrank"))
}

fn table_pages() -> io::Result<u64> {
    fs::write(ADD_UP, "1")?;
    let counts = fs::read_to_string(COUNTS)?;
    let count = counts.lines().find_map(|line| line.strip_prefix(TABLE_PAGES)?.parse().ok());
    count.ok_or_else(|| io::Error::other("the kernel does not count the pages of IOMMUs' tables"))
}

/// Whichever comes first.
fn who_enters_late_finds_what_is_mapped(both: &mut Both) -> io::Result<String> {
    let page = both.bench.ram.page()?;
    both.bench.attach(ONE, TEST)?;
    both.bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    both.other_is_refused(HERE, page)?;
    both.bench.attach(ONE, OTHER)?;
    both.reach(HERE, page)?;
    both.detach(ONE)?;

    both.bench.attach(TWO, OTHER)?;
    both.bench.map(TWO, THERE, page, Rights::ReadWrite)?;
    both.bench.is_refused(THERE, page)?;
    both.bench.attach(TWO, TEST)?;
    both.reach(THERE, page)?;
    both.detach(TWO)?;
    both.are_refused(THERE, page)?;
    Ok("found by either, whichever was there first".to_owned())
}

fn one_leaves_and_the_other_goes_on(both: &mut Both) -> io::Result<String> {
    let (page, next) = (both.bench.ram.page()?, both.bench.ram.page()?);
    both.attach(ONE)?;
    both.bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    both.detach_one(ONE, TEST)?;
    both.bench.is_refused(HERE, page)?;
    both.other_reaches(HERE, page)?;
    both.bench.map(ONE, HERE + PAGE, next, Rights::ReadWrite)?;
    both.other_reaches(HERE + PAGE, next)?;
    both.bench.is_refused(HERE + PAGE, next)?;

    both.bench.attach(ONE, TEST)?;
    both.detach_one(ONE, OTHER)?;
    both.other_is_refused(HERE, page)?;
    both.bench.reaches(HERE, page)?;
    both.bench.unmap(ONE, HERE)?;
    both.bench.is_refused(HERE, page)?;
    both.bench.reaches(HERE + PAGE, next)?;
    both.detach_one(ONE, TEST)?;
    Ok("after DETACH of either the other maps and unmaps".to_owned())
}

fn one_is_elsewhere_meanwhile(both: &mut Both) -> io::Result<String> {
    let (page, next) = (both.bench.ram.page()?, both.bench.ram.page()?);
    both.attach(ONE)?;
    both.bench.map(ONE, HERE, page, Rights::ReadWrite)?;
    both.bench.attach(TWO, OTHER)?;
    both.bench.map(TWO, THERE, next, Rights::ReadWrite)?;
    both.bench.reaches(HERE, page)?;
    both.bench.is_refused(THERE, next)?;
    both.other_reaches(THERE, next)?;
    both.other_is_refused(HERE, page)?;
    // what changes while it is away is in its IOMMU's table when it is back
    both.bench.unmap(ONE, HERE)?;
    both.bench.map(ONE, HERE + PAGE, page, Rights::ReadWrite)?;
    both.bench.attach(ONE, OTHER)?;
    both.are_refused(HERE, page)?;
    both.reach(HERE + PAGE, page)?;
    both.other_is_refused(THERE, next)?;
    both.detach(ONE)?;
    Ok("in another domain it reaches that; back again, what has changed".to_owned())
}

/// Both domains meet both IOMMUs, and in each is a function behind the first while one replaces the other.
fn replaced_under_load(both: &mut Both, endpoint: u32) -> io::Result<String> {
    both.bench.attach(ONE, EDU)?;
    both.bench.attach(TWO, SECOND)?;
    both.bench.attach(ONE, OTHER)?;
    both.bench.attach(TWO, OTHER)?;
    let Both { bench: Bench { ram, driver, test, .. }, other } = both;
    let device = if endpoint == OTHER { other } else { test };
    let loaded = (endpoint, &*device);
    each_write_goes_where_the_new_domain_leads(ram, driver, loaded, Replacement::Clean)
}

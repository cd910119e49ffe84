//! The guest in the guest: what `launch` starts boots with this program as its first process, and nothing
//! else. It finds the functions behind a virtio-iommu, and moves data through mappings that it makes as
//! user-space drivers do: first those of VFIO's type1, then those of iommufd, which can replace an address
//! space by another.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, reboot};
use viommu_guest::pattern;

use crate::bench::{EDU_AT, HERE, SECOND_AT, TEST_AT, THERE};
use crate::edu::{BUFFER_BYTES, Edu};
use crate::iommufd::{Device, Iommufd, Place};
use crate::pci::Function;
use crate::ram::{PAGE, Ram};
use crate::scenes::load::{Load, while_it_writes};
use crate::testdev::{Ended, PATTERN, TestDevice};
use crate::type1::Container;
use crate::{check, expect};

/// The IOMMU's own function.
const IOMMU_AT: &str = "0000:00:01.0";

/// The table that says what is behind it.
const VIOT: &str = "/sys/firmware/acpi/tables/VIOT";

/// Where the test device looks for what it has written: an address of the machine around all guests, which
/// nobody here knows. So it says [`Ended::Elsewhere`] whenever it has written, and memory says where.
const UNKNOWN: u64 = 0;

/// What a page holds before a DMA.
const UNTOUCHED: u8 = 0xee;

/// How often one address space replaces the other.
const REPLACEMENTS: u32 = 50;

/// Lives as the guest's first process: prepares the system, plays, powers off.
pub(crate) fn live() -> io::Result<()> {
    if let Err(error) = prepare().and_then(|()| play()) {
        println!("check inner: FAIL {error}");
    }
    Ok(reboot(RebootCommand::PowerOff)?)
}

fn prepare() -> io::Result<()> {
    for (kind, place) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        fs::create_dir_all(place)?;
        mount(kind, place, kind, MountFlags::empty(), None)?;
    }
    Ok(())
}

/// The functions with their drivers, each in a container of its own.
struct Parts {
    ram: Ram,
    test: TestDevice,
    edu: Edu,
    tests: Container,
    edus: Container,
}

fn play() -> io::Result<()> {
    let functions = [TEST_AT, EDU_AT, SECOND_AT].map(Function::at);
    check("inner-behind", all_are_behind_the_iommu(&functions));
    for function in &functions {
        function.bind()?;
    }
    let ram = Ram::new()?;
    let [test, edu, _] = &functions;
    let (tests, edus) = (Container::open(test)?, Container::open(edu)?);
    let (test, edu) = (TestDevice::open(test)?, Edu::open(edu)?);
    let parts = Parts { ram, test, edu, tests, edus };
    check("inner-written", a_page_is_written_while_it_is_mapped(&parts));
    check("inner-copied", content_is_copied_through_two_mappings(&parts));
    check("inner-apart", what_one_function_has_the_other_does_not_reach(&parts));
    let Parts { ram, tests, edus, .. } = parts;
    // a function is in a container or bound to an iommufd, not both
    drop((tests, edus));
    check("inner-replaced", address_spaces_are_replaced(&functions, &ram));
    Ok(())
}

fn all_are_behind_the_iommu(functions: &[Function; 3]) -> io::Result<String> {
    let name = |function: &Function, link| {
        let target = fs::read_link(function.file(link))?;
        Ok::<_, io::Error>(target.file_name().unwrap_or_default().to_string_lossy().into_owned())
    };
    fs::metadata(VIOT)?;
    let mut groups = BTreeSet::new();
    for function in functions {
        expect("the IOMMU of a function", &name(function, "iommu")?.as_str(), &IOMMU_AT)?;
        groups.insert(name(function, "iommu_group")?);
    }
    expect("groups", &groups.len(), &functions.len())?;
    Ok(format!("a group for each of {}, behind the virtio-iommu at {IOMMU_AT}", functions.len()))
}

impl Parts {
    /// A page that holds [`UNTOUCHED`].
    fn page(&self) -> io::Result<u64> {
        let page = self.ram.page()?;
        self.ram.write(page, &[UNTOUCHED; BUFFER_BYTES as usize])?;
        Ok(page)
    }

    fn untouched(&self, page: u64) -> io::Result<()> {
        untouched(&self.ram, page)
    }

    fn is_refused(&self, iova: u64, page: u64) -> io::Result<()> {
        is_refused(&self.test, &self.ram, iova, page)
    }
}

fn untouched(ram: &Ram, page: u64) -> io::Result<()> {
    let content = ram.read(page, BUFFER_BYTES as usize)?;
    let same = content.iter().all(|byte| *byte == UNTOUCHED);
    expect("the page is untouched", &same, &true)
}

fn is_refused(test: &TestDevice, ram: &Ram, iova: u64, page: u64) -> io::Result<()> {
    expect("the DMA ended", &test.write(iova, UNKNOWN)?, &Ended::Refused)?;
    untouched(ram, page)
}

fn reaches(test: &TestDevice, ram: &Ram, iova: u64, page: u64) -> io::Result<()> {
    ram.write(page, &[UNTOUCHED; BUFFER_BYTES as usize])?;
    expect("the DMA ended", &test.write(iova, UNKNOWN)?, &Ended::Elsewhere)?;
    let written = ram.read(page, PATTERN.len())?;
    expect("memory", &written.as_slice(), &PATTERN.as_slice())
}

fn a_page_is_written_while_it_is_mapped(parts: &Parts) -> io::Result<String> {
    let page = parts.page()?;
    parts.is_refused(HERE, page)?;
    parts.tests.map(HERE, &parts.ram, page, PAGE)?;
    reaches(&parts.test, &parts.ram, HERE, page)?;
    parts.tests.unmap(HERE, PAGE)?;
    parts.ram.write(page, &[UNTOUCHED; PATTERN.len()])?;
    parts.is_refused(HERE, page)?;
    Ok("written while mapped, refused before and after".to_owned())
}

fn content_is_copied_through_two_mappings(parts: &Parts) -> io::Result<String> {
    let (from, to) = (parts.page()?, parts.page()?);
    let mut content = vec![0; BUFFER_BYTES as usize];
    pattern::fill(1, 0, &mut content);
    parts.ram.write(from, &content)?;
    parts.edus.map(HERE, &parts.ram, from, PAGE)?;
    parts.edus.map(THERE, &parts.ram, to, PAGE)?;
    parts.edu.load(HERE, BUFFER_BYTES)?;
    parts.edu.store(THERE, BUFFER_BYTES)?;
    let copied = parts.ram.read(to, content.len())? == content;
    expect("the copy is the same", &copied, &true)?;
    parts.edus.unmap(THERE, PAGE)?;
    parts.ram.write(to, &[UNTOUCHED; BUFFER_BYTES as usize])?;
    parts.edu.store(THERE, BUFFER_BYTES)?;
    parts.untouched(to)?;
    parts.edus.unmap(HERE, PAGE)?;
    Ok(format!("{BUFFER_BYTES} bytes read and written by DMA; none after UNMAP"))
}

fn what_one_function_has_the_other_does_not_reach(parts: &Parts) -> io::Result<String> {
    let page = parts.page()?;
    parts.edus.map(HERE, &parts.ram, page, PAGE)?;
    parts.is_refused(HERE, page)?;
    parts.edus.unmap(HERE, PAGE)?;
    Ok("a mapping of the one is none of the other's".to_owned())
}

/// Two address spaces lead the same IOVA to two pages, and each has a function that stays: ATTACH is then all
/// that a replacement is.
fn address_spaces_are_replaced(functions: &[Function; 3], ram: &Ram) -> io::Result<String> {
    let iommufd = Iommufd::open()?;
    let bind = |function| Device::bind(function, &iommufd);
    let [test, edu, second] = functions;
    let (device, keepers) = (bind(test)?, [bind(edu)?, bind(second)?]);
    let mut sides = Vec::new();
    for keeper in &keepers {
        let (space, page, memfd) = (iommufd.space()?, ram.page()?, ram.memfd());
        keeper.attach(space)?;
        iommufd.map(space, Place { file: memfd.file(), at: page }, (HERE, PAGE))?;
        sides.push((space, page));
    }
    // binding has taken bus mastering away
    let test = TestDevice::open(test)?;
    let replace = |load: &Load<'_>| {
        for (space, page) in sides.iter().cycle().take(REPLACEMENTS as usize) {
            device.attach(*space)?;
            load.with(|test| reaches(test, ram, HERE, *page))?;
        }
        Ok(REPLACEMENTS)
    };
    let said = while_it_writes(&test, UNKNOWN, replace)?;
    for (space, page) in sides {
        iommufd.unmap(space, (HERE, PAGE))?;
        device.attach(space)?;
        ram.write(page, &[UNTOUCHED; BUFFER_BYTES as usize])?;
        is_refused(&test, ram, HERE, page)?;
    }
    Ok(said)
}

//! No daemon: a type1 container of our own shows that machine, kernel and device do what they should.

use std::io;

use crate::bench::{HERE, TEST_AT, is_refused, reaches};
use crate::check;
use crate::pci::Function;
use crate::ram::{PAGE, Ram};
use crate::testdev::TestDevice;
use crate::type1::Container;

pub(super) fn play() -> io::Result<()> {
    let function = Function::at(TEST_AT);
    function.bind()?;
    let ram = Ram::new()?;
    let container = Container::open(&function)?;
    let test = TestDevice::open(&function)?;
    let page = ram.page()?;
    check("type1", moved(&container, &test, &ram, page));
    Ok(())
}

fn moved(container: &Container, test: &TestDevice, ram: &Ram, page: u64) -> io::Result<String> {
    is_refused(test, ram, HERE, page)?;
    container.map(HERE, ram, page, PAGE)?;
    reaches(test, ram, HERE, page)?;
    container.unmap(HERE, PAGE)?;
    is_refused(test, ram, HERE, page)?;
    Ok("written while mapped, refused before and after".to_owned())
}
